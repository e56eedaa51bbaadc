"""What is known of the user's own images, in whatever form they come, before they become a data set."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..utils.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

Rows = dict[str, list[tuple[str, str]]]  # split -> (path, class name)

# A folder, a file, a column or a split that other programs name otherwise; as Hugging Face's `datasets` knows them
SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "validation": "val", "valid": "val", "dev": "val",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
LONGEST_NUMBER = 1000  # digits of a class name that is a number; Python does not convert many more


class OwnImages(NamedTuple):
    """The user's own images.

    Attributes:
        rows: The images of every split.
        open: Takes the path of a row and returns the image.
        root: The folder that the paths are relative to; None if an image has no file of its own.
        version: Takes the path of a row that has no file of its own; returns its size in bytes, and a number that
            changes with its source.
        classnames: Class names in label order; () sorts those that occur.
        hint: What is not read, for the message where training images are missing; "" if that is nothing.
    """

    rows: Rows
    open: Callable[[str], Image.Image]
    root: Path | None = None
    version: Callable[[str], tuple[int, int]] | None = None
    classnames: Sequence[str] = ()
    hint: str = ""


def name_of_label(label: Any, where: str) -> str:
    """The class name that a label of a file stands for; "" if there is none: null, NaN, or a blank text."""
    if isinstance(label, (list, dict, bytes)):
        raise UserError(f"{where}: the label must be a text or a number, got {label!r:.60}")
    return "" if label is None or label != label else str(label).strip()  # only NaN is unlike itself


def splits_of_names(where: Path, names: Iterable[str]) -> dict[str, str]:
    """The split of every name, which is its first word in upper or lower case. If no name has a split, all are train.

    Args:
        where: The folder that they lie in, for the message.
        names: Names of files, or of folders of splits; a path is known by its last part.

    Raises:
        UserError: If some names begin with a split and others do not, or if a name has "val" or "test" further on: its
            images must not become training images by a guess.
    """
    found = {name: splits_of_words(name.rpartition("/")[2]) for name in names}
    some = any(splits[0] for splits in found.values())
    for name, splits in found.items():
        if not splits[0] and (some or {"val", "test"} & set(splits)):
            allowed = ", ".join(SPLIT_NAMES)
            raise UserError(f"{where}: {name} must begin with its split, one of {allowed}, or be moved away")
    return {name: splits[0] or "train" for name, splits in found.items()}


def splits_of_words(name: str) -> list[str]:
    """The splits that the words of a name stand for, "" for any other word; the words of "testA-0" are "test", "A"."""
    splits = [SPLIT_NAMES.get(word.lower(), "") for word in re.findall(r"[A-Z]*[a-z]*", name)]
    return [SPLIT_NAMES.get(name.lower(), splits[0]), *splits[1:]]
