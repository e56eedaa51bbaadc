"""The folder that `teach` works on: classes, images, images without a label, and undo. No model and no page.

    FOLDER/train/<class>/*.jpg      labelled images, as `--root FOLDER` reads them
    FOLDER/unlabelled/...           images that wait for a label
    FOLDER/none of these/           images that somebody has said to be of no class
    FOLDER/.hegraph/                what can be undone, and what was removed; no other command reads it

A change is a list of renamings inside FOLDER, which are made under a lock: all of them, or none. Files are made in
`.hegraph` before, and nothing is ever deleted but renamed into `.hegraph/removed`; so every change can be undone by the
renamings in reverse. Links are not followed, so that nothing outside FOLDER is read or written.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import unicodedata
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar
from uuid import uuid4

from filelock import FileLock, Timeout
from pydantic import Field

from ..datasets.folder import class_name
from ..datasets.images import MAX_BYTES, is_image, open_sent
from ..predict.rows import NONE_OF_THESE
from ..predict.sorting import MAX_NAME, with_suffix
from ..utils.errors import UserError, first_line, printable, shortened
from ..utils.files import absolute, atomic_path, cannot_write, hash_file, write_json
from ..utils.reading import read_json, reading
from ..utils.schema import Part, check

TRAIN, UNLABELLED, OWN = "train", "unlabelled", ".hegraph"
NEW, REMOVED, KEPT = f"{OWN}/new", f"{OWN}/removed", f"{OWN}/kept"
JOURNAL, BEGUN = f"{OWN}/journal.json", f"{OWN}/begun.json"
# What a name of a class must not hold, so that it is the name of a folder on every system
FORBIDDEN = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]|^\.|\.$')
MOST_CHANGES = 200  # that can be undone
PATIENCE = 60  # seconds to wait for the lock
MOST_FILES, MOST_BYTES = 50_000, 8 * 2**30  # of a zip file


class Picture(NamedTuple):
    """An image of the project: its path below the folder, with `/`, and the SHA-256 of its file."""

    path: str
    digest: str


class File(NamedTuple):
    """A file that is to become an image of a class, of `UNLABELLED`, or of `NONE_OF_THESE`.

    Without a name, it stands for the class alone.
    """

    place: str
    name: str = ""
    data: bytes = b""


@dataclass(frozen=True)
class Contents:
    """What a project holds.

    Attributes:
        classes: The images of every class, by its name in Unicode's form NFC.
        unlabelled, none: The images without a label, and those of none of the classes.
        kept: SHA-256 of the images whose label somebody has confirmed.
        left_out: Paths that are not read, such as links and files that are no images.
        undo: What the last change was, which can be undone; "" if there is none.
    """

    classes: dict[str, list[Picture]]
    unlabelled: list[Picture]
    none: list[Picture]
    kept: frozenset[str]
    left_out: list[str]
    undo: str

    def pictures(self) -> dict[Picture, str]:
        """All images, and where each is: in a class, or in `UNLABELLED` or `NONE_OF_THESE`."""
        places = {**self.classes, UNLABELLED: self.unlabelled, NONE_OF_THESE: self.none}
        return {picture: place for place, pictures in places.items() for picture in pictures}

    def classes_of(self) -> dict[str, list[str]]:
        """The classes in which an image is, by its SHA-256."""
        found: dict[str, list[str]] = {}
        for name, pictures in self.classes.items():
            for digest in {picture.digest for picture in pictures}:
                found.setdefault(digest, []).append(name)
        return found


class Added(NamedTuple):
    """What has come of files: the images that were added, why others were not, and images that are in another class
    already, as their SHA-256 and the class that they were meant for.
    """

    pictures: list[Picture]
    problems: list[str]
    questions: list[tuple[str, str]]


class Change(Part):
    """A change that has been made: what it was, in words, and its renamings."""

    id: str
    what: str
    moves: list[list[str]]


class Journal(Part):
    """The changes that can be undone, the last one at the end; `last` also names one that was an undoing."""

    last: str = ""
    changes: list[Change] = Field(default=[])


Stored = TypeVar("Stored", Change, Journal)


class Project:
    """A folder of images that is taught from; it is made if it is not there.

    Every method raises UserError, and has then changed nothing, if the folder cannot be read or written, is not there
    any more, or is not what the caller took it for, since another tab or program has changed it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(os.path.realpath(absolute(folder)))
        self._digests: dict[str, tuple[tuple[int, ...], str]] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        self.read()

    def read(self) -> Contents:
        """What the folder holds now."""
        with self._locked():
            return self._read()

    # Changes

    def add_class(self, name: str) -> str:
        """Adds a class without images; returns its name, as `checked_name` gives it."""
        with self._locked():
            name = self._new_name(name, self._class_folders([]))
            self._change(f"the class {name} added", [(self._new_folder(), f"{TRAIN}/{name}")])
        return name

    def rename_class(self, old: str, new: str) -> str:
        """Gives a class another name, which is returned."""
        with self._locked():
            folder = self._class_folder(old)
            new = self._new_name(new, [name for name in self._class_folders([]) if name != old])
            if new != folder:
                self._change(f"{old} renamed to {new}", [(f"{TRAIN}/{folder}", f"{TRAIN}/{new}")])
        return new

    def delete_class(self, name: str) -> None:
        """Removes a class with its images."""
        with self._locked():
            folder = self._class_folder(name)
            self._change(f"the class {name} deleted", [(f"{TRAIN}/{folder}", f"{REMOVED}/{uuid4().hex}/{folder}")])

    def move(self, pictures: Sequence[Picture], place: str) -> None:
        """Moves images to a class, to `UNLABELLED` or to `NONE_OF_THESE`; "" removes them."""
        with self._locked():
            contents = self._read()
            folder, where = self._folder(place), contents.pictures()
            if gone := [picture for picture in pictures if picture not in where]:
                raise UserError(f"{gone[0].path} is not there any more, or was changed; look at the page again")
            moved, taken = [picture for picture in pictures if where[picture] != place], set[str]()
            moves = [(path, self._free(folder, PurePosixPath(path).name, taken)) for path, _ in moved]
            doubted = {picture.digest for picture in moved} & contents.kept
            moves += [(f"{KEPT}/{digest}", f"{REMOVED}/{uuid4().hex}/{digest}") for digest in sorted(doubted)]
            self._change(f"{_images(len(moved))} {f'moved to {place}' if place else 'removed'}", moves)

    def keep(self, picture: Picture) -> None:
        """Confirms the label of an image, until it is moved."""
        with self._locked():
            contents = self._read()
            if picture in contents.pictures() and picture.digest not in contents.kept:
                self._change("a label confirmed", [(self._new_folder(), f"{KEPT}/{picture.digest}")])

    def settle(self, digest: str, name: str) -> None:
        """Has an image that is in several classes, or was dropped on another class, in one class alone."""
        with self._locked():
            contents = self._read()
            folder, where = self._folder(name), contents.pictures()
            there = [p for p, place in where.items() if p.digest == digest and place in contents.classes]
            if not there or name not in contents.classes:
                raise UserError("the image or the class is not there any more")
            first = min(there, key=lambda picture: where[picture] != name)
            others = [(p.path, f"{REMOVED}/{uuid4().hex}/{PurePosixPath(p.path).name}") for p in there if p != first]
            moved = [(first.path, self._free(folder, PurePosixPath(first.path).name, set()))]
            self._change(f"an image settled in {name}", others + moved * (where[first] != name))

    def add(self, files: Iterable[File], what: str = "added") -> Added:
        """Adds images, and the classes of those that name one; they are read one after the other.

        An image that is in its place already is left out, and so is one that is in another class: that is asked.
        """
        new = f"{NEW}/{uuid4().hex}"
        with self._locked():
            self._at(new).mkdir(parents=True)
        try:
            staged, problems = self._staged(files, new)
            with self._locked():
                return self._add(staged, problems, new, what)
        finally:
            shutil.rmtree(self.folder / new, ignore_errors=True)

    def undo(self) -> str:
        """Takes the last change back, whichever tab made it; returns what it was."""
        with self._locked():
            changes = list(self._journal().changes)
            if not changes:
                raise UserError("there is nothing to undo")
            last = changes.pop()
            try:
                self._perform("", [(target, source) for source, target in reversed(last.moves)], changes)
            except (UserError, OSError):
                if all(os.path.lexists(self._at(target)) for _, target in last.moves):
                    raise
                self._perform("", [], changes)  # the next one can be undone
                raise UserError(f"this cannot be undone, since its files are not there any more: {last.what}") from None
        return last.what

    # The whole project as a file

    def write_zip(self, path: Path) -> None:
        """Writes all images, in the folders of their classes, into a zip file."""
        contents = self.read()
        with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as file:
            for name in contents.classes:
                file.writestr(f"{TRAIN}/{name}/", b"")
            for picture in contents.pictures():
                file.writestr(zipfile.ZipInfo(picture.path), self.data(picture))

    def data(self, picture: Picture) -> bytes:
        """The bytes of an image."""
        path = self._at(picture.path)
        with reading(path, "an image"):
            return path.read_bytes()

    # What is there

    def _read(self) -> Contents:
        left_out: list[str] = []
        folders = self._class_folders(left_out)
        classes = {name: self._pictures(f"{TRAIN}/{folder}", left_out) for name, folder in folders.items()}
        unlabelled, none = (self._pictures(place, left_out, True) for place in (UNLABELLED, NONE_OF_THESE))
        kept = frozenset(self._names(KEPT, left_out)[0])
        changes = self._journal().changes
        return Contents(classes, unlabelled, none, kept, left_out, changes[-1].what if changes else "")

    def _class_folders(self, left_out: list[str]) -> dict[str, str]:
        """The folder of every class, by the name of the class; UserError if two classes have one name."""
        folders, files = self._names(TRAIN, left_out)
        left_out += [f"{TRAIN}/{name}" for name in files]
        keys: dict[str, str] = {}
        for folder in folders:
            if (other := keys.setdefault(name_key(folder), folder)) != folder:
                said = f"{self.folder / TRAIN}: the folders {other!a} and {folder!a} are one class by their names"
                raise UserError(f"{said}; rename one, or move the images of one to the other")
        return {class_name(folder, TRAIN): folder for folder in folders}

    def _class_folder(self, name: str) -> str:
        folders = self._class_folders([])
        if name not in folders:
            raise UserError(f"there is no class {shortened(name, 80)!r} any more")
        return folders[name]

    def _folder(self, place: str) -> str:
        """The folder of a place, below the project's."""
        if place in (UNLABELLED, NONE_OF_THESE):
            return place
        return f"{TRAIN}/{self._class_folder(place)}" if place else f"{REMOVED}/{uuid4().hex}"

    def _new_name(self, name: str, others: Iterable[str]) -> str:
        """A name for a class; UserError if another one has it."""
        name = checked_name(name)
        for other in (*others, UNLABELLED, NONE_OF_THESE):
            if name_key(other) == name_key(name):
                raise UserError(f"{name!r} cannot be added: there is {other!r} already")
        return name

    def _names(self, place: str, left_out: list[str]) -> tuple[list[str], list[str]]:
        """The names of the folders and of the images in a folder, sorted, without hidden ones. A folder that is not
        there is empty, and what is neither is added to `left_out`.
        """
        path, folders, images = self._at(place), [], []
        if path.is_symlink() or not path.exists():
            left_out += [place] * path.is_symlink()
            return [], []
        with os.scandir(path) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.startswith("."):
                    continue
                whole = printable(entry.name) == entry.name  # a name that is not UTF-8 holds halves of characters
                if whole and entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                elif whole and entry.is_file(follow_symlinks=False) and is_image(entry.name):
                    images.append(entry.name)
                else:
                    left_out.append(f"{place}/{printable(entry.name)}")
        return folders, images

    def _pictures(self, place: str, left_out: list[str], deeper: bool = False) -> list[Picture]:
        """The images of a folder and, if asked for, of the folders in it."""
        folders, images = self._names(place, left_out)
        found = []
        for path in (f"{place}/{name}" for name in images):
            try:
                found.append(Picture(path, self._digest(path)))
            except OSError:  # nobody may read it
                left_out.append(path)
        for name in folders:
            if deeper:
                found += self._pictures(f"{place}/{name}", left_out, True)
            else:
                left_out.append(f"{place}/{name}")
        return found

    def _digest(self, path: str) -> str:
        """The SHA-256 of a file, which is read only if it has changed."""
        status = (self.folder / path).stat()
        version = (status.st_ino, status.st_size, status.st_mtime_ns)
        if self._digests.get(path, ((), ""))[0] != version:
            self._digests[path] = version, hash_file(self.folder / path)
        return self._digests[path][1]

    # Files that come

    def _staged(self, files: Iterable[File], new: str) -> tuple[list[tuple[File, str, str]], list[str]]:
        """Writes the files that are images into the folder `new`: each without its data, its path and SHA-256."""
        staged, problems = [], []
        for number, (place, name, data) in enumerate(files):
            name = file_name(name) if name else ""
            if problem := _problem(name, data) if name else "":
                problems.append(f"{name} {problem}")
                continue
            path = f"{new}/{number}"
            try:
                if name:
                    self._at(path).write_bytes(data)
            except OSError as error:
                raise cannot_write(self.folder, error) from error
            staged.append((File(place, name), path, hashlib.sha256(data).hexdigest()))
        return staged, problems

    def _add(self, staged: list[tuple[File, str, str]], problems: list[str], new: str, what: str) -> Added:
        """Puts staged files into their places."""
        contents = self._read()
        classes, moves, taken = contents.classes_of(), [], set[str]()
        there = {(place, picture.digest) for picture, place in contents.pictures().items()}
        pictures: list[Picture] = []
        questions: list[tuple[str, str]] = []
        folders = self._class_folders([])
        for (place, name, _), path, digest in staged:
            if place not in (*folders, UNLABELLED, NONE_OF_THESE):
                folders[place] = self._new_name(place, folders)
                moves.append((self._new_folder(), f"{TRAIN}/{folders[place]}"))
            if not name:
                continue
            if (place, digest) in there:
                problems.append(f"{name} is there already")
            elif place in folders and (others := [other for other in classes.get(digest, ()) if other != place]):
                questions.append((digest, place))
                problems.append(f"{name} is in {others[0]} already, and was not added to {place}: choose below")
            else:
                folder = f"{TRAIN}/{folders[place]}" if place in folders else place
                moves.append((path, self._free(folder, name, taken)))
                pictures.append(Picture(moves[-1][1], digest))
                there.add((place, digest))
                if place in folders:
                    classes.setdefault(digest, []).append(place)
        places = list(dict.fromkeys(file.place for file, _, _ in staged))
        to = f" to {places[0]}" if len(places) == 1 else ""
        self._change(f"{_images(len(pictures))} {what}{to}", moves)
        return Added(pictures, problems, questions)

    # Renamings

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone with the folder, in which no change is half made."""
        try:
            if not self.folder.is_dir():
                raise UserError(f"the folder {self.folder} is not there any more; put it back, or choose another")
            if (self.folder / OWN).is_symlink():
                raise UserError(f"{self.folder / OWN} is a link, and links are not followed; remove it")
            (self.folder / OWN).mkdir(exist_ok=True)
            with FileLock(self.folder / OWN / "lock", timeout=PATIENCE):
                self._recover()
                yield
        except Timeout as error:
            raise UserError(f"another program is changing {self.folder}; try again when it is done") from error
        except OSError as error:
            raise UserError(f"cannot change {self.folder}: {first_line(error)}") from error

    def _change(self, what: str, moves: list[tuple[str, str]]) -> None:
        """Makes a change that can be undone."""
        if moves:
            change = Change(id=uuid4().hex, what=what, moves=[list(move) for move in moves])
            self._perform(change.id, moves, [*self._journal().changes, change])

    def _perform(self, name: str, moves: list[tuple[str, str]], changes: list[Change]) -> None:
        """Makes all renamings and writes the changes that can be undone from then on, or does nothing of it."""
        begun = Change(id=name or uuid4().hex, what="", moves=[list(move) for move in moves])
        write_json(self._at(BEGUN), begun.model_dump())
        try:
            for source, target in moves:
                self._rename(source, target)
            write_json(self._at(JOURNAL), Journal(last=begun.id, changes=changes[-MOST_CHANGES:]).model_dump())
        except BaseException:
            self._take_back(begun.moves)
            raise
        finally:
            with suppress(OSError):
                self._at(BEGUN).unlink()

    def _recover(self) -> None:
        """Takes back what a program that ended meanwhile has left half done."""
        if os.path.lexists(self._at(BEGUN)):
            begun = self._stored(BEGUN, Change)
            if begun is not None and begun.id != self._journal().last:
                self._take_back(begun.moves)
            self._at(BEGUN).unlink()

    def _take_back(self, moves: Sequence[Sequence[str]]) -> None:
        for source, target in reversed(moves):
            if os.path.lexists(self._at(target)) and not os.path.lexists(self._at(source)):
                with suppress(OSError):
                    self._rename(target, source)

    def _rename(self, source: str, target: str) -> None:
        old, new = self._at(source), self._at(target)
        new.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(new) and not os.path.samefile(old, new):  # else another way to write the same name
            raise UserError(f"{target} is there already")
        os.rename(old, new)

    def _journal(self) -> Journal:
        return self._stored(JOURNAL, Journal) or Journal()

    def _stored(self, path: str, shape: type[Stored]) -> Stored | None:
        """What we have written into a file; None if it is not there, or is none of ours."""
        with suppress(UserError):
            return check(shape, read_json(self._at(path)), path)
        return None

    def _new_folder(self) -> str:
        """The path of a new empty folder."""
        path = f"{NEW}/{uuid4().hex}"
        self._at(path).mkdir(parents=True)
        return path

    def _free(self, folder: str, name: str, taken: set[str]) -> str:
        """A path in a folder that no file has, nor one of those `taken`, to which it is added."""
        path, number = PurePosixPath(folder, name), 0
        while str(path).casefold() in taken or os.path.lexists(self._at(str(path))):
            number += 1
            path = PurePosixPath(folder, with_suffix(Path(name), number).name)
        taken.add(str(path).casefold())
        return str(path)

    def _at(self, relative: str) -> Path:
        """The path of something in the folder; UserError if it leads out of it, as a link may."""
        path, parts = self.folder / relative, PurePosixPath(relative).parts
        if not parts or parts[0] == "/" or ".." in parts or Path(os.path.realpath(path.parent)) != path.parent:
            raise UserError(f"{shortened(relative, 80)!r} leads out of the folder {self.folder}")
        return path


def checked_name(name: str) -> str:
    """A name of a class as it is kept: in Unicode's form NFC, and with single blanks; UserError if no folder could have
    it.
    """
    found = unicodedata.normalize("NFC", " ".join(str(name).split()))
    if not found or FORBIDDEN.search(found) or printable(found) != found:
        raise UserError(
            f"{shortened(printable(found), 80)!r} is no name for a class, which becomes that of a folder: it must not "
            'be empty, hold / \\ : * ? " < > or |, nor begin or end with a dot'
        )
    if len(found.encode()) > MAX_NAME:
        raise UserError(f"the name {shortened(found, 60)!r} has {len(found)} characters; take a shorter one")
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

    Of an image that is too large only so much is read as tells that.

    Raises:
        UserError: If it is no zip file, is damaged, or would take too much space.
    """
    with reading(path, "a zip file"), zipfile.ZipFile(path) as file:
        members, total = file.infolist(), 0
        if len(members) > MOST_FILES:
            raise UserError(f"the zip file holds more than {MOST_FILES} files")
        found = [(member, place_of(member.filename)) for member in members]
        if not any(place for _, place in found):
            raise ValueError(f"it holds no folder {TRAIN}/<class> or {UNLABELLED}")
        for member, place in found:
            if not place or member.is_dir():
                yield from [File(place)] * bool(place)
                continue
            with file.open(member) as opened:
                data = opened.read(MAX_BYTES + 1)
            total += len(data)
            if total > MOST_BYTES:
                raise UserError(f"the zip file holds more than {MOST_BYTES >> 30} GB")
            yield File(place, member.filename, data)


def place_of(path: str) -> str:
    """The class, or other place, of a path in a zip file; "" if it has none."""
    *folders, name = re.split(r"[/\\]", path)
    if name.startswith(".") or "__MACOSX" in folders or OWN in folders:
        return ""
    if len(folders) > 1 and folders[-2] == TRAIN:
        return class_name(folders[-1], TRAIN)
    return next((place for place in (UNLABELLED, NONE_OF_THESE) if place in folders), "")


def _problem(name: str, data: bytes) -> str:
    """Why a file is no image of a project; "" if it is one."""
    if not is_image(name):
        return "is no image, by the ending of its name"
    try:
        open_sent(data)
    except UserError as error:
        return str(error)
    return ""


def _images(count: int) -> str:
    return f"{count} image{'' if count == 1 else 's'}"
