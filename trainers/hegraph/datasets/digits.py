"""The embedded data set: scikit-learn's handwritten digits, 1,797 real scans of 8x8 pixels.

They are the test part of the UCI "Optical Recognition of Handwritten Digits" set (Alpaydin and Kaynak,
1998), written by 13 people, in the order of the file. The split is by position, so no image is drawn at
random and writers hardly mix: rows 0-697 train, 698-897 val, 898-1796 test. The test half is the one of
scikit-learn's own digits example.

So that transfer can be tried as well, the test images come again as four other domains, and the classes in two halves.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from .base import Dataset
from .splits import Item

CLASSNAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPLITS = {"train": range(0, 698), "val": range(698, 898), "test": range(898, 1797)}
MAX_INK = 16  # a pixel counts the inked dots of a 4x4 block

ROTATION = 25  # degrees, one way for even rows and the other for odd ones
NOISE = 60  # standard deviation in grey levels of 255
BLUR = 0.8  # radius in pixels of 8


def _rotate(image: Image.Image, row: int) -> Image.Image:
    return image.rotate(ROTATION if row % 2 else -ROTATION, Image.Resampling.BILINEAR)


def _add_noise(image: Image.Image, row: int) -> Image.Image:
    noise = np.random.default_rng(row).normal(0, NOISE, (image.height, image.width))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).round().astype(np.uint8))


# Other domains with the same classes: name -> what becomes of the scan of a row. They have test images only.
DOMAINS: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    "DigitsInverted": lambda image, row: ImageOps.invert(image),
    "DigitsRotated": _rotate,
    "DigitsNoisy": _add_noise,
    "DigitsBlurred": lambda image, row: image.filter(ImageFilter.GaussianBlur(BLUR)),
}
# Data sets of some of the classes, which have none in common
HALVES = {"DigitsLow": "base", "DigitsHigh": "new"}


def load_digits_dataset(root: str = "", name: str = "Digits") -> Dataset:
    """The digits as a data set, or one of `DOMAINS` or `HALVES`.

    `root` is not used: the images come with scikit-learn.
    """
    _, labels = _arrays()
    splits = {
        split: [Item(f"digits/{row:04d}", int(labels[row]), CLASSNAMES[labels[row]]) for row in rows]
        for split, rows in SPLITS.items()
    }
    if name in DOMAINS:
        splits["train"] = splits["val"] = []
    opener = partial(open_digit, change=DOMAINS.get(name))
    dataset = Dataset(name, CLASSNAMES, splits["train"], splits["val"], splits["test"], opener)
    return dataset.subsample(HALVES.get(name, "all"))


def open_digit(path: str, change: Callable[[Image.Image, int], Image.Image] | None = None) -> Image.Image:
    """The scan named `digits/<row>` as an 8x8 RGB image, white ink on black; `change`: as in `DOMAINS`."""
    images, _ = _arrays()
    row = int(path.rpartition("/")[2])
    image = Image.fromarray(np.round(images[row] * (255 / MAX_INK)).astype(np.uint8))
    return (change(image, row) if change else image).convert("RGB")


@cache
def _arrays() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits  # takes a second to import

    digits = load_digits()
    return digits.images, digits.target
