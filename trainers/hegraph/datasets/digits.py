"""The embedded data set: scikit-learn's handwritten digits, 1,797 scans of 8x8 pixels.

The scans are the test part of the UCI data set "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998),
written by 13 people. Splits are ranges of rows, so few writers are in two splits: rows 0-697 are train, 698-897 val,
and 898-1796 test. The test split equals the test half of scikit-learn's digits example.

`DigitScenes` has several labels per image: two or three scans of a split side by side, each scan in one picture.
"""

import importlib.util
import random
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from .base import Dataset
from .splits import Item

CLASSNAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPLIT_ROWS = {"train": range(0, 698), "val": range(698, 898), "test": range(898, 1797)}
MAX_INK = 16  # largest pixel value: the number of ink dots in a block of 4x4

ROTATION = 25  # degrees, clockwise in even rows, counter-clockwise in odd rows
NOISE = 60  # standard deviation in grey levels of 255
BLUR = 0.8  # radius in pixels of the 8x8 image


def _add_noise(image: Image.Image, row: int) -> Image.Image:
    noise = np.random.default_rng(row).normal(0, NOISE, (image.height, image.width))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).round().astype(np.uint8))


# Other domains with the same classes and only test images: name -> function of a scan and its row
DOMAINS: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    "DigitsInverted": lambda image, row: ImageOps.invert(image),
    "DigitsRotated": lambda image, row: image.rotate(ROTATION if row % 2 else -ROTATION, Image.Resampling.BILINEAR),
    "DigitsNoisy": _add_noise,
    "DigitsBlurred": lambda image, row: image.filter(ImageFilter.GaussianBlur(BLUR)),
}
SCENES_SEED = 1  # of the scans of each picture of `DigitScenes`
# Data sets of one half of the classes: name -> argument of `Dataset.subsample`
HALVES = {"DigitsLow": "base", "DigitsHigh": "new"}


def load_digits_dataset(root: str = "", name: str = "Digits") -> Dataset:
    """Load the digits, or one of their `DOMAINS` or `HALVES`. `root` is unused: scikit-learn contains the images."""
    _, labels = _arrays()
    items = [Item(f"digits/{row:04d}", int(label), CLASSNAMES[label]) for row, label in enumerate(labels)]
    train, val, test = (items[rows.start : rows.stop] for rows in SPLIT_ROWS.values())
    if name in DOMAINS:
        train = []
        val = []
    dataset = Dataset(name, CLASSNAMES, train, val, test, partial(open_digit, change=DOMAINS.get(name)))
    return dataset.subsample(HALVES.get(name, "all"))


def load_digit_scenes(root: str = "", name: str = "DigitScenes") -> Dataset:
    """Load pictures with two or three digits side by side; the labels of a picture are its digits. `root` is unused."""
    _, digits = _arrays()
    rng = random.Random(SCENES_SEED)
    splits: dict[str, list[Item]] = {split: [] for split in SPLIT_ROWS}
    for split, row_range in SPLIT_ROWS.items():
        rows = list(row_range)
        rng.shuffle(rows)
        while len(rows) > 1:  # the last scan of a split is left out if it is alone
            size = rng.choice((2, 3))
            scene = rows[:size]
            rows = rows[size:]
            labels = tuple(sorted({int(digits[row]) for row in scene}))
            path = "scenes/" + "-".join(f"{row:04d}" for row in scene)
            splits[split].append(Item(path, labels, "|".join(CLASSNAMES[label] for label in labels)))
    train, val, test = splits.values()
    return Dataset(name, CLASSNAMES, train, val, test, open_scene)


def open_scene(path: str) -> Image.Image:
    """Open the scans of `scenes/<row>-<row>[-<row>]` in one row, in the middle of a black square image."""
    scans = [open_digit(row) for row in path.rpartition("/")[2].split("-")]
    image = Image.new("RGB", (8 * len(scans), 8 * len(scans)))
    for position, scan in enumerate(scans):
        image.paste(scan, (8 * position, 4 * (len(scans) - 1)))
    return image


def open_digit(path: str, change: Callable[[Image.Image, int], Image.Image] | None = None) -> Image.Image:
    """Open the scan `digits/<row>` as an RGB image of 8x8 pixels, white on black, changed as in `DOMAINS`."""
    images, _ = _arrays()
    row = int(path.rpartition("/")[2])
    image = Image.fromarray(np.round(images[row] * (255 / MAX_INK)).astype(np.uint8))
    return (change(image, row) if change else image).convert("RGB")


@cache
def _arrays() -> tuple[np.ndarray, np.ndarray]:
    """Return images `[1797, 8, 8]`, from 0 to `MAX_INK`, and labels `[1797]`, as scikit-learn's `load_digits`.

    The file is read directly, since importing sklearn.datasets takes as long as importing torch.
    """
    sklearn = importlib.util.find_spec("sklearn")
    assert sklearn is not None and sklearn.origin is not None  # a required package
    table = np.loadtxt(Path(sklearn.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)
