"""A method is fitted to a task, and gets its temperature. Both hosts fit through these functions.

Where a function takes a task and a bank, the bank holds the task's features, on the device that computes.

The temperature comes from images that the method was not fitted to, and never from test images (docs/confidence.md).
These are, the first that there is:

1. the few-shot val images;
2. held-out training images, a quarter of each class, or one where there are fewer than four: the method is fitted again
   without them, once if it takes training steps, else without each part in turn;
3. held-out classes, where no class has an image to spare (one shot): the method is fitted to one half of the classes.
   On the images of the other half it is to be as sure as zero-shot CLIP, which has seen neither, among the same classes
   and at the temperature that zero-shot CLIP has on all training images.

The same images tell how images of known classes score (`training/confidence.py`): at one shot, as they do with
zero-shot CLIP, plus what the method adds to its scores on held-out classes.

Shapes: N training images, n held-out ones, K classes, d feature width, B images of a batch.
"""

from __future__ import annotations

import itertools
import logging
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..baselines import ALL_BASELINES, load_method
from ..baselines.base import FittedMethod
from ..config import Config
from ..config_files import candidates
from ..features.bank import FeatureBank
from ..method.cache import text_logits
from ..method.model import HeGraphModel, TransferableAdapter, build_model
from ..training.batches import TrainingData
from ..training.choice import has_val, val_accuracy, val_images
from ..training.confidence import Calibration, calibration_by_zero_shot, calibration_on
from ..training.loop import AdapterTraining, Checkpoints, TrainingSummary, train_to_end
from ..training.memory import free_bytes, log_large, training_bytes
from ..utils.devices import wait_for
from .tasks import FeatureTask, Task

logger = logging.getLogger(__name__)

AGAIN = 1 / 3  # of the steps, where a training goes on from an earlier one
Classify = Callable[[Tensor], Tensor]  # unit-norm image features [B, d] -> logits [B, K]
Fit = Callable[[FeatureBank], Classify]

MOST_FOLDS = 4
BATCH = 1024  # images that a method classifies at once


def fit(task: Task, bank: FeatureBank, checkpoints: Checkpoints) -> FittedMethod:
    """Fits the method that `TRAINER.NAME` names; checkpoints are HeGraphAdapter's, see `train_adapter`."""
    if task.cfg.run.trainer in ALL_BASELINES:
        return fit_method(task, bank)
    if task.cfg.run.select_on == "val":
        return tune_on_val(task, bank, checkpoints)
    return train_adapter(task, bank, checkpoints)


def fit_method(task: Task, bank: FeatureBank) -> FittedMethod:
    """Fits another method than HeGraphAdapter."""
    method = load_method(task.cfg.run.trainer)
    backbone = task.backbone if method.needs_backbone else None
    started, base = time.monotonic(), {}
    if method.needs_base:  # whose predictions a transductive method corrects
        zero_shot = task.cfg.method.BASE == "ZeroShot"
        base["base"] = load_method("ZeroShot").fit(bank, None, task.seed) if zero_shot else train_adapter(task, bank)
    set_random_seed(task.seed)
    fitted = method.fit(bank.without_test(), task.cfg.method, task.seed, backbone, **base)
    wait_for(bank.train_features.device)
    return replace(fitted, seconds=time.monotonic() - started)


def train_adapter(
    task: Task, bank: FeatureBank, checkpoints: Checkpoints | None = None, start: Mapping[str, Tensor] | None = None
) -> FittedMethod:
    """Builds and trains an adapter, and keeps its state and what is left in `checkpoints`; None keeps nothing. From the
    parameters `start` of an earlier training of this variant on similar images it goes on for fewer steps.

    Raises:
        UserError: If a class has no training image, the loss is not finite, or the checkpoint is another run's.
    """
    model, cfg = new_model(bank, task.cfg, task.seed), task.cfg
    if model.layers is not None and start and start.keys() == model.layers.state_dict().keys():
        model.layers.load_state_dict(start)
        epochs, steps = (math.ceil(AGAIN * count) for count in (cfg.training.epochs, cfg.training.min_steps))
        cfg = replace(cfg, training=replace(cfg.training, epochs=epochs, min_steps=steps))
    return fitted_adapter(model, _train(model, task.batches(bank), cfg, checkpoints))


def new_model(bank: FeatureBank, cfg: Config, seed: int) -> HeGraphModel:
    """The untrained adapter of a bank; UserError if a class has no training image. A warning where memory is short."""
    set_random_seed(seed)  # encoding may have drawn from the generators, reading what was encoded does not
    views, num_images, width = bank.train_features.shape
    batch = min(cfg.data.batch_size, num_images)
    parts = training_bytes(len(bank.classnames), num_images, width, views, batch, cfg.model.needs_closed_form)
    log_large(parts, free_bytes(str(bank.train_features.device)))
    return build_model(bank, cfg.model)


def set_random_seed(seed: int) -> None:
    """Seeds Python, numpy and torch, as Dassl does."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # of GPUs, too


def _train(model: HeGraphModel, data: TrainingData, cfg: Config, checkpoints: Checkpoints | None) -> TrainingSummary:
    """Trains a model in place, from its checkpoint on if there is one, unless its variant has nothing to train."""
    if model.layers is None:
        return TrainingSummary()
    training = AdapterTraining(model, data, cfg.training, checkpoints)
    training.resume()
    summary = train_to_end(training)
    if checkpoints is not None:
        checkpoints.save_adapter(model)
    return summary


def tune_on_val(task: Task, bank: FeatureBank, checkpoints: Checkpoints) -> FittedMethod:
    """Trains every candidate of SELECT, and returns and keeps the one that is best on val, of equals the first, with
    the seconds of the whole search. Candidates whose training would see the same options share it, as those of ALPHA_C
    do, which weighs predictions. The bank has val images, and SELECT has rows (`checks.check_training`).
    """
    cfg = task.cfg
    keys = [key for key, _ in cfg.run.select]
    data, table, best_on_val = task.batches(bank), [], -1.0
    known: dict[str, tuple[HeGraphModel, TrainingSummary]] = {}
    for values, candidate in candidates(cfg):
        model = new_model(bank, candidate, task.seed)
        seen = repr((candidate.model.in_training, candidate.training))
        if seen in known:
            model.layers = known[seen][0].layers
        else:
            known[seen] = model, _train(model, data, candidate, None)
        on_val = val_accuracy(model.fold().logits, bank)
        table.append([list(values), round(on_val, 4)])
        logger.info("%s: %.2f on val", ", ".join(f"{k} {v}" for k, v in zip(keys, values)), on_val)
        if on_val > best_on_val:
            best_on_val, chosen, best, summary = on_val, values, model, known[seen][1]
    checkpoints.save_adapter(best)
    seconds = sum(training.seconds for _, training in known.values())
    selected = {"keys": keys, "value": list(chosen), "candidates": table, "num_val": len(val_images(bank)[1])}
    return fitted_adapter(best, replace(summary, seconds=seconds), selected)


def fitted_adapter(
    model: HeGraphModel, training: TrainingSummary | None = None, selected: dict | None = None
) -> FittedMethod:
    """Return a trained adapter as a fitted method, with its training and the values selected on val."""
    training, closed = training or TrainingSummary(), model.closed_form if model.options.has_closed_form else None
    adapted = model.adapt_to_test()
    folded = model.fold(adapted)
    return FittedMethod(
        folded.logits,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        epochs=training.epochs,
        steps=training.steps,
        seconds=training.seconds,
        selected=selected or {},
        transfer=TransferableAdapter.of(model),
        classifier=folded,
        variant=model.options.variant,
        text_nodes=None if model.layers is None else (model.x_positive, F.normalize(adapted.positive, dim=-1)),
        state={} if model.layers is None else {k: v.detach().cpu() for k, v in model.layers.state_dict().items()},
        class_nodes=None if closed is None else closed.to_text.nodes,
    )


# The temperature


HeldOut = tuple[
    FeatureBank, Tensor
]  # a bank without some training images, and which of the whole bank's these are, [N]


def without_images(bank: FeatureBank, seed: int) -> Iterator[HeldOut]:
    """Leaves out a part of the images of every class, then another part, until each was left out once."""
    folds = assign_folds(bank.train_labels, seed)
    for fold in range(int(folds.max()) + 1):
        held = folds == fold
        yield replace(bank, train_features=bank.train_features[:, ~held], train_labels=bank.train_labels[~held]), held


def without_classes(bank: FeatureBank, seed: int) -> Iterator[HeldOut]:
    """Leaves out one half of the classes, then the other half; none of fewer than four classes."""
    classes = list(range(len(bank.classnames)))
    if len(classes) < 4:
        return
    random.Random(seed).shuffle(classes)
    for known in (classes[0::2], classes[1::2]):
        held = ~torch.isin(bank.train_labels.cpu(), torch.tensor(known)).to(bank.train_labels.device)
        yield bank.of_classes(torch.tensor(sorted(known))), held


def assign_folds(labels: Tensor, seed: int) -> Tensor:
    """The fold of every training image, `[N]`: as many as the largest class has images, at most `MOST_FOLDS`. The
    images of a class are dealt in an order that the seed decides; the only one of a class has the fold -1, and stays.
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
    """A method that was fitted to the bank of a task, with its temperature, unless CALIBRATE is "off"."""
    cfg, seed = task.cfg, task.seed
    if cfg.run.calibrate == "off" or fitted.transductive:
        return fitted

    def fit_again(part: FeatureBank) -> Classify:
        if cfg.run.trainer in ALL_BASELINES:
            return fit_method(task, part).logits
        return train_adapter(FeatureTask(part, cfg, seed), part).logits

    started = time.monotonic()
    classify = fitted.logits if fitted.classifier is None else fitted.classifier.logits
    found = find_temperature(bank.without_test(), classify, fit_again, fitted.steps > 0, seed)
    found = replace(found, seconds=time.monotonic() - started)
    logger.info("temperature %.3f, from %d images (%s)", found.temperature, found.num_images, found.fitted_on)
    return replace(fitted, calibration=found)


def find_temperature(bank: FeatureBank, classify: Classify, fit: Fit, trains: bool, seed: int) -> Calibration:
    """The temperature by the rules above, of a method that was fitted to all of a bank without test images.

    `fit` fits the method to a part of the bank, once only if it `trains`, which takes training steps. The seed decides
    what is held out.
    """
    if has_val(bank):
        features, labels = val_images(bank)
        return calibration_on(classify_in_batches(classify, features), labels, "val")
    keys, most = bank.cache_keys(), 1 if trains else None
    if parts := list(itertools.islice(without_images(bank, seed), most)):
        logits = torch.cat([classify_in_batches(fit(rest), keys[held]) for rest, held in parts])
        return calibration_on(logits, torch.cat([bank.train_labels[held] for _, held in parts]), "held-out images")
    if parts := list(itertools.islice(without_classes(bank, seed), most)):
        held_out = [classify_in_batches(fit(rest), keys[held]) for rest, held in parts]
        held_out_clip = [text_logits(keys[held], rest.text_positive, rest.logit_scale) for rest, held in parts]
        train_clip = text_logits(keys, bank.text_positive, bank.logit_scale)
        return calibration_by_zero_shot(held_out, held_out_clip, train_clip, bank.train_labels)
    return Calibration()
