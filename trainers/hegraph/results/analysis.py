"""What the files beside a record tell: distances of text nodes, confusions of classes.

Shapes: K classes, d feature width, M test images.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.errors import UserError
from ..utils.files import read_tensors
from .records import PREDICTIONS, TEXT_NODES


class TextNodes(NamedTuple):
    """Unit-norm positive text nodes `[K, d]`, as they enter the graph and as they leave it trained."""

    before: Tensor
    after: Tensor
    classnames: list[str]


class Pair(NamedTuple):
    """Two classes, and how many test images of each were taken for the other; `count` is both together."""

    count: int
    first: str
    second: str
    first_as_second: int
    second_as_first: int


def read_text_nodes(folder: Path) -> TextNodes:
    """The text nodes of a run.

    Raises:
        UserError: If the folder has none, or the file holds something else.
    """
    path = folder / TEXT_NODES
    tensors, classnames = _read(path, "the text nodes", ("before", "after"))
    before, after = tensors["before"].float(), tensors["after"].float()
    if before.shape != after.shape or before.dim() != 2 or len(before) != len(classnames):
        raise UserError(f"{path}: before {list(before.shape)}, after {list(after.shape)}, {len(classnames)} classes")
    return TextNodes(F.normalize(before, dim=1), F.normalize(after, dim=1), classnames)


def mean_distance(nodes: Tensor) -> float:
    """Mean Euclidean distance over all pairs of classes.

    Args:
        nodes: Unit-norm, shape `[K, d]`, K at least 2.
    """
    return torch.pdist(nodes).mean().item()


def confusion_matrix(folder: Path) -> tuple[np.ndarray, list[str]]:
    """How many test images of a class (row) a run took for a class (column), `[K, K]`, and the names of the classes.

    Raises:
        UserError: If the folder has no predictions, or the file holds something else.
    """
    path = folder / PREDICTIONS
    tensors, classnames = _read(path, "the predictions", ("predicted", "labels"))
    predicted, labels, k = tensors["predicted"].long(), tensors["labels"].long(), len(classnames)
    every = torch.cat([predicted.flatten(), labels.flatten()])
    if predicted.shape != labels.shape or not len(labels) or every.min() < 0 or every.max() >= k:
        raise UserError(f"{path}: its predictions and labels do not fit its {k} classes")
    return torch.bincount(labels * k + predicted, minlength=k * k).view(k, k).numpy(), classnames


def hardest_pairs(matrix: np.ndarray, classnames: Sequence[str], most: int = 10) -> list[Pair]:
    """The pairs of classes that were taken for each other most often, most first; never more than there are.

    Args:
        matrix: True class by predicted class, `[K, K]`.
        classnames: K names.
        most: How many.
    """
    pairs = [
        Pair(int(matrix[a, b] + matrix[b, a]), classnames[a], classnames[b], int(matrix[a, b]), int(matrix[b, a]))
        for a, b in np.argwhere(np.triu(matrix + matrix.T, 1))
    ]
    return sorted(pairs, key=lambda pair: -pair.count)[:most]  # stable: of equals the first classes first


def describe(pair: Pair) -> str:
    return (
        f"{pair.first} and {pair.second}: {pair.count} "
        f"({pair.first} as {pair.second} {pair.first_as_second}, {pair.second} as {pair.first} {pair.second_as_first})"
    )


def _read(path: Path, what: str, names: Sequence[str]) -> tuple[dict[str, Tensor], list[str]]:
    if not path.exists():
        raise UserError(f"{path.parent} holds no {path.name}; name the folder of a run that wrote it")
    tensors, metadata = read_tensors(path, what)
    try:
        classnames = json.loads(metadata["classnames"])
    except (KeyError, ValueError):
        classnames = None
    if not isinstance(classnames, list) or not set(names) <= set(tensors):
        raise UserError(f"{path} does not hold {' and '.join(names)} with their classnames")
    return tensors, classnames
