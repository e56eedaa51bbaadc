"""Folders of splits that hold a folder of images for each class: ROOT/train/<class>/*.jpg.

A folder of a split may have any of its names in `SPLIT_NAMES`, in upper or lower case.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from ..utils.errors import UserError
from .images import is_image
from .layouts import listing
from .own_rows import SPLIT_NAMES, Rows
from .splits import SPLITS

logger = logging.getLogger(__name__)


@dataclass
class _LeftOut:
    """What is not read below the folders of splits, as paths below the root.

    Attributes:
        loose: Images that lie in no class folder.
        files: Files that are no images.
        deeper: Folders inside class folders.
        empty: Class folders that hold no image themselves.
    """

    loose: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    deeper: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)

    def warn(self, path: Path) -> None:
        if self.empty:
            said = "%s: %d class folders hold no image, such as %s; without a training image there is no such class"
            logger.warning(said, path, len(self.empty), self.empty[0])
        for said in filter(None, (_said_of_deeper(self.deeper), _said_of_loose(self.loose))):
            logger.warning("%s: %s", path, said)
        if self.files:
            said = "%s: %d files are no images and are left out, such as %s"
            logger.warning(said, path, len(self.files), self.files[0])

    def hint(self, folder: str) -> str:
        """Why a split may lack images: what is left out below its folder; "" if nothing that could be an image is."""
        deeper, loose = ([each for each in all_ if each.startswith(f"{folder}/")] for all_ in (self.deeper, self.loose))
        return _said_of_deeper(deeper) or _said_of_loose(loose)


def _said_of_deeper(folders: list[str]) -> str:
    if not folders:
        return ""
    return f"{len(folders)} folders inside class folders are not read, such as {folders[0]}; move their images up"


def _said_of_loose(images: list[str]) -> str:
    if not images:
        return ""
    return f"{len(images)} images lie in no class folder, such as {images[0]}; move them into one"


def split_folders(path: Path) -> dict[str, list[str]]:
    """Split -> the names of its folders in a folder; splits without one are left out.

    Raises:
        UserError: If the folder cannot be listed.
    """
    found: dict[str, list[str]] = {}
    for name in listing(path) if path.is_dir() else []:
        split = SPLIT_NAMES.get(name.lower())
        if split is not None and (path / name).is_dir():
            found.setdefault(split, []).append(name)
    return found


def check_one_folder(path: Path, folders: dict[str, list[str]]) -> None:
    """Raises UserError if several folders mean one split: which of them was meant must not be guessed."""
    for split, names in folders.items():
        if len(names) > 1:
            raise UserError(
                f"{path}: the folders {' and '.join(names)} all mean {split}; keep one of them, or move the others away"
            )


def read_class_folders(path: Path, folders: dict[str, list[str]]) -> tuple[Rows, str]:
    """The images of class folders, and why training images may be missing. No image is opened.

    Args:
        path: The folder that holds folders of splits.
        folders: Those, as `split_folders` finds them.

    Raises:
        UserError: If several folders mean one split, or one cannot be listed.
    """
    check_one_folder(path, folders)
    known = [name for names in folders.values() for name in names]
    strange = [name for name in listing(path) if name not in known and (path / name).is_dir()]
    if strange:
        logger.warning("%s: %s is none of train, val and test, and is not read", path, ", ".join(strange))
    rows: Rows = {split: [] for split in SPLITS}
    left_out = _LeftOut()
    for split in SPLITS:
        for folder in folders.get(split, []):
            rows[split] += _read_split(path, folder, left_out)
    left_out.warn(path)
    return rows, left_out.hint(*folders["train"]) if "train" in folders else ""


def _read_split(path: Path, folder: str, left_out: _LeftOut) -> list[tuple[str, str]]:
    """The images of a split and their classes; what is left out is added to `left_out`."""
    rows: list[tuple[str, str]] = []
    for name in listing(path / folder):
        inside = f"{folder}/{name}"
        if (path / inside).is_dir():
            images = _read_class(path, inside, left_out)
            rows += [(image, name) for image in images]
        elif is_image(name):
            left_out.loose.append(inside)
        else:
            left_out.files.append(inside)
    return rows


def _read_class(path: Path, folder: str, left_out: _LeftOut) -> list[str]:
    """The images of a class folder; what is left out is added to `left_out`."""
    images = []
    for name in listing(path / folder):
        inside = f"{folder}/{name}"
        if is_image(name):  # known by its name alone, since there may be millions of images
            images.append(inside)
        elif (path / inside).is_dir():
            left_out.deeper.append(inside)
        else:
            left_out.files.append(inside)
    if not images:
        left_out.empty.append(folder)
    return images
