"""Folder of images that `teach` works on: classes, images and unlabelled images, without model or page.

FOLDER/train/<class>/*.jpg      labelled images, as `--root FOLDER` reads them
FOLDER/<class>/*.jpg            labelled images, if FOLDER/train has no folder; they stay in place
FOLDER/unlabelled/...           unlabelled images
FOLDER/none of these/           images that belong to none of the classes
FOLDER/.hegraph/                undo history and removed files; no other command reads it

A *place* is a class or one of `NON_CLASS_FOLDERS`.
"""

import hashlib
import re
import shutil
import unicodedata
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from ...datasets.decoding import FACTORS, REDUCED, LazyImage
from ...datasets.folder import NON_CLASS_FOLDERS, OUTPUT_FILES
from ...datasets.images import MAX_BYTES, MAX_PIXELS, is_image, reading_upload
from ...datasets.own_images import class_name
from ...datasets.splits import split_of
from ...models.predict.files import folder_name
from ...utils.errors import UserError
from ...utils.files import atomic_path, hash_file
from ...utils.reading import reading
from ...utils.text import printable
from .contents import UNLABELLED, Contents, Picture, images, join, name_key
from .journal import STATE_FOLDER, JournaledFolder, Move, removal

TRAIN = "train"
CONFIRMED = f"{STATE_FOLDER}/kept"
MAX_DIGESTS = 200_000  # cached SHA-256 of files
MAX_ZIP_FILES = 50_000
MAX_ZIP_BYTES = 8 * 2**30
PLACES = "|".join(NON_CLASS_FOLDERS)
# Path in a zip file. The project may lie in a further folder, next to __MACOSX, which macOS adds
MEMBER = re.compile(rf"((?!__MACOSX)[^/]+/)??({TRAIN}/(?P<name>[^/]+)|(?P<place>{PLACES})(/.+)?)/[^/]*", re.S)
BOUNDED_COMPRESSION = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # can be unpacked up to a number of bytes


class Staged(NamedTuple):
    """File to add.

    Attributes:
        path: Path of the copy in the project.
        place: Class, or one of `NON_CLASS_FOLDERS`.
        name: File name; "" adds only the class.
        digest: SHA-256 of the content.
        problem: Reason why the file is not added, as the predicate of a sentence; "" for an image.
    """

    path: str
    place: str
    name: str
    digest: str
    problem: str


class Project(JournaledFolder):
    """Folder of images for training. Errors are those of `JournaledFolder`; other programs may change the folder."""

    def read(self) -> Contents:
        """Read the contents."""
        with self.opened() as contents:
            return contents

    @contextmanager
    def opened(self) -> Iterator[Contents]:
        """Read the contents and lock the folder for the block."""
        with self.locked():
            skipped: list[str] = []
            base = self._base()
            folders = self._class_folders(base, skipped) | {place: place for place in NON_CLASS_FOLDERS}
            images = {place: self._pictures(folders[place], skipped, place in NON_CLASS_FOLDERS) for place in folders}
            confirmed = frozenset(PurePosixPath(path).name for path in self._list(CONFIRMED, skipped)[0])
            changes = self.journal().changes
            yield Contents(base, folders, images, confirmed, skipped, changes[-1].what if changes else "")

    def read_bytes(self, picture: Picture) -> bytes:
        """Read the file of an image."""
        path = self.path_of(picture.path)
        with reading(path, "an image"):
            return path.read_bytes()

    def write_zip(self, path: Path) -> None:
        """Write all images into a zip file that `add_zip` reads. Classes are below train/."""
        contents = self.read()
        above = "" if contents.base else f"{TRAIN}/"
        with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as file:
            for name in contents.classes:
                file.writestr(f"{above}{contents.folders[name]}/", b"")
            for picture, place in contents.pictures().items():
                inside = picture.path if place in NON_CLASS_FOLDERS else f"{above}{picture.path}"
                file.writestr(zipfile.ZipInfo(inside), self.read_bytes(picture))

    # Changes

    def add_class(self, name: str) -> str:
        """Add a class without images; returns its normalized name."""
        with self.opened() as contents:
            name, target = contents.new_class(name)
            self.change(f"the class {name} added", [(self.new_folder(), target)])
        return name

    def rename_class(self, old: str, new: str) -> str:
        """Rename a class; returns its normalized name."""
        with self.opened() as contents:
            source = contents.class_folder(old)
            new, target = contents.new_class(new, old)
            if source != target:
                self.change(f"{old} renamed to {new}", [(source, target)])
        return new

    def delete_class(self, name: str) -> None:
        """Remove a class and its images."""
        with self.opened() as contents:
            self.change(f"the class {name} deleted", [removal(contents.class_folder(name))])

    def move(self, pictures: Sequence[Picture], place: str) -> None:
        """Move images to a place; "" removes them. The labels of moved images are not confirmed any more."""
        with self.opened() as contents:
            places = contents.pictures()
            if missing := [picture.path for picture in pictures if picture not in places]:
                raise UserError(f"{missing[0]} was removed or changed; look at the page again")
            moved = [picture for picture in dict.fromkeys(pictures) if places[picture] != place]
            moves = [removal(picture.path) for picture in moved]
            if place:
                folder = contents.folder(place)
                taken: set[str] = set()
                moves = [(picture.path, self.free_path(folder, picture.name, taken)) for picture in moved]
            what = "an image" if len(moved) == 1 else images(len(moved))
            confirmed = contents.confirmed.intersection(picture.digest for picture in moved)
            moves += [removal(f"{CONFIRMED}/{digest}") for digest in confirmed]
            self.change(f"{what} moved to {place}" if place else f"{what} removed", moves)

    def confirm(self, picture: Picture) -> None:
        """Confirm the label of an image."""
        with self.opened() as contents:
            if picture in contents.pictures() and picture.digest not in contents.confirmed:
                self.change("a label confirmed", [(self.new_folder(), f"{CONFIRMED}/{picture.digest}")])

    def keep_in_one_class(self, digest: str, name: str) -> None:
        """Remove an image from all classes except one."""
        with self.opened() as contents:
            if name not in contents.classes_of().get(digest, ()):
                raise UserError("the image was removed; look at the page again")
            others = (contents.images[place] for place in contents.classes if place != name)
            copies = [picture for picture in chain.from_iterable(others) if picture.digest == digest]
            self.change(f"an image kept in {name} only", [removal(picture.path) for picture in copies])

    def add(self, place: str, files: Iterable[tuple[str, bytes]]) -> tuple[int, list[str]]:
        """Add images to a place.

        Args:
            place: Class, or one of `NON_CLASS_FOLDERS`.
            files: Names and contents. Invalid images and images that the place contains already are skipped.

        Returns:
            Number of added images, and a sentence for each skipped file.
        """
        self.read().folder(place)
        return self._add(((place, name, data) for name, data in files), f"added to {place}")

    def add_zip(self, path: Path) -> tuple[int, list[str]]:
        """Add the classes and images of a zip file; returns as `add`.

        Raises:
            UserError: If the file is damaged, is not a project, is too large, or contains a path that leads out of the
                folder. Nothing is added then.
        """
        with reading(path, "a project's zip file"), zipfile.ZipFile(path) as file:
            members = file.infolist()
            if len(members) > MAX_ZIP_FILES or sum(member.file_size for member in members) > MAX_ZIP_BYTES:
                raise UserError(f"the zip file has more than {MAX_ZIP_FILES} files or {MAX_ZIP_BYTES >> 30} GB")
            for member in members:
                self.path_of(member.filename)
                if member.compress_type not in BOUNDED_COMPRESSION:
                    raise ValueError(f"expected stored or deflated files, got another compression of {member.filename}")
            places = ((member, place_of_member(member)) for member in members)
            placed = [(member, place) for member, place in places if place]
            if not placed:
                raise ValueError(f"expected a folder {TRAIN}/<class> or {UNLABELLED}, found none")
            files = ((place, "" if m.is_dir() else m.filename, read_upload(file.open(m))) for m, place in placed)
            return self._add(files, "added from a zip file")

    def _add(self, files: Iterable[tuple[str, str, bytes]], what: str) -> tuple[int, list[str]]:
        """Add files, each a place, a name and its content, and missing classes. Without a name, add only the class.

        Files are checked and staged in a new folder without the lock, since hundreds of photos take minutes.
        """
        with self.locked():
            staging = self.new_folder()
        taken: set[str] = set()
        problems: list[str] = []
        moves: list[Move] = []
        count = 0
        try:
            with self.explained_errors():
                staged = [self._stage(f"{staging}/{number}", *each) for number, each in enumerate(files)]
            with self.opened() as contents:
                present = {(place, picture.digest) for picture, place in contents.pictures().items()}
                for each in staged:
                    if each.place not in contents.folders:
                        folder = contents.folders[each.place] = contents.new_class(each.place)[1]
                        moves.append((f"{each.path}-class", folder))
                        self.path_of(moves[-1][0]).mkdir()
                    if not each.name:
                        continue
                    is_copy = (each.place, each.digest) in present
                    if each.problem or is_copy:
                        problems.append(f"{each.name} {each.problem or 'exists already'}")
                        continue
                    moves.append((each.path, self.free_path(contents.folders[each.place], each.name, taken)))
                    present.add((each.place, each.digest))
                    count += 1
                self.change(f"{images(count)} {what}", moves)
        finally:
            shutil.rmtree(self.folder / staging, ignore_errors=True)
        return count, problems

    def _stage(self, path: str, place: str, name: str, data: bytes) -> Staged:
        """Check a file and write it to a path."""
        if not name:
            return Staged(path, place, "", "", "")
        safe_name = safe_file_name(name)
        problem = image_problem(safe_name, data)
        if not problem:
            self.path_of(path).write_bytes(data)
        return Staged(path, place, safe_name, hashlib.sha256(data).hexdigest(), problem)

    # Reading

    def _base(self) -> str:
        """Folder of the class folders, as of `Contents`.

        Class folders lie directly in the project folder if train/ has no folder and a folder next to it may be a class.
        """
        if self._list(TRAIN, [])[0]:
            return TRAIN
        return "" if any(self._may_be_class(path) for path in self._list("", [])[0]) else TRAIN

    def _may_be_class(self, path: str) -> bool:
        """Whether a folder in the project folder is empty or contains an image, and is neither one of
        `NON_CLASS_FOLDERS`, nor a split, nor the output of a run.
        """
        skipped: list[str] = []
        folders, images = self._list(path, skipped)
        if path in NON_CLASS_FOLDERS or split_of(path) or {join(path, name) for name in OUTPUT_FILES} & {*skipped}:
            return False
        return bool(images) or not (folders or skipped)

    def _class_folders(self, base: str, skipped: list[str]) -> dict[str, str]:
        """Folders of the classes by class name. Raise UserError if two classes have equal names."""
        paths, files = self._list(base, skipped)
        skipped += files
        if not base:
            non_classes = [path for path in paths if not self._may_be_class(path)]
            if splits := [path for path in non_classes if split_of(path) and self._list(path, [])[1]]:
                problem = "has the name of a split, but lies next to class folders; rename it if it is a class"
                raise UserError(f"{self.folder}: {splits[0]!r} {problem}")
            skipped += [path for path in non_classes if path not in NON_CLASS_FOLDERS]
            paths = [path for path in paths if path not in non_classes]
        keys = {name_key(place): place for place in NON_CLASS_FOLDERS}
        folders: dict[str, str] = {}
        for path in paths:
            name = PurePosixPath(path).name
            key = name_key(class_name(name, base))
            if other := keys.get(key):
                problem = f"the class names {other!a} and {name!a} differ only in case, spaces or Unicode form"
                problem = f"{name!a} is no valid class name" if other in NON_CLASS_FOLDERS else problem
                raise UserError(f"{self.folder / base}: {problem}; rename one, or move its images to the other")
            keys[key] = name
            folders[class_name(name, base)] = path
        return folders

    def _pictures(self, place: str, skipped: list[str], recursive: bool) -> list[Picture]:
        """Images of a folder, and of the folders in it if `recursive`."""
        folders, images = self._list(place, skipped)
        pictures = []
        for path in images:
            try:
                status = (self.folder / path).stat()
                version = (status.st_ino, status.st_size, status.st_mtime_ns)
                pictures.append(Picture(path, _digest(self.folder / path, version)))
            except OSError:  # no permission
                skipped.append(path)
        if not recursive:
            skipped += folders
            return pictures
        return pictures + [picture for folder in folders for picture in self._pictures(folder, skipped, True)]

    def _list(self, place: str, skipped: list[str]) -> tuple[list[str], list[str]]:
        """Sorted paths of the folders and of the images in a folder, without hidden ones.

        A missing folder is empty. Other entries are added to `skipped`.
        """
        folder = self.path_of(place) if place else self.folder
        folders: list[str] = []
        images: list[str] = []
        if folder.is_symlink() or not folder.exists():
            skipped += [place] * folder.is_symlink()
            return folders, images
        for path in sorted(folder.iterdir()):
            name = printable(path.name)
            inside = join(place, name)
            readable = not path.is_symlink() and name == path.name  # the name is UTF-8
            if name.startswith("."):
                continue
            if readable and path.is_dir():
                folders.append(inside)
            elif readable and path.is_file() and is_image(name):
                images.append(inside)
            else:
                skipped.append(inside)
        return folders, images


@lru_cache(maxsize=MAX_DIGESTS)
def _digest(path: Path, version: tuple[int, ...]) -> str:
    """SHA-256 of a file, cached for each version of the file."""
    return hash_file(path)


def safe_file_name(name: str) -> str:
    """Name of an uploaded file, with characters replaced that some file system rejects."""
    last = PurePosixPath(printable(re.split(r"[/\\]", unicodedata.normalize("NFC", name))[-1]) or "image")
    return f"{folder_name(last.stem)}{last.suffix}"


def place_of_member(member: zipfile.ZipInfo) -> str:
    """Place of an entry in the zip file of a project; "" if the entry is not part of a project."""
    match = MEMBER.fullmatch(member.filename)
    return (match["place"] or class_name(match["name"], TRAIN)) if match else ""


def read_upload(file: IO[bytes]) -> bytes:
    """Read and close a file, up to one byte more than an image may have."""
    with file:
        return file.read(MAX_BYTES + 1)


def image_problem(name: str, data: bytes) -> str:
    """Reason why a file is not added, as the predicate of a sentence; "" for an image."""
    try:
        with reading_upload(data):
            LazyImage.read(data, REDUCED, MAX_PIXELS).decoded(max(FACTORS))
    except UserError as error:
        return str(error)
    return "" if is_image(name) else "has no file name extension of an image"
