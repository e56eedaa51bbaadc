"""Training-free classifiers, and their comparison."""

import numpy as np
import torch

from trainers.hegraph import HeGraphClassifier

LABELS = np.array(["ant", "bee", "cow", "dog"])


def training_free(text: np.ndarray | None = None) -> HeGraphClassifier:
    return HeGraphClassifier(variant="training_free", text_features=text)


def assert_same(one: HeGraphClassifier, other: HeGraphClassifier, atol: float = 1e-5) -> None:
    """Assert that two classifiers have equal classes, text nodes, weights and numbers of images."""
    np.testing.assert_array_equal(one.classes_, other.classes_)
    for name in ("images", "classnames", "unlabelled", "method", "temperature"):
        assert getattr(one.model_, name) == getattr(other.model_, name)
    for name in ("weights", "bias"):
        actual, expected = (getattr(model.model_.classifier, name) for model in (one, other))
        torch.testing.assert_close(actual, expected, rtol=0, atol=atol)
    torch.testing.assert_close(one.model_.text_positive, other.model_.text_positive, rtol=0, atol=1e-6)
