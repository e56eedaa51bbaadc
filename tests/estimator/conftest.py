"""What the tests of the classifier share: features that look like CLIP's, digits as pictures and as files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from trainers.hegraph import HeGraphClassifier, load_dataset

QUICK = {"OPTIM.MAX_EPOCH": 5, "TRAINER.HEGRAPHADAPTER.MIN_STEPS": 0}


class Data(NamedTuple):
    """Images with labels, and the text nodes of their classes."""

    X: Any
    y: Any
    text: np.ndarray
    negative: np.ndarray


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="session")
def data() -> Data:
    """120 images of 4 classes, 16 wide; text features lie off the centres of their classes."""
    random = np.random.default_rng(3)
    centres = unit(random.normal(size=(4, 16)))
    y = random.permutation(np.repeat(np.arange(4), 30))
    X = unit(centres[y] + 0.25 * random.normal(size=(120, 16)))
    text = unit(centres + 0.2 * random.normal(size=(4, 16)))
    return Data(X, y, text, unit(0.2 * random.normal(size=(4, 16)) - centres))


@pytest.fixture(scope="session")
def quick() -> Callable[..., HeGraphClassifier]:
    """A classifier that trains for an instant, with the given parameters."""

    def make(**parameters: Any) -> HeGraphClassifier:
        return HeGraphClassifier(**{"options": QUICK, **parameters})

    return make


class Digits(NamedTuple):
    """Three pictures of each digit to train on, and others to classify."""

    pictures: list[Image.Image]
    labels: list[int]
    others: list[Image.Image]
    classnames: list[str]


@pytest.fixture(scope="session")
def digits() -> Digits:
    dataset = load_dataset("Digits")
    train = [item for digit in range(10) for item in [i for i in dataset.train if i.label == digit][:3]]
    pictures = [dataset.open(item.path) for item in train]
    others = [dataset.open(item.path) for item in dataset.test[:20]]
    return Digits(pictures, [item.label for item in train], others, list(dataset.classnames))


@pytest.fixture(scope="session")
def digit_classifier(digits) -> HeGraphClassifier:
    """Trained on the pictures of the digits, with mini."""
    options = {**QUICK, "TRAINER.HEGRAPHADAPTER.FEATURES.VIEWS": 2}
    classifier = HeGraphClassifier(config="mini", dataset_config="digits", options=options)
    return classifier.fit(digits.pictures, digits.labels, classnames=digits.classnames)


@pytest.fixture
def files(digits, tmp_path) -> list[Path]:
    """The other pictures as files, whose names are not easy."""
    names = [f"a b{number}.png" for number in range(18)] + ["new\nline.png", "zwölf.png"]
    for name, picture in zip(names, digits.others):
        picture.save(tmp_path / name)
    return [tmp_path / name for name in names]
