"""Folds of the images of a teach project, which stay almost the same when an image is added, moved or removed.

The page shows by how much the last action changed the accuracy. In folds that are drawn again after every action, as in
`estimator/labels/held_out.py`, that change is mostly noise. After one more image of the digits, at 2 to 4 images per
class, its standard deviation is 2.7 to 6.6 points. It is 1.8 to 4.2 in these folds, and 1.4 to 3.1 in unchanged folds.
The accuracy itself is as good an estimate.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from ...datasets.groups import NOT_HELD_OUT, Group, number_of_folds, shared_groups_only, with_all_classes
from ...estimator.labels.held_out import FOLD_SHOTS
from ...features.bank import mean_count
from .contents import Picture


def folds_of_pictures(pictures: Sequence[Picture], labels: Tensor, groups: Tensor | None) -> Tensor:
    """Folds of N images, as in `held_out_folds`; the random order is one of SHA-256 hashes.

    Args:
        pictures: The images.
        labels: Their classes, shape `[N]`.
        groups: Their groups, integers of shape `[N]`, hashes of names if not negative; None without groups.

    Returns:
        Fold of each image, from 0, or `NOT_HELD_OUT` for an image that leave-one-(group)-out predicts, shape `[N]`.
    """
    numbers: list[int] = [] if groups is None else groups.tolist()
    has_groups = shared_groups_only(numbers) is not None
    if not has_groups and mean_count(labels.bincount().tolist()) > FOLD_SHOTS:
        return torch.full_like(labels, NOT_HELD_OUT)
    units = [picture.digest for picture in pictures]
    if has_groups:
        for position, number in enumerate(numbers):
            if number >= 0:  # others are groups of their own
                units[position] = str(number)
    return torch.tensor(stable_folds(labels.tolist(), units))


def stable_folds(labels: Sequence[int], units: Sequence[str]) -> list[int]:
    """Assign images to folds in which every class loses images at once, and no class all of them.

    In alphabetical order, each unit goes to the fold with the fewest images of its classes. So an image more or less
    moves only later units of its classes, or of classes that share units with them. The number of folds is the number
    of units of the class with the most, at most `MAX_FOLDS`.

    Args:
        labels: Class of each image.
        units: Unit of each image, an image or a group, which stays whole.

    Returns:
        Fold of each image, from 0, or `NOT_HELD_OUT` for the largest unit of a class that is in one fold.
    """
    classes: defaultdict[str, Counter[int]] = defaultdict(Counter)  # images of each class
    for label, unit in zip(labels, units):
        classes[unit][label] += 1
    # Images of each class in a fold
    assigned: list[Counter[int]] = [Counter() for _ in range(number_of_folds(labels, units))]
    fold_of: dict[Group, int] = {}
    for unit, own in sorted(classes.items()):
        overlaps = [overlap(images, own) for images in assigned]
        fold_of[unit] = fold = overlaps.index(min(overlaps))
        assigned[fold].update(own)
    held_out = with_all_classes(fold_of, labels, units)
    return [held_out[unit] for unit in units]


def overlap(images: Counter[int], others: Counter[int]) -> int:
    """Number of pairs of images of the same class, from the numbers of images of each class."""
    return sum(count * images[label] for label, count in others.items())
