"""The folder that `teach` works on: classes, images, images without a label. No model and no page.

FOLDER/train/<class>/*.jpg      labelled images, as `--root FOLDER` reads them
FOLDER/unlabelled/...           images that wait for a label
FOLDER/none of these/           images that somebody has said to be of no class
FOLDER/.hegraph/                what can be undone, and what was removed; no other command reads it
"""

from __future__ import annotations

import hashlib
import re
import shutil
import unicodedata
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ..datasets.folder import class_name
from ..datasets.images import MAX_BYTES, is_image, open_sent
from ..predict.rows import NONE_OF_THESE
from ..predict.sorting import MAX_NAME
from ..utils.errors import UserError, printable, shortened
from ..utils.files import atomic_path, cannot_write, hash_file
from ..utils.reading import reading
from .journal import OWN, JournaledFolder, Move, removed

TRAIN, UNLABELLED, KEPT = "train", "unlabelled", f"{OWN}/kept"
LOOSE = (UNLABELLED, NONE_OF_THESE)  # places of images that are no classes
# What a name of a class must not hold, so that it is the name of a folder on every system
FORBIDDEN = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]|^\.|\.$')
MOST_FILES, MOST_BYTES = 50_000, 8 * 2**30  # of a zip file


class Picture(NamedTuple):
    """An image of the project: its path below the folder, with `/`, and the SHA-256 of its file."""

    path: str
    digest: str

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name


class File(NamedTuple):
    """A file that is to become an image of a class or of one of `LOOSE`; without a name, the class alone."""

    place: str
    name: str = ""
    data: bytes = b""


@dataclass(frozen=True)
class Contents:
    """What a project holds.

    Attributes:
        folders: The folder of every class, by its name in Unicode's form NFC, and of `LOOSE`.
        classes, unlabelled, none: The images of every class, without a label, and of none of the classes.
        kept: SHA-256 of the images whose label somebody has confirmed.
        left_out: Paths that are not read, such as links and files that are no images.
        undo: What the last change was, which can be undone; "" if there is none.
    """

    folders: dict[str, str]
    classes: dict[str, list[Picture]]
    unlabelled: list[Picture]
    none: list[Picture]
    kept: frozenset[str]
    left_out: list[str]
    undo: str

    def pictures(self) -> dict[Picture, str]:
        """All images, and the class or other place where each is."""
        places = {**self.classes, UNLABELLED: self.unlabelled, NONE_OF_THESE: self.none}
        return {picture: place for place, pictures in places.items() for picture in pictures}

    def classes_of(self) -> dict[str, list[str]]:
        """The classes in which an image is, by its SHA-256."""
        found: dict[str, list[str]] = {}
        for name, pictures in self.classes.items():
            for digest in {picture.digest for picture in pictures}:
                found.setdefault(digest, []).append(name)
        return found

    def folder(self, place: str) -> str:
        """The folder of a place; UserError if there is none."""
        if place not in self.folders:
            raise UserError(f"there is no class {shortened(place, 80)!r} any more")
        return self.folders[place]


class Added(NamedTuple):
    """The images that were added, why others were not, and SHA-256 and intended class of those of another class."""

    pictures: list[Picture]
    problems: list[str]
    questions: dict[str, str]


class Project(JournaledFolder):
    """A folder of images that is taught from; errors are those of `JournaledFolder`, also after changes of others."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._digests: dict[str, tuple[tuple[int, ...], str]] = {}
        self.read()

    def read(self) -> Contents:
        """What the folder holds now."""
        with self.locked():
            left_out: list[str] = []
            folders = self._class_folders(left_out)
            classes = {name: self._pictures(folder, left_out) for name, folder in folders.items()}
            unlabelled, none = (self._pictures(place, left_out, deeper=True) for place in LOOSE)
            kept = frozenset(PurePosixPath(path).name for path in self.names(KEPT, left_out)[0])
            changes = self.journal().changes
            folders |= {place: place for place in LOOSE}
            return Contents(folders, classes, unlabelled, none, kept, left_out, changes[-1].what if changes else "")

    def data(self, picture: Picture) -> bytes:
        """The bytes of an image."""
        path = self.at(picture.path)
        with reading(path, "an image"):
            return path.read_bytes()

    def write_zip(self, path: Path) -> None:
        """Writes all images, in the folders of their classes, into a zip file, which `read_zip` reads."""
        contents = self.read()
        with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as file:
            for name in contents.classes:
                file.writestr(f"{TRAIN}/{name}/", b"")
            for picture in contents.pictures():
                file.writestr(zipfile.ZipInfo(picture.path), self.data(picture))

    # Changes

    def add_class(self, name: str) -> str:
        """Adds a class without images; returns its name, as `new_name` gives it."""
        with self.locked():
            name = new_name(name, self.read().folders)
            self.change(f"the class {name} added", [(self.new_folder(), f"{TRAIN}/{name}")])
        return name

    def rename_class(self, old: str, new: str) -> str:
        """Gives a class another name, which is returned."""
        with self.locked():
            contents = self.read()
            new = new_name(new, contents.folders.keys() - {old})
            if (source := contents.folder(old)) != f"{TRAIN}/{new}":
                self.change(f"{old} renamed to {new}", [(source, f"{TRAIN}/{new}")])
        return new

    def delete_class(self, name: str) -> None:
        """Removes a class with its images."""
        with self.locked():
            self.change(f"the class {name} deleted", [removed(self.read().folder(name))])

    def move(self, pictures: Sequence[Picture], place: str) -> None:
        """Moves images to a class or to one of `LOOSE`; "" removes them. Their labels are not confirmed any more."""
        with self.locked():
            contents = self.read()
            where, folder = contents.pictures(), contents.folder(place) if place else ""
            if gone := [picture for picture in pictures if picture not in where]:
                raise UserError(f"{gone[0].path} is not there any more, or was changed; look at the page again")
            moved, taken = [picture for picture in pictures if where[picture] != place], set[str]()
            moves = [(p.path, self.free(folder, p.name, taken)) if place else removed(p.path) for p in moved]
            moves += [removed(f"{KEPT}/{digest}") for digest in {p.digest for p in moved} & contents.kept]
            self.change(f"{_images(len(moved))} {f'moved to {place}' if place else 'removed'}", moves)

    def keep(self, picture: Picture) -> None:
        """Confirms the label of an image, until it is moved."""
        with self.locked():
            contents = self.read()
            if picture in contents.pictures() and picture.digest not in contents.kept:
                self.change("a label confirmed", [(self.new_folder(), f"{KEPT}/{picture.digest}")])

    def settle(self, digest: str, name: str) -> None:
        """Has an image of several classes, or that was dropped on another one, in one class alone."""
        with self.locked():
            contents = self.read()
            folder = contents.folder(name)
            where = contents.pictures().items()
            there = [(p, place) for p, place in where if p.digest == digest and place in contents.classes]
            if not there:
                raise UserError("the image is not there any more")
            first, place = min(there, key=lambda each: each[1] != name)
            moved = [] if place == name else [(first.path, self.free(folder, first.name, set()))]
            moves = [removed(p.path) for p, _ in there if p != first] + moved
            self.change(f"an image settled in {name}", moves)

    def add(self, files: Iterable[File], what: str = "added") -> Added:
        """Adds images, and the classes of those that name one; they are read one after the other, without the lock.

        An image that is in its place already is left out, and so is one that is in another class: that is asked.
        """
        with self.locked():
            new = self.new_folder()
        try:
            staged, problems = self._staged(files, new)
            with self.locked():
                return self._add(staged, problems, what)
        finally:
            shutil.rmtree(self.folder / new, ignore_errors=True)

    def _staged(self, files: Iterable[File], new: str) -> tuple[list[tuple[str, str, Picture]], list[str]]:
        """Writes the files that are images into the folder `new`: the place and name of each, and the image there."""
        staged, problems = [], []
        for number, (place, sent, data) in enumerate(files):
            name, path = file_name(sent) if sent else "", f"{new}/{number}"
            try:
                if name and not is_image(name):
                    raise UserError("is no image, by the ending of its name")
                if name:
                    open_sent(data)
                    self.at(path).write_bytes(data)
            except UserError as error:
                problems.append(f"{name} {error}")
                continue
            except OSError as error:
                raise cannot_write(self.folder, error) from error
            staged.append((place, name, Picture(path, hashlib.sha256(data).hexdigest())))
        return staged, problems

    def _add(self, staged: list[tuple[str, str, Picture]], problems: list[str], what: str) -> Added:
        """Puts staged files into their places."""
        contents, added = self.read(), Added([], problems, {})
        folders, moves, taken = dict(contents.folders), list[Move](), set[str]()
        places = defaultdict[str, list[str]](list)  # where an image is, by its SHA-256
        for picture, place in contents.pictures().items():
            places[picture.digest].append(place)
        for place, name, (path, digest) in staged:
            if place not in folders:
                folders[place] = f"{TRAIN}/{new_name(place, folders)}"
                moves.append((self.new_folder(), folders[place]))
            others = [] if place in LOOSE else [other for other in places[digest] if other not in LOOSE]
            if not name:  # the class alone
                continue
            if place in places[digest]:
                problems.append(f"{name} is there already")
            elif others:
                added.questions[digest] = place
                problems.append(f"{name} is in {others[0]} already, and was not added to {place}: choose below")
            else:
                moves.append((path, self.free(folders[place], name, taken)))
                added.pictures.append(Picture(moves[-1][1], digest))
                places[digest].append(place)
        named = {place for place, _, _ in staged}
        to = f" to {named.pop()}" if len(named) == 1 else ""
        self.change(f"{_images(len(added.pictures))} {what}{to}", moves)
        return added

    # What is there

    def _class_folders(self, left_out: list[str]) -> dict[str, str]:
        """The folder of every class, by the name of the class; UserError if two classes have one name."""
        folders, files = self.names(TRAIN, left_out)
        left_out += files
        named, keys = {PurePosixPath(folder).name: folder for folder in folders}, dict[str, str]()
        for name in named:
            if (other := keys.setdefault(name_key(name), name)) != name:
                said = f"{self.folder / TRAIN}: the folders {other!a} and {name!a} are one class by their names"
                raise UserError(f"{said}; rename one, or move the images of one to the other")
        return {class_name(name, TRAIN): folder for name, folder in named.items()}

    def _pictures(self, place: str, left_out: list[str], deeper: bool = False) -> list[Picture]:
        """The images of a folder and, if asked for, of the folders in it."""
        folders, images = self.names(place, left_out)
        found = []
        for path in images:
            try:
                status = (self.folder / path).stat()
                version = (status.st_ino, status.st_size, status.st_mtime_ns)
                if self._digests.get(path, ((), ""))[0] != version:
                    self._digests[path] = version, hash_file(self.folder / path)
                found.append(Picture(path, self._digests[path][1]))
            except OSError:  # nobody may read it
                left_out.append(path)
        if not deeper:
            left_out += folders
            return found
        return found + [picture for folder in folders for picture in self._pictures(folder, left_out, True)]


def new_name(name: str, others: Iterable[str]) -> str:
    """A name of a class as it is kept: in Unicode's form NFC, and with single blanks; UserError if no folder could have
    it, or if it is one of the others.
    """
    found = unicodedata.normalize("NFC", " ".join(str(name).split()))
    if not found or FORBIDDEN.search(found) or printable(found) != found:
        raise UserError(
            f"{shortened(printable(found), 80)!r} is no name for a class, which becomes that of a folder: it must not "
            'be empty, hold / \\ : * ? " < > or |, nor begin or end with a dot'
        )
    if len(found.encode()) > MAX_NAME:
        raise UserError(f"the name {shortened(found, 60)!r} has {len(found)} characters; take a shorter one")
    if same := [other for other in others if name_key(other) == name_key(found)]:
        raise UserError(f"{found!r} cannot be added: there is {same[0]!r} already")
    return found


def name_key(name: str) -> str:
    """What two names have in common that are one by case or by Unicode's form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def file_name(name: str) -> str:
    """The name of a file that came from elsewhere, as one that every system allows."""
    last = unicodedata.normalize("NFC", re.split(r"[/\\]", name)[-1]).strip(". ")
    safe = Path("".join("_" if c != "." and (FORBIDDEN.match(c) or not c.isprintable()) else c for c in last))
    return f"{safe.stem.encode()[:MAX_NAME].decode(errors='ignore') or 'image'}{safe.suffix[:20]}"


def read_zip(path: Path) -> Iterator[File]:
    """The images and classes of a zip file: those in a folder `train/<class>`, `unlabelled` or `none of these`.

    Of an image that is too large only so much is read as tells that. UserError if it is no zip file, damaged, or would
    take too much space.
    """
    with reading(path, "a zip file"), zipfile.ZipFile(path) as file:
        members, total = file.infolist(), 0
        if len(members) > MOST_FILES:
            raise UserError(f"the zip file holds more than {MOST_FILES} files")
        found = [(member, place) for member in members if (place := _place_of(member.filename))]
        if not found:
            raise ValueError(f"it holds no folder {TRAIN}/<class> or {UNLABELLED}")
        for member, place in found:
            if member.is_dir():
                yield File(place)
                continue
            with file.open(member) as opened:
                data = opened.read(MAX_BYTES + 1)
            total += len(data)
            if total > MOST_BYTES:
                raise UserError(f"the zip file holds more than {MOST_BYTES >> 30} GB")
            yield File(place, member.filename, data)


def _place_of(path: str) -> str:
    """The class, or other place, of a path in a zip file; "" if it has none."""
    *folders, name = re.split(r"[/\\]", path)
    if name.startswith(".") or "__MACOSX" in folders or OWN in folders:
        return ""
    if len(folders) > 1 and folders[-2] == TRAIN:
        return class_name(folders[-1], TRAIN)
    return next((place for place in LOOSE if place in folders), "")


def _images(count: int) -> str:
    return f"{count} image{'' if count == 1 else 's'}"
