"""Logits of training images by a classifier that was fitted without them.

A classifier is too sure of the images it was fitted to, so they tell nothing about how sure it should be. Here a part
of them is held out and the method is fitted again to the rest. It is told what to fit as a function, and may be any.

Shapes: N training images, n held-out ones, K classes, d feature width, B images of a batch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..features.bank import FeatureBank

Classify = Callable[[Tensor], Tensor]  # unit-norm image features [B, d] -> logits [B, K]
Fit = Callable[[FeatureBank], Classify]

MOST_FOLDS = 4
BATCH = 1024  # images that a method classifies at once


@dataclass(frozen=True)
class HeldOut:
    """A part of the training images, and a classifier that was fitted to the rest.

    Attributes:
        fitted_to: What the classifier was fitted to. It holds K' <= K classes.
        classify: The classifier, for the classes of `fitted_to`.
        features: Of the held-out images, shape `[n, d]`.
        labels: Their labels among the K classes, shape `[n]`.
    """

    fitted_to: FeatureBank
    classify: Classify
    features: Tensor
    labels: Tensor

    @property
    def logits(self) -> Tensor:
        """Of the held-out images, shape `[n, K']`."""
        return classify_in_batches(self.classify, self.features)


def hold_out_images(bank: FeatureBank, fit: Fit, seed: int) -> Iterator[HeldOut]:
    """Holds out a part of the images of every class, then another part, until each was held out once.

    There are as many folds as the largest class has images, at most `MOST_FOLDS`. The only image of a class is never
    held out. No fold, where that holds for all classes.

    Args:
        bank: The task, without test images.
        fit: Fits the method to a part of it.
        seed: Decides which images are in which fold.
    """
    folds = assign_folds(bank.train_labels, seed)
    keys = bank.cache_keys()
    for fold in range(int(folds.max()) + 1):
        held = folds == fold
        rest = replace(bank, train_features=bank.train_features[:, ~held], train_labels=bank.train_labels[~held])
        yield HeldOut(rest, fit(rest), keys[held], bank.train_labels[held])


def hold_out_classes(bank: FeatureBank, fit: Fit, seed: int) -> Iterator[HeldOut]:
    """Holds out all images of one half of the classes, then those of the other half.

    The method is fitted to the classes of the rest, and knows no others. So no held-out image is of a class that it
    knows. No fold, where there are fewer than four classes.

    Args:
        bank, fit, seed: As of `hold_out_images`.
    """
    classes = list(range(len(bank.classnames)))
    if len(classes) < 4:
        return
    random.Random(seed).shuffle(classes)
    keys = bank.cache_keys()
    for known in (classes[0::2], classes[1::2]):
        rest = bank.of_classes(torch.tensor(sorted(known)))
        held = ~torch.isin(bank.train_labels.cpu(), torch.tensor(known)).to(keys.device)
        yield HeldOut(rest, fit(rest), keys[held], bank.train_labels[held])


def assign_folds(labels: Tensor, seed: int) -> Tensor:
    """The fold of every training image, shape `[N]`; -1 for an image that is never held out.

    Args:
        labels: Shape `[N]`.
        seed: The images of a class are dealt to the folds in an order that it decides.
    """
    generator = random.Random(seed)
    here = labels.cpu()  # once, and not for every class
    folds = torch.full((len(here),), -1)
    count = min(int(here.bincount().max()), MOST_FOLDS)
    for label in here.unique().tolist():
        images = (here == label).nonzero().flatten().tolist()
        generator.shuffle(images)
        if len(images) > 1:
            folds[images] = torch.arange(len(images)) % count
    return folds.to(labels.device)


@torch.no_grad()
def classify_in_batches(classify: Classify, features: Tensor) -> Tensor:
    """The logits of features `[n, d]`, shape `[n, K]`, computed batch by batch."""
    return torch.cat([classify(batch) for batch in features.split(BATCH)])
