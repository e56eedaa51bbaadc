"""Contents of a teach project: its classes, images and unlabelled images, and the rules for names of classes.

A *place* is a class or one of `NON_CLASS_FOLDERS`.
"""

import unicodedata
from collections.abc import Container, Iterable
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import NamedTuple

from ...datasets.folder import NON_CLASS_FOLDERS
from ...datasets.splits import split_of
from ...models.predict.files import FORBIDDEN, MAX_NAME
from ...utils.errors import UserError
from ...utils.text import printable, shortened

UNLABELLED = NON_CLASS_FOLDERS[0]


class Picture(NamedTuple):
    """Image of a project: its path relative to the folder, with `/`, and the SHA-256 of its file."""

    path: str
    digest: str

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name


@dataclass(frozen=True)
class Contents:
    """Contents of a project.

    Attributes:
        base: Folder of the class folders: "train", or "" if they lie directly in the project folder.
        folders: Folder of each place. Class names are in Unicode normalization form C.
        images: Images of each place.
        confirmed: SHA-256 of the images whose label was confirmed.
        skipped: Paths that are not read, such as links and files that are not images.
        undo: Description of the last change; "" if there is nothing to undo.
    """

    base: str
    folders: dict[str, str]
    images: dict[str, list[Picture]]
    confirmed: frozenset[str]
    skipped: list[str]
    undo: str

    @property
    def classes(self) -> dict[str, list[Picture]]:
        """Images of each class."""
        return {place: pictures for place, pictures in self.images.items() if place not in NON_CLASS_FOLDERS}

    @property
    def unlabelled(self) -> list[Picture]:
        return self.images[UNLABELLED]

    def pictures(self) -> dict[Picture, str]:
        """All images with their places."""
        return {picture: place for place, pictures in self.images.items() for picture in pictures}

    def classes_of(self) -> dict[str, list[str]]:
        """Classes of each image, by SHA-256. An image in several classes is a conflict."""
        classes: dict[str, list[str]] = {}
        for name, pictures in self.classes.items():
            for digest in {picture.digest for picture in pictures}:
                classes.setdefault(digest, []).append(name)
        return classes

    def folder(self, place: str) -> str:
        """Folder of a place. Raise UserError if it does not exist."""
        if place not in self.folders:
            raise UserError(f"the class {shortened(place, 80)!r} was removed or renamed")
        return self.folders[place]

    def class_folder(self, name: str) -> str:
        """Folder of a class. Raise UserError if it does not exist or `name` is one of `NON_CLASS_FOLDERS`."""
        if name in NON_CLASS_FOLDERS:
            raise UserError(f"{name!r} is not a class; it cannot be renamed or deleted")
        return self.folder(name)

    def new_class(self, name: str, renamed: str = "") -> tuple[str, str]:
        """Normalized name and folder of a new class, or of the class `renamed` under its new name.

        Raises:
            UserError: If the name is taken, or is none for a class.
        """
        name = normalize_class_name(name, self.folders.keys() - {renamed})
        if not self.base and split_of(name):
            raise UserError(f"expected a class name, got {name!r}, the name of a split; choose another")
        return name, join(self.base, name)

    def problem_of_class(self, name: str) -> str:
        """Reason why a class cannot be added; "" if it can, or exists."""
        if name in self.folders:
            return ""
        try:
            self.new_class(name)
        except UserError as error:
            return str(error)
        return ""

    def without(self, digests: Container[str]) -> "Contents":
        """Contents without the images of the SHA-256 `digests`."""

        def remaining(pictures: list[Picture]) -> list[Picture]:
            return [picture for picture in pictures if picture.digest not in digests]

        return replace(self, images={place: remaining(pictures) for place, pictures in self.images.items()})


def join(folder: str, name: str) -> str:
    """Path of an entry of a folder; the folder "" is the project folder."""
    return f"{folder}/{name}" if folder else name


def images(count: int) -> str:
    """Number of images in words, such as "1 image"."""
    return f"{count} image{'' if count == 1 else 's'}"


def normalize_class_name(name: str, existing: Iterable[str]) -> str:
    """Class name in Unicode normalization form C, without redundant spaces.

    Raises:
        UserError: If a folder cannot have the name, or if it equals an existing name except for case or Unicode form.
    """
    normalized = unicodedata.normalize("NFC", " ".join(name.split()))
    if not normalized:
        raise UserError("expected a class name, got none")
    if FORBIDDEN.search(normalized.replace("%", "")) or printable(normalized) != normalized:
        rule = 'expected a class name without / \\ : * ? " < > | and without a dot at either end'
        raise UserError(f"{rule}, got {shortened(printable(normalized), 80)!r}")
    if len(normalized.encode()) > MAX_NAME:
        raise UserError(f"expected a class name short enough for a folder, got {shortened(normalized, 80)!r}")
    if same := [other for other in existing if name_key(other) == name_key(normalized)]:
        raise UserError(f"{normalized!r} cannot be added: {same[0]!r} exists already")
    return normalized


def name_key(name: str) -> str:
    """Key that is equal for names that differ only in case or Unicode form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
