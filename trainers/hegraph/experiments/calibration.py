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
they do with zero-shot CLIP, plus what the method adds to its scores on held-out classes. `docs/confidence.md` says what
these rules were compared with.

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

from ..baselines import OTHERS
from ..baselines.base import FittedMethod
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
    """A part of the training images, and what a classifier says of them that was fitted to the rest.

    Attributes:
        fitted_to: What the classifier was fitted to. It holds K' <= K classes.
        features: Of the held-out images, `[n, d]`.
        labels: Their labels among the K classes, `[n]`.
        logits: Of the held-out images for the classes of `fitted_to`, `[n, K']`.
    """

    fitted_to: FeatureBank
    features: Tensor
    labels: Tensor
    logits: Tensor

    @classmethod
    def of(cls, bank: FeatureBank, held: Tensor, rest: FeatureBank, fit: Fit) -> HeldOut:
        """Fits a method to the rest of a bank; `held` tells which of its images are held out, booleans `[N]`."""
        features = bank.cache_keys()[held]
        return cls(rest, features, bank.train_labels[held], classify_in_batches(fit(rest), features))


def hold_out_images(bank: FeatureBank, fit: Fit, seed: int) -> Iterator[HeldOut]:
    """Holds out a part of the images of every class, then another part, until each was held out once.

    The bank has no test images, and `fit` fits the method to a part of it. The seed decides what is held out.
    """
    folds = assign_folds(bank.train_labels, seed)
    for fold in range(int(folds.max()) + 1):
        held = folds == fold
        rest = replace(bank, train_features=bank.train_features[:, ~held], train_labels=bank.train_labels[~held])
        yield HeldOut.of(bank, held, rest, fit)


def hold_out_classes(bank: FeatureBank, fit: Fit, seed: int) -> Iterator[HeldOut]:
    """Holds out all images of one half of the classes, then those of the other half; none of fewer than four classes.

    The method is fitted to the classes of the rest, and knows no others. Arguments as of `hold_out_images`.
    """
    classes = list(range(len(bank.classnames)))
    if len(classes) < 4:
        return
    random.Random(seed).shuffle(classes)
    for known in (classes[0::2], classes[1::2]):
        held = ~torch.isin(bank.train_labels.cpu(), torch.tensor(known)).to(bank.train_labels.device)
        yield HeldOut.of(bank, held, bank.of_classes(torch.tensor(sorted(known))), fit)


def assign_folds(labels: Tensor, seed: int) -> Tensor:
    """The fold of every training image, `[N]`: as many as the largest class has images, at most `MOST_FOLDS`.

    The images of a class are dealt to the folds in an order that the seed decides. The only image of a class is never
    held out: its fold is -1.
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


def calibrated(fitted: FittedMethod, task: Task, bank: FeatureBank) -> FittedMethod:
    """A method that was fitted to the bank of a task, with its temperature; the method as it is if
    TRAINER.HEGRAPHADAPTER.CALIBRATE is "off". Features of test images are not looked at.
    """
    cfg, seed = task.cfg, task.seed
    if cfg.run.calibrate == "off" or fitted.together:
        return fitted

    def fit_again(part: FeatureBank) -> Classify:
        if cfg.run.trainer in OTHERS:
            return fit_method(task, part).logits
        return train_adapter(FeatureTask(part, cfg, seed), part).logits

    started = time.monotonic()
    classify = fitted.logits if fitted.classifier is None else fitted.classifier.logits
    found = find_temperature(bank.without_test(), classify, fit_again, fitted.steps > 0, seed)
    found = replace(found, seconds=time.monotonic() - started)
    logger.info("temperature %.3f, from %d images (%s)", found.temperature, found.num_images, found.fitted_on)
    return replace(fitted, calibration=found)


def find_temperature(bank: FeatureBank, classify: Classify, fit: Fit, trains: bool, seed: int) -> Calibration:
    """The temperature by the rules above, of a method that was fitted to all of a bank; `trains` says whether it takes
    training steps, and so is done once only. Other arguments as of `hold_out_images`.
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
