"""What is known of the user's own images, in whatever form they come, before they become a data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from PIL import Image

Rows = dict[str, list[tuple[str, str]]]  # split -> (path, class name)

# A folder or a column that other programs name otherwise
SPLIT_NAMES = {"train": "train", "val": "val", "validation": "val", "valid": "val", "dev": "val", "test": "test"}
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
    """

    rows: Rows
    open: Callable[[str], Image.Image]
    root: Path | None = None
    version: Callable[[str], tuple[int, int]] | None = None
    classnames: Sequence[str] = ()
