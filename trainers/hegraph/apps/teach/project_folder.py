"""Folder of a teach project, as it is read: its classes, images and unlabelled images.

FOLDER/train/<class>/*.jpg      labelled images, as `--root FOLDER` reads them
FOLDER/<class>/*.jpg            labelled images, if FOLDER/train has no folder; they stay in place
FOLDER/unlabelled/...           unlabelled images
FOLDER/none of these/           images that belong to none of the classes
FOLDER/.hegraph/                undo history and removed files; no other command reads it

A *place* is a class or one of `NON_CLASS_FOLDERS`.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ...datasets.folder import NON_CLASS_FOLDERS, OUTPUT_FILES
from ...datasets.images import is_image
from ...datasets.own_images import class_name
from ...datasets.splits import split_of
from ...utils.errors import UserError
from ...utils.files import hash_file
from ...utils.reading import reading
from ...utils.text import printable
from .contents import Contents, Picture, join, name_key
from .journal import STATE_FOLDER, JournaledFolder
from .uploads import TRAIN

CONFIRMED = f"{STATE_FOLDER}/kept"
MAX_DIGESTS = 200_000  # cached SHA-256 of files
SETTLED_NANOSECONDS = 2 * 10**9  # of a folder's last change, to reuse its listing: file systems round times


class Listing(NamedTuple):
    """Contents of a class folder, valid while the folder's `version`, inode and time of change, is the same."""

    version: tuple[int, int]
    pictures: list[Picture]
    skipped: list[str]


class ProjectFolder(JournaledFolder):
    """Folder of images, to be read. Errors are those of `JournaledFolder`; other programs may change the folder."""

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

    def _base(self) -> str:
        """Folder of the class folders, as in `Contents`.

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
