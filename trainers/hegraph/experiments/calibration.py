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
"""

from __future__ import annotations

import itertools
import logging
import time
from dataclasses import replace

import torch
from torch import Tensor

from ..baselines import METHODS, load_method
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
from .adapter import train_adapter
from .baseline import fit_baseline
from .out_of_fold import Classify, Fit, HeldOut, classify_in_batches, hold_out_classes, hold_out_images
from .outcome import Outcome
from .tasks import Task, TaskOfFeatures

logger = logging.getLogger(__name__)


def calibrated(outcome: Outcome, task: Task, bank: FeatureBank, cfg: Config, seed: int) -> Outcome:
    """An outcome with the temperature of its method; the outcome itself if TRAINER.HEGRAPHADAPTER.CALIBRATE is "off".

    Args:
        outcome: The fitted method.
        task: The task, for a method that needs the backbone.
        bank: The task's features; those of test images are not looked at.
        cfg: The checked configuration.
        seed: The run's seed.
    """
    classify = outcome.classify if outcome.classifier is None else outcome.classifier.logits
    if cfg.run.calibrate == "off" or classify is None:
        return outcome
    started = time.monotonic()
    trains = outcome.training.steps > 0
    found = find_temperature(bank.without_test(), classify, fit_again(task, cfg, seed), trains, seed)
    found = replace(found, seconds=time.monotonic() - started)
    logger.info("temperature %.3f, from %d images (%s)", found.temperature, found.num_images, found.fitted_on)
    return replace(outcome, calibration=found)


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

    def fit(bank: FeatureBank) -> Classify:
        if cfg.run.trainer not in METHODS:
            return train_adapter(TaskOfFeatures(bank, cfg, seed), bank, cfg, seed).model.fold().logits
        return fit_baseline(load_method(cfg.run.trainer), task, bank, cfg, seed).logits

    return fit


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
