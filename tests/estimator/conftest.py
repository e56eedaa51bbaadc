"""Fixtures of the classifier: features similar to CLIP's, digits as PIL images and as files."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from training_free import LABELS

from trainers.hegraph import HeGraphClassifier, load_few_shot

QUICK = {"OPTIM.MAX_EPOCH": 5, "TRAINER.HEGRAPHADAPTER.MIN_STEPS": 0}


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="session")
def data() -> SimpleNamespace:
    """120 features of width 16 in 4 classes, with labels, and text features near the centres of the classes."""
    random = np.random.default_rng(3)
    centres = unit(random.normal(size=(4, 16)))
    y = random.permutation(np.repeat(np.arange(4), 30))
    X = unit(centres[y] + 0.25 * random.normal(size=(120, 16)))
    text = unit(centres + 0.2 * random.normal(size=(4, 16)))
    return SimpleNamespace(X=X, y=y, text=text, negative=unit(0.2 * random.normal(size=(4, 16)) - centres))


@pytest.fixture(scope="session")
def quick() -> Callable[..., HeGraphClassifier]:
    """Function of parameters that makes a classifier with a short training."""

    def make(**parameters: Any) -> HeGraphClassifier:
        return HeGraphClassifier(**{"options": QUICK, **parameters})

    return make


@pytest.fixture(scope="session")
def digits() -> SimpleNamespace:
    """Three training images of each digit in turn, with labels, and 20 test images."""
    dataset = load_few_shot("Digits", root="", shots=3, seed=1)
    pictures, tests = ([dataset.open(item.path) for item in items] for items in (dataset.train, dataset.test[:20]))
    labels = [item.label for item in dataset.train]
    return SimpleNamespace(pictures=pictures, labels=labels, tests=tests, classnames=list(dataset.classnames))


@pytest.fixture(scope="session")
def digit_classifier(digits) -> HeGraphClassifier:
    """Classifier trained on the images of the digits, with mini."""
    options = {**QUICK, "TRAINER.HEGRAPHADAPTER.FEATURES.VIEWS": 2}
    classifier = HeGraphClassifier(config="mini", dataset_config="digits", options=options)
    return classifier.fit(digits.pictures, digits.labels, classnames=digits.classnames)


@pytest.fixture
def files(digits, tmp_path) -> list[Path]:
    """The test images as files with unusual names."""
    paths = [tmp_path / name for name in ("new\nline.png", "zwölf.png", *(f"a b{number}.png" for number in range(18)))]
    for path, picture in zip(paths, digits.tests):
        picture.save(path)
    return paths


@pytest.fixture(scope="session")
def labelled(data) -> tuple[np.ndarray, np.ndarray]:
    """24 features of four classes (9, 7, 5 and 3) and their labels."""
    rows = np.concatenate([np.flatnonzero(data.y == k)[:n] for k, n in enumerate((9, 7, 5, 3))])
    return data.X[rows], LABELS[data.y[rows]]
