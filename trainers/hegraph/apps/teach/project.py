"""Folder of images that `teach` works on: classes, images and unlabelled images, without model or page.

FOLDER/train/<class>/*.jpg      labelled images, as `--root FOLDER` reads them
FOLDER/<class>/*.jpg            labelled images, if FOLDER/train has no folder; they stay in place
FOLDER/unlabelled/...           unlabelled images
FOLDER/none of these/           images that belong to none of the classes
FOLDER/.hegraph/                undo history and removed files; no other command reads it

A *place* is a class or one of `NON_CLASS_FOLDERS`.
"""

import hashlib
import os
import shutil
import time
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ...datasets.folder import NON_CLASS_FOLDERS, OUTPUT_FILES
from ...datasets.images import is_image
from ...datasets.own_images import class_name
from ...datasets.splits import split_of
from ...utils.errors import UserError
from ...utils.files import atomic_path, hash_file
from ...utils.reading import reading
from ...utils.text import printable
from .contents import UNLABELLED, Contents, Picture, images, join, name_key
from .journal import STATE_FOLDER, JournaledFolder, Move, removal
from .uploads import TRAIN, image_problem, place_of_member, place_of_path, read_upload, safe_file_name

CONFIRMED = f"{STATE_FOLDER}/kept"
MAX_DIGESTS = 200_000  # cached SHA-256 of files
SETTLED_NANOSECONDS = 2 * 10**9  # of a folder's last change, to reuse its listing: file systems round times
MAX_ZIP_FILES = 50_000
MAX_ZIP_BYTES = 8 * 2**30
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


class Listing(NamedTuple):
    """Contents of a class folder, valid while the folder's `version`, inode and time of change, is the same."""

    version: tuple[int, int]
    pictures: list[Picture]
    skipped: list[str]


class Project(JournaledFolder):
    """Folder of images for training. Errors are those of `JournaledFolder`; other programs may change the folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._listings: dict[str, Listing] = {}  # of class folders

    def read(self, quick: bool = False) -> Contents:
        """Read the contents. If `quick`, images that were overwritten in place are not noticed."""
        with self.opened(quick) as contents:
            return contents

    @contextmanager
    def opened(self, quick: bool = True) -> Iterator[Contents]:
        """Read the contents, as `read`, and lock the folder for the block."""
        with self.locked():
            skipped: list[str] = []
            base = self._base()
            folders = self._class_folders(base, skipped) | {place: place for place in NON_CLASS_FOLDERS}
            images: dict[str, list[Picture]] = {}
            for place, folder in folders.items():
                if place in NON_CLASS_FOLDERS:
                    images[place] = self._pictures(folder, skipped, recursive=True)
                else:
                    images[place] = self._class_pictures(folder, skipped, quick)
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

    def folders_in_classes(self, contents: Contents) -> list[str]:
        """Paths of the folders with images in class folders, or, without a class, in the folders that may be meant."""
        places = [contents.folders[name] for name in contents.classes]
        if not places:
            folders, _ = self._list("", [])
            places = [path for path in folders if path not in NON_CLASS_FOLDERS and not split_of(path)]
        found = []
        for place in places:
            inner, _ = self._list(place, [])
            found += [path for path in inner if self._list(path, [])[1]]
        return found

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
            moved = self._moved(contents, [(picture, place) for picture in pictures])
            what = "an image" if len(moved) == 1 else images(len(moved))
            description = f"{what} moved to {place}" if place else f"{what} removed"
            self.change(description, self._moves(contents, moved))

    def accept(self, predictions: Sequence[tuple[Picture, str]]) -> int:
        """Move images to their predicted classes in one change; returns their number."""
        with self.opened() as contents:
            accepted = self._moved(contents, predictions)
            self.change(f"{images(len(accepted))} accepted", self._moves(contents, accepted))
        return len(accepted)

    def _moved(self, contents: Contents, targets: Sequence[tuple[Picture, str]]) -> dict[Picture, str]:
        """Images that are not at their target yet, with their targets. UserError if an image is missing or changed."""
        places = contents.pictures()
        for picture, _ in targets:
            if picture not in places or self._picture(picture.path) != picture:
                raise UserError(f"{picture.path} was removed or changed; look at the page again")
        return {picture: place for picture, place in targets if places[picture] != place}

    def _moves(self, contents: Contents, targets: dict[Picture, str]) -> list[Move]:
        """Renamings that move images to places; "" removes an image."""
        taken: set[str] = set()
        moves = []
        for picture, place in targets.items():
            if place:
                moves.append((picture.path, self.free_path(contents.folder(place), picture.name, taken)))
            else:
                moves.append(removal(picture.path))
        confirmed = contents.confirmed.intersection(picture.digest for picture in targets)
        return moves + [removal(f"{CONFIRMED}/{digest}") for digest in confirmed]

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

    def add_folders(self, files: Iterable[tuple[str, bytes]]) -> tuple[int, list[str]]:
        """Add images of class folders, each to the class of the folder that contains it; returns as `add`.

        Args:
            files: Paths and contents. `place_of_path` decides about the place of an image.
        """
        contents = self.read()
        problems: dict[str, str] = {}  # of new class names; "" for none

        def usable() -> Iterator[tuple[str, str, bytes]]:
            for path, data in files:
                place = place_of_path(path)
                if place and place not in problems:
                    problems[place] = contents.problem_of_class(place)
                if place and not problems[place]:
                    yield place, path, data

        count, refused = self._add(usable(), "added from folders")
        return count, [problem for problem in problems.values() if problem] + refused

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

    def _class_pictures(self, place: str, skipped: list[str], quick: bool) -> list[Picture]:
        """Images of a class folder. If `quick`, a folder without new or removed entries is not read again."""
        status = os.lstat(f"{self.folder}/{place}")
        version = (status.st_ino, status.st_mtime_ns)
        listing = self._listings.pop(place, None)
        if not (quick and listing and listing.version == version):
            started = time.time_ns()
            entries: list[str] = []
            listing = Listing(version, self._pictures(place, entries, recursive=False), entries)
            if started - status.st_mtime_ns < SETTLED_NANOSECONDS:
                skipped += entries
                return listing.pictures
        self._listings[place] = listing
        skipped += listing.skipped
        return listing.pictures

    def _pictures(self, place: str, skipped: list[str], recursive: bool) -> list[Picture]:
        """Images of a folder, and of the folders in it if `recursive`."""
        folders, images = self._list(place, skipped)
        pictures = []
        for path in images:
            try:
                pictures.append(self._picture(path))
            except OSError:  # no permission
                skipped.append(path)
        if not recursive:
            skipped += folders
            return pictures
        return pictures + [picture for folder in folders for picture in self._pictures(folder, skipped, True)]

    def _picture(self, path: str) -> Picture:
        """Image at a path."""
        file = f"{self.folder}/{path}"
        status = os.stat(file)
        return Picture(path, _digest(file, (status.st_ino, status.st_size, status.st_mtime_ns)))

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
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
        for entry in entries:
            name = printable(entry.name)
            inside = join(place, name)
            readable = not entry.is_symlink() and name == entry.name  # the name is UTF-8
            if name.startswith("."):
                continue
            if readable and entry.is_dir():
                folders.append(inside)
            elif readable and entry.is_file() and is_image(name):
                images.append(inside)
            else:
                skipped.append(inside)
        return folders, images


@lru_cache(maxsize=MAX_DIGESTS)
def _digest(path: str, version: tuple[int, ...]) -> str:
    """SHA-256 of a file, cached for each version of the file."""
    return hash_file(Path(path))
