"""The embedded data set: scikit-learn's digits, split by position."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from sklearn.datasets import load_digits

from trainers.hegraph.datasets import load_dataset

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(scope="module")
def digits():
    return load_dataset("Digits")


def test_the_test_split_is_the_half_of_scikit_learns_digits_example(digits):
    # train_test_split(test_size=0.5, shuffle=False) of 1797 rows gives the last 899
    assert digits.test[0].path == "digits/0898"
    assert [item.label for item in digits.test] == load_digits().target[-899:].tolist()


@pytest.mark.parametrize(("split", "least"), [("train", 16), ("val", 4), ("test", 16)])
def test_every_class_has_enough_images_in_each_split(digits, split, least):
    counts = Counter(item.label for item in getattr(digits, split))
    assert sorted(counts) == list(range(10))
    assert min(counts.values()) >= least  # 16 shots, and 4 validation images, need no class taken whole


def test_opening_an_item_gives_its_own_scan_as_8x8_rgb(digits):
    scans, labels = load_digits().images, load_digits().target
    for item, row in ((digits.train[0], 0), (digits.val[0], 698), (digits.test[-1], 1796)):
        image = digits.open(item.path)
        assert (image.mode, image.size) == ("RGB", (8, 8))
        pixels = np.asarray(image)
        for channel in range(3):
            assert np.abs(pixels[:, :, channel] - scans[row] * 255 / 16).max() <= 0.5
        assert item.label == labels[row]


def test_ink_is_white_on_black(digits):
    pixels = np.stack([np.asarray(digits.open(item.path)) for item in digits.train[:100]])
    assert pixels.max() == 255
    assert pixels[:, :, [0, 7]].mean() < 10  # the outermost columns are nearly always empty paper
    assert pixels[:, 2:6, 2:6].mean() > 100
