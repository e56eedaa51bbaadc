"""Calibration of a fitted method.

The temperature is fitted on images that the method was not fitted to, and never on test images (see
docs/guides/confidence.md).
The first of these sources that exists is used:

1. the few-shot val images;
2. held-out training images, a quarter of each class, or one image of a class with fewer than four. The method is fitted
   again without them: once if it takes training steps, else once for each part;
3. held-out classes, if no class has two images (one shot). The method is fitted to one half of the classes. On images
   of the other half, its mean confidence matches that of zero-shot CLIP among the same classes. The temperature of
   zero-shot CLIP is fitted on all training images. Without class texts, no temperature is fitted.

Where some classes have far fewer images than others, every class counts equally, and classes with several images stand
for those with one (`stand_ins.py`). If they are too few for that, the rule of one shot applies.

The same images give the scores of known classes (`method/training/confidence.py`). At one shot these are the scores of
zero-shot CLIP, plus the difference between the method and zero-shot CLIP on the held-out classes.

Shapes: N training images, n held-out images, K classes, d feature width, B images of a batch.
"""

import itertools
import logging
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ..baselines.base import FittedMethod
from ..datasets.groups import NOT_HELD_OUT, balanced_folds
from ..features.bank import FeatureBank, mean_over_views
from ..method.cache import QUERY_BATCH, text_logits
from ..method.mean_text import with_own_nodes
from ..method.training.choice import has_val, val_images
from ..method.training.confidence import Calibration, calibration_by_zero_shot, calibration_on
from ..utils.errors import UserError
from .fitting import fit_part
from .stand_ins import held_out_with_stand_ins, single_classes, small_classes, too_few_to_stand_in, weights_of_held_out
from .tasks import Task

logger = logging.getLogger(__name__)

FEWEST_CLASSES = 4  # of which two can be held out

Classify = Callable[[Tensor], Tensor]  # unit-norm image features [B, d] -> logits [B, K]
Fit = Callable[[FeatureBank], Classify]
Part = tuple[FeatureBank, Tensor]  # bank without the held-out training images, and the mask of these images, [N]


def calibrate(fitted: FittedMethod, task: Task, bank: FeatureBank) -> FittedMethod:
    """Calibrate a fitted method on images that it was not fitted to; return a copy with the calibration.

    The method itself is returned if it is transductive, CALIBRATE is "off", or images have several labels.

    Args:
        fitted: Result of `fit`.
        task: The task that it was fitted to.
        bank: The features of the task, on the device of the computation.

    Raises:
        UserError: If the method is inductive and predicts NaN or infinite logits for the first training images.
            This is checked without calibration as well.
    """
    if fitted.transductive:
        return fitted
    classify_in_batches(fitted.logits, mean_over_views(bank.train_features[:, :QUERY_BATCH]))
    if task.cfg.run.calibrate == "off" or bank.multilabel:
        return fitted
    started = time.monotonic()
    classify = fitted.logits if fitted.classifier is None else fitted.classifier.logits
    result = fit_calibration(
        bank.without_test(), classify, lambda part: fit_part(task, part, bank).logits, fitted.steps > 0, task.seed
    )
    return replace(fitted, calibration=replace(result, seconds=time.monotonic() - started))


def log_calibration(calibration: Calibration) -> None:
    """Log the temperature of a calibration, or that there were too few images for a fit."""
    if calibration.num_images:
        parts = calibration.num_images, calibration.fitted_on, calibration.temperature
        logger.info("calibrated the probabilities on %d images (%s): temperature %.3f", *parts)
    elif calibration.seconds:
        logger.info(
            "the probabilities are not calibrated: this needs a class with two training images, or four classes"
        )


def fit_calibration(bank: FeatureBank, classify: Classify, fit_again: Fit, trains: bool, seed: int) -> Calibration:
    """Fit the temperature of a method on val images, else on training images or classes that are held out.

    Args:
        bank: Bank without test images, which the method was fitted to.
        classify: The method.
        fit_again: Fits the method to a part of the bank.
        trains: Whether the method takes training steps, so that it is fitted again only once.
        seed: Seed of the held-out images or classes.
    """
    if has_val(bank):
        return calibrate_on_val(bank, classify)
    max_parts = 1 if trains else None
    folds = assign_folds(bank.train_labels, seed, bank.train_groups)
    single = single_classes(bank.train_labels, folds, len(bank.classnames))
    has_several = bool((folds != NOT_HELD_OUT).any())
    can_hold_out_classes = bank.has_text and len(bank.classnames) >= FEWEST_CLASSES
    as_one_shot = can_hold_out_classes and too_few_to_stand_in(bank.train_labels, single)
    if has_several and not as_one_shot and small_classes(bank.train_labels, single).any():
        return calibrate_unequal(bank, fit_again, folds, single, trains, seed)
    if has_several and not as_one_shot:
        return calibrate_on_images(bank, fit_again, max_parts, seed)
    if not bank.has_text:  # without zero-shot CLIP, nothing classifies the only image of a class
        return Calibration()
    return calibrate_on_classes(bank, fit_again, max_parts, seed)


def calibrate_on_val(bank: FeatureBank, classify: Classify) -> Calibration:
    """Calibrate a method on the val images of its bank."""
    features, labels = val_images(bank)
    logits = classify_in_batches(classify, features)
    single = bank.train_labels.bincount(minlength=len(bank.classnames)) == 1
    small = small_classes(bank.train_labels, single)
    if not small.any():
        return calibration_on(logits, labels, "val")
    weights = weights_of_held_out(labels, torch.zeros_like(labels, dtype=torch.bool), 0)
    return calibration_of_unequal(logits, labels, weights, small[labels], small, "val")


def calibrate_on_images(bank: FeatureBank, fit_again: Fit, max_parts: int | None, seed: int) -> Calibration:
    """Calibrate a method on held-out images of classes with several images each."""
    keys = bank.cache_keys()
    parts = list(itertools.islice(without_images(bank, seed), max_parts))
    logits = torch.cat([classify_in_batches(fit_again(rest), keys[mask]) for rest, mask in parts])
    return calibration_on(logits, torch.cat([bank.train_labels[mask] for _, mask in parts]), "held-out images")


def calibrate_unequal(
    bank: FeatureBank, fit_again: Fit, folds: Tensor, single: Tensor, trains: bool, seed: int
) -> Calibration:
    """Calibrate a method on held-out images of unequal classes, some of which stand for those with a single image.

    Args:
        bank, fit_again, trains, seed: As for `fit_calibration`. With training steps and single images, the method is
            fitted twice.
        folds: Folds of the training images, shape `[N]`.
        single: Classes whose images are never held out, booleans of shape `[K]`.
    """
    keys = bank.cache_keys()
    is_needed = bool(single.any())
    fits = 2 if is_needed else 1
    logits = []
    labels = []
    of_stand_ins = []
    parts = held_out_with_stand_ins(bank.train_labels, folds, bank.train_groups, seed, is_needed)
    for held_out in itertools.islice(parts, fits if trains else None):
        rest = rest_of(bank, held_out.mask)
        logits.append(classify_in_batches(fit_again(rest), keys[held_out.mask]))
        labels.append(bank.train_labels[held_out.mask])
        of_stand_ins.append(held_out.of_stand_ins[held_out.mask])
    true = torch.cat(labels)
    standing = torch.cat(of_stand_ins)
    weights = weights_of_held_out(true, standing, int(single.sum()))
    small = small_classes(bank.train_labels, single)
    return calibration_of_unequal(torch.cat(logits), true, weights, standing | small[true], small, "held-out images")


def calibration_of_unequal(
    logits: Tensor, labels: Tensor, weights: Tensor, of_small: Tensor, small: Tensor, fitted_on: str
) -> Calibration:
    """Return the calibration on held-out images where each class counts equally.

    Args:
        logits, labels, weights: Logits `[n, K]`, classes `[n]` and weights `[n]` of the images.
        of_small: Images of small classes, or that stand for them, booleans of shape `[n]`.
        small: Small classes, booleans of shape `[K]`.
        fitted_on: Source of the images.
    """
    if not of_small.any() or of_small.all():
        return calibration_on(logits, labels, fitted_on, weights)
    few = tuple(small.nonzero()[:, 0].tolist())
    return calibration_on(logits, labels, fitted_on, weights, few, of_small)


def calibrate_on_classes(bank: FeatureBank, fit_again: Fit, max_parts: int | None, seed: int) -> Calibration:
    """Calibrate a method on held-out classes; with fewer than four classes, the result is that of no calibration."""
    keys = bank.cache_keys()
    parts = list(itertools.islice(without_classes(bank, seed), max_parts))
    if not parts:
        return Calibration()
    logits_of_parts = [classify_in_batches(fit_again(rest), keys[mask]) for rest, mask in parts]
    clip_of_parts = [text_logits(keys[mask], rest.text_positive, rest.logit_scale) for rest, mask in parts]
    train_clip = text_logits(keys, bank.text_positive, bank.logit_scale)
    return calibration_by_zero_shot(logits_of_parts, clip_of_parts, train_clip, bank.train_labels)


def without_images(bank: FeatureBank, seed: int) -> Iterator[Part]:
    """Hold out one part of the images of every class after another, until each image was held out once."""
    folds = assign_folds(bank.train_labels, seed, bank.train_groups)
    for fold in range(int(folds.max()) + 1):
        mask = folds == fold
        yield rest_of(bank, mask), mask


def rest_of(bank: FeatureBank, held_out: Tensor) -> FeatureBank:
    """Return the bank without the training images of a mask `[N]`."""
    groups = None if bank.train_groups is None else bank.train_groups[~held_out]
    features = bank.train_features[:, ~held_out]
    labels = bank.train_labels[~held_out]
    return with_own_nodes(replace(bank, train_features=features, train_labels=labels, train_groups=groups))


def without_classes(bank: FeatureBank, seed: int) -> Iterator[Part]:
    """Hold out one half of the classes, then the other half; nothing if there are fewer than four classes."""
    classes = list(range(len(bank.classnames)))
    if len(classes) < FEWEST_CLASSES:
        return
    random.Random(seed).shuffle(classes)
    for known in (classes[0::2], classes[1::2]):
        mask = ~torch.isin(bank.train_labels.cpu(), torch.tensor(known)).to(bank.train_labels.device)
        yield bank.of_classes(torch.tensor(sorted(known))), mask


def assign_folds(labels: Tensor, seed: int, groups: Tensor | None = None) -> Tensor:
    """Return the fold of every training image, `[N]`; -1 for the only image of a class, which is never held out.

    The folds are `datasets.groups.balanced_folds` of images with labels and groups `[N]`.
    """
    folds = balanced_folds(labels.tolist(), None if groups is None else groups.tolist(), seed)
    return torch.tensor(folds, device=labels.device)


@torch.no_grad()
def classify_in_batches(classify: Classify, features: Tensor) -> Tensor:
    """Return the logits `[n, K]` of features `[n, d]`, computed in batches; UserError if one is not finite."""
    logits = torch.cat([classify(batch) for batch in features.split(QUERY_BATCH)])
    check_finite(logits)
    return logits


def check_finite(logits: Tensor) -> None:
    """Raise UserError if a logit is NaN or infinite, as options far from their defaults can make it."""
    if not logits.isfinite().all():
        problem = "the method predicts NaN or infinite logits"
        raise UserError(f"{problem}; lower its learning rate and options far above their defaults", "logits.finite")
