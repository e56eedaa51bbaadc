"""What the files beside a record show: how far text nodes are apart, and which classes are confused.

Shapes: K classes, d feature width, M test images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.errors import UserError
from ..utils.reading import parse_json, read_tensors
from ..utils.schema import check
from .records import PREDICTIONS, TEXT_NODES


class TextNodes(NamedTuple):
    """The positive text nodes of a trained run, of unit norm.

    Attributes:
        before: As they enter message passing, shape `[K, d]`.
        after: As they leave it, shape `[K, d]`.
        classnames: K names.
    """

    before: Tensor
    after: Tensor
    classnames: list[str]


class Pair(NamedTuple):
    """Two classes, and how many test images of each were taken for the other.

    Attributes:
        confused: The sum of the two counts below.
        first: Name of the class that comes first in label order.
        second: Name of the other class.
        first_as_second: Test images of the first class that were taken for the second.
        second_as_first: Test images of the second class that were taken for the first.
    """

    confused: int
    first: str
    second: str
    first_as_second: int
    second_as_first: int


def read_text_nodes(folder: Path) -> TextNodes:
    """Reads the text nodes of a run.

    Args:
        folder: The output folder of the run.

    Raises:
        UserError: If the folder has no file of text nodes, or the file holds something else.
    """
    path = folder / TEXT_NODES
    tensors, classnames = _read(path, "text nodes of a run", ("before", "after"))
    before, after = tensors["before"].float(), tensors["after"].float()
    if before.shape != after.shape or before.dim() != 2 or len(before) != len(classnames):
        raise UserError(f"{path}: before {list(before.shape)}, after {list(after.shape)}, {len(classnames)} classes")
    for name, nodes in (("before", before), ("after", after)):
        if not nodes.isfinite().all() or not nodes.norm(dim=1).all():
            raise UserError(f"{path}: {name} holds NaN, infinite values or rows of zeros; the file is damaged")
    return TextNodes(F.normalize(before, dim=1), F.normalize(after, dim=1), classnames)


def mean_distance(nodes: Tensor) -> float:
    """Mean Euclidean distance over all pairs of classes.

    Args:
        nodes: Text nodes of unit norm, shape `[K, d]`, K at least 2.
    """
    return torch.pdist(nodes).mean().item()


def confusion_matrix(folder: Path) -> tuple[np.ndarray, list[str]]:
    """Counts which test images of a run were taken for which class.

    Args:
        folder: The output folder of the run.

    Returns:
        Number of test images by true class (row) and predicted class (column), shape `[K, K]`; the K class names.

    Raises:
        UserError: If the folder has no predictions, or the file holds something else.
    """
    from sklearn.metrics import confusion_matrix as count  # takes a second to import

    predicted, labels, classnames = read_predictions(folder)
    return count(labels.numpy(), predicted.numpy(), labels=list(range(len(classnames)))), classnames


def read_predictions(folder: Path) -> tuple[Tensor, Tensor, list[str]]:
    """Reads what a run predicted: the predicted and the true classes of its test images, each `[M]`, and K class names.

    Raises:
        UserError: If the folder has no predictions, or the file holds something else.
    """
    path = folder / PREDICTIONS
    tensors, classnames = _read(path, "predictions of a run", ("predicted", "labels"))
    for name in ("predicted", "labels"):
        if tensors[name].dim() != 1 or tensors[name].dtype not in (torch.int32, torch.int64):
            kind = str(tensors[name].dtype).removeprefix("torch.")
            raise UserError(f"{path}: {name} must be class numbers [M], got {list(tensors[name].shape)} {kind}")
    predicted, labels, k = tensors["predicted"].long(), tensors["labels"].long(), len(classnames)
    every = torch.cat([predicted.flatten(), labels.flatten()])
    if predicted.shape != labels.shape or not len(labels) or every.min() < 0 or every.max() >= k:
        raise UserError(f"{path}: its predictions and labels do not fit its {k} classes")
    return predicted, labels, classnames


def hardest_pairs(matrix: np.ndarray, classnames: Sequence[str], most: int = 10) -> list[Pair]:
    """The pairs of classes that were taken for each other most often, the most confused first.

    Args:
        matrix: Number of test images by true and predicted class, shape `[K, K]`.
        classnames: K names.
        most: How many pairs to return at most. Pairs that were never confused are left out.
    """
    pairs = [
        Pair(int(matrix[a, b] + matrix[b, a]), classnames[a], classnames[b], int(matrix[a, b]), int(matrix[b, a]))
        for a, b in np.argwhere(np.triu(matrix + matrix.T, 1))
    ]
    return sorted(pairs, key=lambda pair: -pair.confused)[:most]  # a stable sort: equal pairs keep their label order


def describe(pair: Pair) -> str:
    """A pair as a line of text, such as "a and b: 4 (a as b 1, b as a 3)"."""
    return (
        f"{pair.first} and {pair.second}: {pair.confused} "
        f"({pair.first} as {pair.second} {pair.first_as_second}, {pair.second} as {pair.first} {pair.second_as_first})"
    )


def _read(path: Path, what: str, names: Sequence[str]) -> tuple[dict[str, Tensor], list[str]]:
    """Reads a file beside a record: its tensors, which must include `names`, and the class names in its metadata."""
    if not path.exists():
        raise UserError(f"{path.parent} holds no {path.name}; name the folder of a run that wrote it")
    tensors, metadata = read_tensors(path, what)
    form = f"{path} does not hold {' and '.join(names)} with their classnames"
    try:
        classnames = parse_json(metadata["classnames"])
    except (KeyError, ValueError) as error:
        raise UserError(form) from error
    if not set(names) <= set(tensors):
        raise UserError(form)
    return tensors, check(list[str], classnames, form)
