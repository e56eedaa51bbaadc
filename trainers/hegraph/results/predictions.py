"""Predictions of single test images: read those of a run, and count confusions of classes.

Shapes: M test images, K classes.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from ..utils.errors import UserError
from .records import PREDICTIONS, read_record, read_tensors_with_classes
from .scores import is_multilabel


def read_scores(folder: Path) -> tuple[Tensor, Tensor]:
    """Read the scores and the label indicators of a run with several labels per image, each `[M, K]`.

    Raises:
        UserError: If the folder has no predictions, or the file is damaged.
    """
    path = folder / PREDICTIONS
    (scores, labels), classnames = read_tensors_with_classes(path, "predictions of a run", ("scores", "labels"))
    if not scores.shape == labels.shape == (len(scores), len(classnames)) or not scores.isfinite().all():
        raise UserError(f"{path}: expected finite scores and labels of shape [M, {len(classnames)}]")
    return scores, labels


def read_predictions(folder: Path) -> tuple[Tensor, Tensor, list[str]]:
    """Read predicted classes and labels of a run's test images, each `[M]`, and the K class names.

    Raises:
        UserError: If the folder has no predictions, or the file is damaged.
    """
    path = folder / PREDICTIONS
    (predicted, labels), classnames = read_tensors_with_classes(path, "predictions of a run", ("predicted", "labels"))
    are_vectors = predicted.shape == labels.shape == (labels.numel(),) != (0,)
    if not are_vectors or not {*predicted.tolist(), *labels.tolist()} <= set(range(len(classnames))):
        raise UserError(f"{path}: expected predicted and labels to be class numbers [M] below {len(classnames)}")
    return predicted.long(), labels.long(), classnames


def confusion_matrix(folder: Path) -> tuple[np.ndarray, list[str]]:
    """Confusion matrix `[K, K]` of the test images of a run as in `count_confusions`, and the K class names.

    Raises:
        UserError: If the run has several labels per image or no predictions, or a file is damaged.
    """
    if is_multilabel(read_record(folder) or {}):
        raise UserError(f"{folder}: a confusion matrix needs one label per image; `results labels` shows AP by class")
    predicted, labels, classnames = read_predictions(folder)
    return count_confusions(predicted, labels, len(classnames)), classnames


def count_confusions(predicted: Tensor, labels: Tensor, classes: int) -> np.ndarray:
    """Number of images by label (row) and predicted class (column), shape `[K, K]`."""
    from sklearn.metrics import confusion_matrix as count  # takes a second to import

    return count(labels.numpy(), predicted.numpy(), labels=list(range(classes)))


def confused_pairs(matrix: np.ndarray, number: int = 10) -> list[tuple[int, int]]:
    """Up to `number` pairs of classes `a < b` with the most confusions, from a matrix of `count_confusions`."""
    both = matrix + matrix.T
    pairs = [(int(a), int(b)) for a, b in np.argwhere(np.triu(both, 1))]
    return sorted(pairs, key=lambda pair: -both[pair])[:number]  # stable: equal pairs are sorted by label


def hardest_pairs(matrix: np.ndarray, classnames: Sequence[str]) -> list[str]:
    """Describe the pairs of `confused_pairs`, such as "a and b: 4 (a as b 1, b as a 3)"."""
    lines = []
    for first, second in confused_pairs(matrix):
        a = classnames[first]
        b = classnames[second]
        a_as_b = matrix[first, second]
        b_as_a = matrix[second, first]
        lines.append(f"{a} and {b}: {a_as_b + b_as_a} ({a} as {b} {a_as_b}, {b} as {a} {b_as_a})")
    return lines
