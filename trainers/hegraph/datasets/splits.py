"""CoOp's few-shot protocol: which images of a split a seed selects.

The classes are visited in order of first appearance, first all of train and then all of val. For each, `random.sample`
draws `shots` items of train, or `min(shots, 4)` of val, from Python's generator seeded as Dassl's `set_random_seed`
does. A class that has fewer items is taken whole, in split order, and nothing is drawn for it. With the same split
file, shots and seed, the selection is CoOp's, item for item; the tests compare it with outputs of the real CoOp.

For CoCoOp's base-to-new protocol, the classes are cut into two halves by label, after the few-shot selection.
"""

from __future__ import annotations

import logging
import math
import random
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..utils.errors import UserError, unknown

logger = logging.getLogger(__name__)

MAX_VAL_SHOTS = 4
SPLITS = ("train", "val", "test")


class Item(NamedTuple):
    """One labelled image: its path relative to the data root, its label, its class name."""

    path: str
    label: int
    classname: str


Pools = dict[str, list[Item]]  # split, one of `SPLITS` -> all its items


@dataclass(frozen=True)
class Selection:
    """The positions that the few-shot protocol selects, in the order in which it draws them.

    Attributes:
        train: Indices into the training pool.
        val: Indices into the validation pool; empty if there is none.
    """

    train: list[int]
    val: list[int]


def select_few_shot(
    train_labels: Sequence[int], val_labels: Sequence[int], shots: int, rng: random.Random
) -> Selection:
    """Draws the few-shot training and validation sets.

    Args:
        train_labels: Label of every item of the training pool, in split order.
        val_labels: The same for the validation pool; may be empty.
        shots: Items per class; -1 selects everything, in split order.
        rng: The generator to draw from: `random.Random(seed)`, from which the split may have been drawn before.

    Raises:
        UserError: If `shots` is out of range.
    """
    if shots == -1:
        return Selection(list(range(len(train_labels))), list(range(len(val_labels))))
    if shots < 1:
        raise UserError(f"shots must be at least 1, or -1 for all, got {shots}")
    train = _sample_per_class(train_labels, shots, rng)
    val = _sample_per_class(val_labels, min(shots, MAX_VAL_SHOTS), rng)
    _warn_of_small_classes(train_labels, shots)
    return Selection(train, val)


def subsample_labels(labels: Collection[int], which: str) -> list[int]:
    """The sorted labels of all classes or of one half of them. The position in the list is a class's new label.

    Args:
        labels: The n labels that occur in training.
        which: "all", "base" (the first `ceil(n / 2)`) or "new" (the rest).

    Raises:
        UserError: If `which` is none of these.
    """
    ordered = sorted(set(labels))
    middle = math.ceil(len(ordered) / 2)
    halves = {"all": ordered, "base": ordered[:middle], "new": ordered[middle:]}
    if which not in halves:
        raise unknown("subsample of the classes", which, halves)
    if not halves[which] and which != "all":
        raise UserError(f"SUBSAMPLE_CLASSES {which} is empty: there are {len(ordered)} classes with training images")
    return halves[which]


def _sample_per_class(labels: Sequence[int], shots: int, rng: random.Random) -> list[int]:
    by_class: defaultdict[int, list[int]] = defaultdict(list)  # keeps the order of first appearance
    for index, label in enumerate(labels):
        by_class[label].append(index)
    selected = []
    for indices in by_class.values():
        selected += rng.sample(indices, shots) if len(indices) >= shots else indices
    return selected


def _warn_of_small_classes(labels: Sequence[int], shots: int) -> None:
    counts = Counter(labels)
    small = [label for label, count in counts.items() if count < shots]
    if small:
        fewest = min(counts.values())
        logger.warning(
            "%d of %d classes have fewer than %d training images (fewest: %d); these are taken whole",
            len(small), len(counts), shots, fewest,
        )  # fmt: skip
