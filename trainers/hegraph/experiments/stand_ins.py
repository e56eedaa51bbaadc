"""Held-out images for the calibration where some classes have far fewer images than others.

Held-out images are mostly of large classes, which a classifier prefers. So every class counts equally, and prediction
sets have a threshold for small classes: those with less than half of the mean number of images, or a single one.

A single image cannot be held out. Other classes stand for these classes: in each part, some classes with several images
are reduced to one image, and their other images are held out. Of the remaining classes with several images, a fold is
held out, as with equal classes. The classifier is then tested on new images of classes with one image, and of classes
with several.

With groups of images, such as the frames of a video, a class is reduced to one of its groups.

Shapes: N training images, K classes.
"""

import random
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..datasets.groups import NOT_HELD_OUT

ENOUGH = 9  # classes with several images that can stand for any number of classes with one; sets for 90 % need as many

IMAGES_FOR_SINGLE = 4  # images of classes with several, for each class with one, from which on they are better


class HeldOut(NamedTuple):
    """Images that are held out at once.

    Attributes:
        mask: The held-out images, booleans of shape `[N]`.
        of_stand_ins: Those of them whose class is reduced to one image, booleans of shape `[N]`.
    """

    mask: Tensor
    of_stand_ins: Tensor


def single_classes(labels: Tensor, folds: Tensor, num_classes: int) -> Tensor:
    """Return the classes with images of which no fold holds one out, booleans of shape `[K]`.

    Args:
        labels: Classes of the images, shape `[N]`.
        folds: Fold of each image, shape `[N]`, negative for an image that is never held out.
        num_classes: K.
    """
    images = labels.bincount(minlength=num_classes)
    held_out = labels[folds != NOT_HELD_OUT].bincount(minlength=num_classes)
    return (images > 0) & (held_out == 0)


def small_classes(labels: Tensor, single: Tensor) -> Tensor:
    """Return the classes with less than half of the mean number of images, or a single one, booleans of shape `[K]`.

    None if no class has several images.

    Args:
        labels: Classes of the training images, shape `[N]`.
        single: Classes whose images cannot be held out, booleans of shape `[K]`.
    """
    images = labels.bincount(minlength=len(single))
    has_images = images > 0
    mean = images[has_images].double().mean()
    small = has_images & (single | (2 * images < mean))
    return small & bool((has_images & ~single).any())


def too_few_to_stand_in(labels: Tensor, single: Tensor) -> bool:
    """Whether too few classes or images can stand for the classes `single`, which are then calibrated as at one shot.

    Args:
        labels: Classes of the training images, shape `[N]`.
        single: Classes whose images cannot be held out, booleans of shape `[K]`.
    """
    images = labels.bincount(minlength=len(single))[~single]
    number = int(single.sum())
    return int((images > 0).sum()) < min(ENOUGH, number) or int(images.sum()) < IMAGES_FOR_SINGLE * number


def held_out_with_stand_ins(
    labels: Tensor, folds: Tensor, groups: Tensor | None, seed: int, needed: bool = True
) -> Iterator[HeldOut]:
    """Iterate over the folds; every class that can stand in for others does so in one of them.

    Args:
        labels: Classes of the images, shape `[N]`.
        folds: Fold of each image, shape `[N]`, negative for an image that is never held out.
        groups: Groups of the images, shape `[N]`; None without groups.
        seed: Seed of the choice of stand-ins and of their remaining image.
        needed: Whether there are classes with a single image; without, no class stands in.
    """
    rng = random.Random(seed)
    rows_of_class = _rows_by_group(labels, folds, groups) if needed else {}
    order = sorted(rows_of_class)
    rng.shuffle(order)
    number = int(folds.max()) + 1
    for fold in range(number):
        reduced = torch.zeros_like(folds, dtype=torch.bool)
        kept = torch.zeros_like(reduced)
        for label in order[fold::number]:
            reduced[labels == label] = True
            kept[rng.choice(rows_of_class[label])] = True
        mask = torch.where(reduced, ~kept, folds == fold)
        yield HeldOut(mask, reduced & mask)


def _rows_by_group(labels: Tensor, folds: Tensor, groups: Tensor | None) -> dict[int, list[list[int]]]:
    """Return the images of each group of the classes that can be reduced to one group.

    They have images in a fold, several groups, and no group with images of another class.
    """
    numbers = range(len(labels)) if groups is None else groups.tolist()
    classes = labels.tolist()
    rows: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    classes_of_group: dict[int, set[int]] = defaultdict(set)
    for row, (label, number) in enumerate(zip(classes, numbers)):
        rows[label][number].append(row)
        classes_of_group[number].add(label)
    in_folds = set(labels[folds != NOT_HELD_OUT].tolist())
    able = {}
    for label, of_group in rows.items():
        alone = all(len(classes_of_group[number]) == 1 for number in of_group)
        if label in in_folds and alone and len(of_group) > 1:
            able[label] = list(of_group.values())
    return able


def weights_of_held_out(labels: Tensor, of_stand_ins: Tensor, num_single: int) -> Tensor:
    """Return weights of held-out images with which every class counts equally, float64 on the CPU, shape `[n]`.

    Args:
        labels: Classes of the images, shape `[n]`.
        of_stand_ins: Images of classes that stand for `num_single` classes, booleans of shape `[n]`.
        num_single: Number of these classes.
    """
    labels = labels.cpu()  # some devices have no float64
    of_stand_ins = of_stand_ins.cpu()
    weights = torch.zeros(len(labels), dtype=torch.float64)
    for mask, total in ((~of_stand_ins, None), (of_stand_ins, num_single)):
        own = labels[mask]
        if len(own):
            counts = own.bincount().double()
            share = 1.0 if total is None else total / int((counts > 0).sum())
            weights[mask] = share / counts[own]
    return weights
