"""The embedded data set: scikit-learn's handwritten digits, 1,797 real scans of 8x8 pixels.

They are the test part of the UCI "Optical Recognition of Handwritten Digits" set (Alpaydin and Kaynak,
1998), written by 13 people, in the order of the file. The split is by position, so no image is drawn at
random and writers hardly mix: rows 0-697 train, 698-897 val, 898-1796 test. The test half is the one of
scikit-learn's own digits example.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image

from .base import Dataset
from .splits import Item

CLASSNAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPLITS = {"train": range(0, 698), "val": range(698, 898), "test": range(898, 1797)}
MAX_INK = 16  # a pixel counts the inked dots of a 4x4 block


def load_digits_dataset(root: str = "") -> Dataset:
    """The digits as a data set. `root` is not used: the images come with scikit-learn."""
    _, labels = _arrays()
    splits = {
        name: [Item(f"digits/{row:04d}", int(labels[row]), CLASSNAMES[labels[row]]) for row in rows]
        for name, rows in SPLITS.items()
    }
    return Dataset("Digits", CLASSNAMES, splits["train"], splits["val"], splits["test"], open_digit)


def open_digit(path: str) -> Image.Image:
    """The scan named `digits/<row>` as an 8x8 RGB image, white ink on black."""
    images, _ = _arrays()
    ink = images[int(path.rpartition("/")[2])]
    return Image.fromarray(np.round(ink * (255 / MAX_INK)).astype(np.uint8)).convert("RGB")


@cache
def _arrays() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits  # takes a second to import

    digits = load_digits()
    return digits.images, digits.target
