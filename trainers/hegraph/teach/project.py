"""The folder that `teach` works on: classes, images, images without a label. No model and no page.

FOLDER/train/<class>/*.jpg      labelled images, as `--root FOLDER` reads them
FOLDER/<class>/*.jpg            labelled images where no folder lies in FOLDER/train; they stay where they are
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
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from ..datasets.folder import NON_CLASS_FOLDERS, OUTPUT_FILES, class_name
from ..datasets.images import MAX_BYTES, is_image, open_upload
from ..datasets.splits import SPLIT_NAMES
from ..predict.files import FORBIDDEN, MAX_NAME, folder_name
from ..utils.errors import UserError, first_line, printable, shortened
from ..utils.files import atomic_path, hash_file
from ..utils.reading import reading
from .journal import OWN, JournaledFolder, Move, removed

TRAIN, KEPT = "train", f"{OWN}/kept"
LOOSE = UNLABELLED, _ = NON_CLASS_FOLDERS  # places of images that are no classes
MOST_DIGESTS = 200_000  # of files that are not read again
MOST_FILES, MOST_BYTES = 50_000, 8 * 2**30  # of a zip file
# The project may lie in one more folder, as macOS packs it, beside a folder of its own
MEMBER = re.compile(rf"((?!__MACOSX)[^/]+/)??({TRAIN}/(?P<name>[^/]+)|(?P<place>{'|'.join(LOOSE)})(/.+)?)/[^/]*", re.S)
BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what can be unpacked up to a number of bytes


class Picture(NamedTuple):
    """An image of the project: its path below the folder, with `/`, and the SHA-256 of its file."""

    path: str
    digest: str

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name


class Staged(NamedTuple):
    """A file that is to be added: where it lies, its class or other place, its name ("" for a class alone), the SHA-256
    of its bytes, and why it is no image, as the end of a sentence.
    """

    path: str
    place: str
    name: str
    digest: str
    problem: str


@dataclass(frozen=True)
class Contents:
    """What a project holds.

    Attributes:
        base: The folder of the class folders: "train", or "" if they lie directly in the project's folder.
        folders: The folder of every class, by its name in Unicode's form NFC, and of `LOOSE`.
        images: The images in each of them.
        kept: SHA-256 of the images whose label somebody has confirmed.
        left_out: Paths that are not read, such as links and files that are no images.
        undo: What the last change was, which can be undone; "" if there is none.
    """

    base: str
    folders: dict[str, str]
    images: dict[str, list[Picture]]
    kept: frozenset[str]
    left_out: list[str]
    undo: str

    @property
    def classes(self) -> dict[str, list[Picture]]:
        """The images of every class."""
        return {place: pictures for place, pictures in self.images.items() if place not in LOOSE}

    @property
    def unlabelled(self) -> list[Picture]:
        return self.images[UNLABELLED]

    def pictures(self) -> dict[Picture, str]:
        """All images, and the class or other place where each is."""
        return {picture: place for place, pictures in self.images.items() for picture in pictures}

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

    def class_folder(self, name: str) -> str:
        """The folder of a class; UserError if there is none, or `name` is one of `LOOSE`."""
        if name in LOOSE:
            raise UserError(f"{name!r} is not a class; it cannot be renamed or deleted")
        return self.folder(name)

    def new_class(self, name: str, renamed: str = "") -> tuple[str, str]:
        """The name of a new class, or of the class `renamed`, as `new_name` gives it, and its folder."""
        name = new_name(name, self.folders.keys() - {renamed})
        if not self.base and name.lower() in SPLIT_NAMES:
            raise UserError(f"{name!r} is no name for a class here, since its folder would be a split")
        return name, below(self.base, name)

    def readable(self, unreadable: Container[str]) -> Contents:
        """The same without the images of some SHA-256."""
        images = {place: [p for p in pictures if p.digest not in unreadable] for place, pictures in self.images.items()}
        return replace(self, images=images)


class Project(JournaledFolder):
    """A folder of images that is taught from; errors are those of `JournaledFolder`, also after changes of others."""

    def read(self) -> Contents:
        """What the folder holds now."""
        with self.opened() as contents:
            return contents

    @contextmanager
    def opened(self) -> Iterator[Contents]:
        """What the folder holds, which no other program changes meanwhile."""
        with self.locked():
            left_out: list[str] = []
            base = self._base()
            folders = self._class_folders(base, left_out) | {place: place for place in LOOSE}
            images = {place: self._pictures(folders[place], left_out, place in LOOSE) for place in folders}
            kept = frozenset(PurePosixPath(path).name for path in self._names(KEPT, left_out)[0])
            changes = self.journal().changes
            yield Contents(base, folders, images, kept, left_out, changes[-1].what if changes else "")

    def data(self, picture: Picture) -> bytes:
        """The bytes of an image."""
        path = self.at(picture.path)
        with reading(path, "an image"):
            return path.read_bytes()

    def write_zip(self, path: Path) -> None:
        """Writes all images into a zip file, those of a class below train/<class>, which `add_zip` adds."""
        contents = self.read()
        above = "" if contents.base else f"{TRAIN}/"
        with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as file:
            for name in contents.classes:
                file.writestr(f"{above}{contents.folders[name]}/", b"")
            for picture, place in contents.pictures().items():
                inside = picture.path if place in LOOSE else f"{above}{picture.path}"
                file.writestr(zipfile.ZipInfo(inside), self.data(picture))

    # Changes

    def add_class(self, name: str) -> str:
        """Adds a class without images; returns its name, as `new_name` gives it."""
        with self.opened() as contents:
            name, target = contents.new_class(name)
            self.change(f"the class {name} added", [(self.new_folder(), target)])
        return name

    def rename_class(self, old: str, new: str) -> str:
        """Gives a class another name, which is returned."""
        with self.opened() as contents:
            source = contents.class_folder(old)
            new, target = contents.new_class(new, old)
            if source != target:
                self.change(f"{old} renamed to {new}", [(source, target)])
        return new

    def delete_class(self, name: str) -> None:
        """Removes a class with its images."""
        with self.opened() as contents:
            self.change(f"the class {name} deleted", [removed(contents.class_folder(name))])

    def move(self, picture: Picture, place: str) -> None:
        """Moves an image to a class or to one of `LOOSE`; "" removes it. Its label is not confirmed any more."""
        with self.opened() as contents:
            if (before := contents.pictures().get(picture)) is None:
                raise UserError(f"{picture.path} is not there any more, or was changed; look at the page again")
            if before == place:
                return
            moves = [removed(picture.path)]
            if place:
                moves = [(picture.path, self.free(contents.folder(place), picture.name, set()))]
            if picture.digest in contents.kept:
                moves.append(removed(f"{KEPT}/{picture.digest}"))
            self.change(f"an image moved to {place}" if place else "an image removed", moves)

    def keep(self, picture: Picture) -> None:
        """Confirms the label of an image, until it is moved."""
        with self.opened() as contents:
            if picture in contents.pictures() and picture.digest not in contents.kept:
                self.change("a label confirmed", [(self.new_folder(), f"{KEPT}/{picture.digest}")])

    def settle(self, digest: str, name: str) -> None:
        """Has an image that is in several classes in one of them alone."""
        with self.opened() as contents:
            there = [(p, place) for place, pictures in contents.classes.items() for p in pictures if p.digest == digest]
            if name not in [place for _, place in there]:
                raise UserError("the image is not there any more")
            self.change(f"an image settled in {name}", [removed(p.path) for p, place in there if place != name])

    def add(self, place: str, files: Iterable[tuple[str, bytes]]) -> tuple[int, list[str]]:
        """Adds files, each a name and its bytes, as images of a class or of one of `LOOSE`; returns how many, and why
        others were not added, such as one that is there already.
        """
        self.read().folder(place)
        with self._staged((place, name, data) for name, data in files) as staged:
            return self._add(staged, f"added to {place}")

    def add_zip(self, path: Path) -> tuple[int, list[str]]:
        """Adds the classes and images of a zip file; returns what `add` does. UserError, and nothing is added, if it is
        damaged or no project, would take too much space, or a name in it leads out of the folder.
        """
        with reading(path, "a project's zip file"), zipfile.ZipFile(path) as file:
            members = file.infolist()
            if len(members) > MOST_FILES or sum(member.file_size for member in members) > MOST_BYTES:
                raise UserError(f"the zip file holds more than {MOST_FILES} files or {MOST_BYTES >> 30} GB")
            for member in members:
                self.at(member.filename)
                if member.compress_type not in BOUNDED:
                    raise ValueError(f"{member.filename} is packed in a way that has no bounds")
            found = [(member, place) for member in members if (place := place_of(member))]
            if not found:
                raise ValueError(f"it holds no folder {TRAIN}/<class> or {UNLABELLED}")
            files = ((place, "" if m.is_dir() else m.filename, start_of(file.open(m))) for m, place in found)
            with self._staged(files) as staged:
                return self._add(staged, "added from a zip file")

    @contextmanager
    def _staged(self, files: Iterable[tuple[str, str, bytes]]) -> Iterator[list[Staged]]:
        """Checks files, each a place, a name and its bytes, and writes the images into a new folder, which is removed
        when the block ends. The project is not locked meanwhile, since hundreds of photos take minutes.
        """
        self.read()
        new = self.new_folder()
        try:
            yield [self._stage(f"{new}/{number}", *each) for number, each in enumerate(files)]
        except OSError as error:
            raise UserError(f"cannot change {self.folder}: {first_line(error)}") from error
        finally:
            shutil.rmtree(self.folder / new, ignore_errors=True)

    def _stage(self, path: str, place: str, sent: str, data: bytes) -> Staged:
        name = file_name(sent) if sent else ""
        problem = problem_of(name, data) if sent else ""
        if sent and not problem:
            self.at(path).write_bytes(data)
        return Staged(path, place, name, hashlib.sha256(data).hexdigest(), problem)

    def _add(self, staged: list[Staged], what: str) -> tuple[int, list[str]]:
        """Adds staged files, and the classes that are not there; without a name, only the class."""
        taken, problems, moves, count = set[str](), list[str](), list[Move](), 0
        with self.opened() as contents:
            there = {(place, picture.digest) for picture, place in contents.pictures().items()}
            for each in staged:
                if each.place not in contents.folders:
                    folder = contents.new_class(each.place)[1]
                    contents = replace(contents, folders=contents.folders | {each.place: folder})
                    moves.append((f"{each.path}-class", folder))
                    self.at(moves[-1][0]).mkdir()
                if not each.name:
                    continue
                if problem := each.problem or ("is there already" if (each.place, each.digest) in there else ""):
                    problems.append(f"{each.name} {problem}")
                    continue
                moves.append((each.path, self.free(contents.folders[each.place], each.name, taken)))
                there.add((each.place, each.digest))
                count += 1
            self.change(f"{count} image{'' if count == 1 else 's'} {what}", moves)
        return count, problems

    # What is there

    def _base(self) -> str:
        """The folder of the class folders, as in `Contents`. They lie directly in the project's folder if none lies in
        train and one that could be a class does.
        """
        if self._names(TRAIN, [])[0]:
            return TRAIN
        return "" if any(self._may_be_class(path) for path in self._names("", [])[0]) else TRAIN

    def _may_be_class(self, path: str) -> bool:
        """Whether a folder in the project's folder holds an image or nothing, and is neither one of `LOOSE`, nor of a
        split, nor the output of a run.
        """
        others: list[str] = []
        folders, images = self._names(path, others)
        if path in LOOSE or path.lower() in SPLIT_NAMES or {f"{path}/{name}" for name in OUTPUT_FILES} & {*others}:
            return False
        return bool(images) or not (folders or others)

    def _class_folders(self, base: str, left_out: list[str]) -> dict[str, str]:
        """The folder of every class, by the name of the class; UserError if two classes have one name."""
        paths, files = self._names(base, left_out)
        left_out += files
        if not base:
            others = [path for path in paths if not self._may_be_class(path)]
            if splits := [path for path in others if path.lower() in SPLIT_NAMES and self._names(path, [])[1]]:
                said = f"{splits[0]!r} has the name of a split and lies beside class folders; rename it if it is one"
                raise UserError(f"{self.folder}: {said}")
            left_out += [path for path in others if path not in LOOSE]
            paths = [path for path in paths if path not in others]
        keys, folders = {name_key(place): place for place in LOOSE}, dict[str, str]()
        for path in paths:
            name = PurePosixPath(path).name
            key = name_key(name)
            if key in keys:
                said = f"{keys[key]!a} and {name!a} are one class by their names"
                said = f"{name!a} is no name for a class" if keys[key] in LOOSE else said
                raise UserError(f"{self.folder / base}: {said}; rename one, or move the images of one to the other")
            keys[key], folders[class_name(name, base)] = name, path
        return folders

    def _pictures(self, place: str, left_out: list[str], deeper: bool) -> list[Picture]:
        """The images of a folder and, if asked for, of the folders in it."""
        folders, images = self._names(place, left_out)
        found = []
        for path in images:
            try:
                status = (self.folder / path).stat()
                version = (status.st_ino, status.st_size, status.st_mtime_ns)
                found.append(Picture(path, _digest(self.folder / path, version)))
            except OSError:  # nobody may read it
                left_out.append(path)
        if not deeper:
            left_out += folders
            return found
        return found + [picture for folder in folders for picture in self._pictures(folder, left_out, True)]

    def _names(self, place: str, left_out: list[str]) -> tuple[list[str], list[str]]:
        """The paths of the folders and of the images in a folder, sorted, without hidden ones. A folder that is not
        there is empty, and what is neither is added to `left_out`.
        """
        folder, folders, images = self.at(place) if place else self.folder, list[str](), list[str]()
        if folder.is_symlink() or not folder.exists():
            left_out += [place] * folder.is_symlink()
            return folders, images
        for path in sorted(folder.iterdir()):
            name = printable(path.name)
            inside, odd = below(place, name), path.is_symlink() or name != path.name  # not UTF-8
            if name.startswith("."):
                continue
            if path.is_dir() and not odd:
                folders.append(inside)
            elif path.is_file() and not odd and is_image(name):
                images.append(inside)
            else:
                left_out.append(inside)
        return folders, images


@lru_cache(maxsize=MOST_DIGESTS)
def _digest(path: Path, version: tuple[int, ...]) -> str:
    """SHA-256 of a file, which is read anew where its version is another one."""
    return hash_file(path)


def below(folder: str, name: str) -> str:
    """The path of something in a folder of the project; "" is the project's folder itself."""
    return f"{folder}/{name}" if folder else name


def new_name(name: str, others: Iterable[str]) -> str:
    """A name of a class in Unicode's form NFC; UserError if no folder could have it, or if it is one of the others."""
    found = unicodedata.normalize("NFC", " ".join(str(name).split()))
    bad = not found or FORBIDDEN.search(found.replace("%", "")) or printable(found) != found
    if bad or len(found.encode()) > MAX_NAME:
        raise UserError(
            f"{shortened(printable(found), 80)!r} is no name for a class, which becomes that of a folder: it must not "
            f'be empty or longer than {MAX_NAME} bytes, hold / \\ : * ? " < > or |, nor begin or end with a dot'
        )
    if same := [other for other in others if name_key(other) == name_key(found)]:
        raise UserError(f"{found!r} cannot be added: there is {same[0]!r} already")
    return found


def name_key(name: str) -> str:
    """What two names have in common that are one by case or by Unicode's form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def file_name(sent: str) -> str:
    """The name of a file that came from elsewhere, as one that every system allows."""
    name = PurePosixPath(printable(re.split(r"[/\\]", unicodedata.normalize("NFC", sent))[-1]) or "image")
    return f"{folder_name(name.stem).encode()[:MAX_NAME].decode(errors='ignore')}{name.suffix}"


def place_of(member: zipfile.ZipInfo) -> str:
    """The class or other place of a file or folder in the zip file of a project; "" if it has none."""
    found = MEMBER.fullmatch(member.filename)
    return (found["place"] or class_name(found["name"], TRAIN)) if found else ""


def start_of(file: IO[bytes]) -> bytes:
    """The bytes of a file that was sent, which is closed; of one that is too large as many as tell that."""
    with file:
        return file.read(MAX_BYTES + 1)


def problem_of(name: str, data: bytes) -> str:
    """Why a file is no image of a project, as the end of a sentence; "" if it is one."""
    try:
        open_upload(data)
    except UserError as error:
        return str(error)
    return "" if is_image(name) else "is no image, by the ending of its name"
