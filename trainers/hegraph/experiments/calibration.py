"""The temperature of a fitted method, from images that it was not fitted to, and never from test images.

What it is fitted on, the first that there is:

1. the few-shot val images, which are classified by the method as it is;
2. held-out training images: the method is fitted again without a part of the images of each class. A quarter is held
   out, or one image where there are fewer than four. A method that takes training steps is fitted again once, so that a
   run takes at most twice as long. One that takes none is fitted again without each part in turn;
3. held-out classes, where no class has an image to spare (one shot): the method is fitted to one half of the classes
   alone. On the images of the other half it is to be as sure as zero-shot CLIP, which has seen neither, among the same
   classes, and at the temperature that zero-shot CLIP has on all training images. Again a method without training steps
   is fitted to both halves.

The same images tell how images of known classes score (`training/confidence.py`), by the same rules: at one shot, as
they do with zero-shot CLIP, plus what the method adds to its scores on held-out classes.

`docs/confidence.md` says what these rules were compared with.

Shapes: N training images, n held-out ones, K classes, d feature width, B images of a batch.
"""

from __future__ import annotations

import itertools
import logging
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..baselines import METHODS
from ..baselines.base import FittedMethod
from ..config import Config
from ..features.bank import FeatureBank
from ..method.cache import text_logits
from ..training.choice import has_val, val_images
from ..training.confidence import (
    Calibration,
    KnownScores,
    fit_temperature,
    known_score,
    match_confidence,
    mean_confidence,
)
from .fitting import fit_method, train_adapter
from .tasks import FeatureTask, Task

logger = logging.getLogger(__name__)

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


def calibrated(fitted: FittedMethod, task: Task, bank: FeatureBank, cfg: Config, seed: int) -> FittedMethod:
    """A method with its temperature; the method as it is if TRAINER.HEGRAPHADAPTER.CALIBRATE is "off".

    Args:
        fitted: The method.
        task: The task, for a method that needs the backbone.
        bank: The task's features; those of test images are not looked at.
        cfg: The checked configuration.
        seed: The run's seed.
    """
    if cfg.run.calibrate == "off":
        return fitted
    started = time.monotonic()
    classify = fitted.logits if fitted.classifier is None else fitted.classifier.logits
    found = find_temperature(bank.without_test(), classify, fit_again(task, cfg, seed), fitted.steps > 0, seed)
    found = replace(found, seconds=time.monotonic() - started)
    logger.info("temperature %.3f, from %d images (%s)", found.temperature, found.num_images, found.fitted_on)
    return replace(fitted, calibration=found)


def find_temperature(bank: FeatureBank, classify: Classify, fit: Fit, trains: bool, seed: int) -> Calibration:
    """The temperature by the rules above.

    Args:
        bank: The task, without test images.
        classify: The method, fitted to all of it.
        fit: Fits the method to a part of it.
        trains: Whether that takes training steps, and so is done once only.
        seed: Decides what is held out.
    """
    if has_val(bank):
        features, labels = val_images(bank)
        return _calibration(classify_in_batches(classify, features), labels, "val")
    most = 1 if trains else None
    if held := list(itertools.islice(hold_out_images(bank, fit, seed), most)):
        logits, labels = torch.cat([part.logits for part in held]), torch.cat([part.labels for part in held])
        return _calibration(logits, labels, "held-out images")
    if held := list(itertools.islice(hold_out_classes(bank, fit, seed), most)):
        return _as_zero_shot(bank, held)
    return Calibration()


def fit_again(task: Task, cfg: Config, seed: int) -> Fit:
    """How the configured method is fitted to a part of a task; arguments as of `calibrated`."""

    def refit(bank: FeatureBank) -> Classify:
        if cfg.run.trainer not in METHODS:
            return train_adapter(FeatureTask(bank, cfg, seed), bank, cfg, seed).model.fold().logits
        return fit_method(task, bank, cfg, seed).logits

    return refit


def _calibration(logits: Tensor, labels: Tensor, fitted_on: str) -> Calibration:
    """From logits `[n, K]` of images that the method was not fitted to."""
    temperature = fit_temperature(logits, labels)
    known = KnownScores.of(known_score(logits, temperature), fitted_on)
    return Calibration(temperature, fitted_on, len(labels), known=known)


def _as_zero_shot(bank: FeatureBank, held: list[HeldOut]) -> Calibration:
    """The method is as sure as zero-shot CLIP of images whose classes neither has to offer, and scores known images as
    zero-shot CLIP scores the training images, plus the mean difference of the two on those others.
    """
    fitted_on = "held-out classes"

    def zero_shot(features: Tensor, classes: FeatureBank) -> Tensor:
        return text_logits(features, classes.text_positive, classes.logit_scale)

    own = zero_shot(bank.cache_keys(), bank)
    honest = fit_temperature(own, bank.train_labels)
    ours, clips = [part.logits for part in held], [zero_shot(part.features, part.fitted_to) for part in held]
    temperature = match_confidence(ours, mean_confidence(clips, honest))
    gains = [known_score(z, temperature) - known_score(clip, honest) for z, clip in zip(ours, clips)]
    known = KnownScores.of(known_score(own, honest) + torch.cat(gains).mean(), fitted_on)
    return Calibration(temperature, fitted_on, sum(len(part.labels) for part in held), known=known)
