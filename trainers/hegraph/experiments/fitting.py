"""Fitting of a method to a task, and calibration of its logits, for both runners.

Where a function takes a task and a bank, the bank holds the features of the task, on the device of the computation.

The temperature is fitted on images that the method was not fitted to, and never on test images (see
docs/guides/confidence.md).
The first of these sources that exists is used:

1. the few-shot val images;
2. held-out training images, a quarter of each class, or one image of a class with fewer than four. The method is fitted
   again without them: once if it takes training steps, else once for each part;
3. held-out classes, if no class has two images (one shot). The method is fitted to one half of the classes. On images
   of the other half, its mean confidence matches that of zero-shot CLIP among the same classes. The temperature of
   zero-shot CLIP is fitted on all training images.

The same images give the scores of known classes (`method/training/confidence.py`). At one shot these are the scores of
zero-shot CLIP, plus the difference between the method and zero-shot CLIP on the held-out classes.

Shapes: N training images, n held-out images, K classes, d feature width, B images of a batch.
"""

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
from ..baselines.base import FittedMethod, largest_class
from ..config import Config
from ..config_files import candidates
from ..features.bank import FeatureBank, mean_over_views
from ..method.cache import text_logits
from ..method.model import HeGraphModel, TransferableAdapter, build_model
from ..method.multilabel import MultiLabelHead
from ..method.training.batches import TrainingData
from ..method.training.choice import has_val, val_accuracy, val_images
from ..method.training.confidence import Calibration, calibration_by_zero_shot, calibration_on
from ..method.training.loop import AdapterTraining, Checkpoints, TrainingSummary, train_to_end
from ..method.training.memory import free_bytes, log_large, training_bytes
from ..utils.devices import wait_for
from ..utils.errors import UserError
from .tasks import FeatureTask, Task

logger = logging.getLogger(__name__)

RESTART_RATIO = 1 / 3  # fraction of the steps of a training that starts from earlier parameters
Classify = Callable[[Tensor], Tensor]  # unit-norm image features [B, d] -> logits [B, K]
Fit = Callable[[FeatureBank], Classify]

MAX_FOLDS = 4
BATCH = 1024  # images classified at once


def fit(task: Task, bank: FeatureBank, checkpoints: Checkpoints) -> FittedMethod:
    """Fit the method that `TRAINER.NAME` names; only HeGraphAdapter writes checkpoints."""
    if task.cfg.run.trainer in ALL_BASELINES:
        return fit_method(task, bank)
    if bank.multilabel:
        return fit_multilabel(bank)
    if task.cfg.run.select_on == "val":
        return tune_on_val(task, bank, checkpoints)
    return train_adapter(task, bank, checkpoints)


def fit_method(task: Task, bank: FeatureBank) -> FittedMethod:
    """Fit a method other than HeGraphAdapter."""
    method = load_method(task.cfg.run.trainer)
    backbone = task.backbone if method.needs_backbone else None
    started, base = time.monotonic(), {}
    if method.needs_base:  # a transductive method corrects the predictions of its base
        zero_shot = task.cfg.method.base == "ZeroShot"
        base["base"] = load_method("ZeroShot").fit(bank, None, task.seed) if zero_shot else train_adapter(task, bank)
    set_random_seed(task.seed)
    options = task.cfg.method_for(bank.dataset, largest_class(bank))
    fitted = method.fit(bank.without_test(), options, task.seed, backbone, **base)
    wait_for(bank.train_features.device)
    return replace(fitted, seconds=time.monotonic() - started)


def fit_multilabel(bank: FeatureBank, with_text: bool = True) -> FittedMethod:
    """Fit the head for several labels per image, HeGraphAdapter's only part that supports them."""
    started = time.monotonic()
    head = MultiLabelHead(bank.cache_keys(), bank.train_labels, bank.text_positive if with_text else None)
    return FittedMethod(
        head.classifier.logits,
        classifier=head.classifier,
        variant="training_free",
        thresholds=head.log_odds(head.thresholds).float(),
        seconds=time.monotonic() - started,
    )


def train_adapter(
    task: Task, bank: FeatureBank, checkpoints: Checkpoints | None = None, start: Mapping[str, Tensor] | None = None
) -> FittedMethod:
    """Build and train an adapter.

    Args:
        checkpoints: Checkpoints to resume from and to write; None writes none.
        start: Parameters of an earlier training of the same variant on similar images, which shorten the training.

    Raises:
        UserError: If a class has no training image, the loss is not finite, or the checkpoint is of another run.
    """
    model, cfg = new_model(bank, task.cfg, task.seed), task.cfg
    if model.layers is not None and start and start.keys() == model.layers.state_dict().keys():
        model.layers.load_state_dict(start)
        epochs, steps = (math.ceil(RESTART_RATIO * count) for count in (cfg.training.epochs, cfg.training.min_steps))
        cfg = replace(cfg, training=replace(cfg.training, epochs=epochs, min_steps=steps))
    return fitted_adapter(model, _train(model, task.batches(bank), cfg, checkpoints))


def new_model(bank: FeatureBank, cfg: Config, seed: int) -> HeGraphModel:
    """Return the untrained adapter of a bank; warn if memory is short.

    Raises:
        UserError: If a class has no training image.
    """
    set_random_seed(seed)  # encoding uses the random generators, reading encoded features does not
    views, num_images, width = bank.train_features.shape
    batch = min(cfg.data.batch_size, num_images)
    parts = training_bytes(len(bank.classnames), num_images, width, views, batch, cfg.model.needs_closed_form)
    log_large(parts, free_bytes(str(bank.train_features.device)))
    return build_model(bank, cfg.model)


def set_random_seed(seed: int) -> None:
    """Seed Python, numpy and torch, as Dassl does."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # seeds GPUs as well


def _train(model: HeGraphModel, data: TrainingData, cfg: Config, checkpoints: Checkpoints | None) -> TrainingSummary:
    """Train a model in place, from its checkpoint if there is one; a training-free variant is not trained."""
    if model.layers is None:
        return TrainingSummary()
    training = AdapterTraining(model, data, cfg.training, checkpoints)
    training.resume()
    summary = train_to_end(training)
    if checkpoints is not None:
        checkpoints.save_adapter(model)
    return summary


def tune_on_val(task: Task, bank: FeatureBank, checkpoints: Checkpoints) -> FittedMethod:
    """Train every candidate of SELECT; save and return the best on val, with the time of the whole search.

    The first of equally good candidates wins. Candidates with the same training options share one training: ALPHA_C,
    for example, only weighs predictions. `checks.check_training` ensures that there are val images and candidates.
    """
    cfg = task.cfg
    keys = [key for key, _ in cfg.run.select]
    data, table, best_on_val = task.batches(bank), [], -1.0
    trained: dict[str, tuple[HeGraphModel, TrainingSummary]] = {}
    for values, candidate in candidates(cfg):
        model = new_model(bank, candidate, task.seed)
        options = repr((candidate.model.in_training, candidate.training))
        if options in trained:
            model.layers = trained[options][0].layers
        else:
            trained[options] = model, _train(model, data, candidate, None)
        on_val = val_accuracy(model.fold().logits, bank)
        table.append([list(values), round(on_val, 4)])
        logger.info("%s: %.2f on val", ", ".join(f"{k} {v}" for k, v in zip(keys, values)), on_val)
        if on_val > best_on_val:
            best_on_val, chosen, best, summary = on_val, values, model, trained[options][1]
    checkpoints.save_adapter(best)
    seconds = sum(training.seconds for _, training in trained.values())
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


# Calibration

Part = tuple[FeatureBank, Tensor]  # bank without the held-out training images, and the mask of these images, [N]


def without_images(bank: FeatureBank, seed: int) -> Iterator[Part]:
    """Hold out one part of the images of every class after another, until each image was held out once."""
    folds = assign_folds(bank.train_labels, seed)
    for fold in range(int(folds.max()) + 1):
        mask = folds == fold
        yield replace(bank, train_features=bank.train_features[:, ~mask], train_labels=bank.train_labels[~mask]), mask


def without_classes(bank: FeatureBank, seed: int) -> Iterator[Part]:
    """Hold out one half of the classes, then the other half; nothing if there are fewer than four classes."""
    classes = list(range(len(bank.classnames)))
    if len(classes) < 4:
        return
    random.Random(seed).shuffle(classes)
    for known in (classes[0::2], classes[1::2]):
        mask = ~torch.isin(bank.train_labels.cpu(), torch.tensor(known)).to(bank.train_labels.device)
        yield bank.of_classes(torch.tensor(sorted(known))), mask


def assign_folds(labels: Tensor, seed: int) -> Tensor:
    """Return the fold of every training image, `[N]`; -1 for the only image of a class, which is never held out.

    The number of folds is the number of images of the largest class, at most `MAX_FOLDS`.
    """
    generator = random.Random(seed)
    on_cpu = labels.cpu()  # one copy for all classes
    folds = torch.full((len(on_cpu),), -1)
    count = min(int(on_cpu.bincount().max()), MAX_FOLDS)
    for label in on_cpu.unique().tolist():
        images = (on_cpu == label).nonzero().flatten().tolist()
        generator.shuffle(images)
        if len(images) > 1:
            folds[images] = torch.arange(len(images)) % count
    return folds.to(labels.device)


@torch.no_grad()
def classify_in_batches(classify: Classify, features: Tensor) -> Tensor:
    """Return the logits `[n, K]` of features `[n, d]`, computed in batches; errors as of `check_finite`."""
    logits = torch.cat([classify(batch) for batch in features.split(BATCH)])
    check_finite(logits)
    return logits


def check_finite(logits: Tensor) -> None:
    """Raise UserError if a logit is NaN or infinite, as options far from their defaults can make it."""
    if not logits.isfinite().all():
        problem = "the method predicts NaN or infinite logits"
        raise UserError(f"{problem}; lower its learning rate and options far above their defaults", "logits.finite")


def calibrate_method(fitted: FittedMethod, task: Task, bank: FeatureBank) -> FittedMethod:
    """Calibrate a fitted method on its training images; return a copy with the calibration.

    The method itself is returned if it is transductive, CALIBRATE is "off", or images have several labels.

    Raises:
        UserError: If the method is inductive and predicts NaN or infinite logits for the first `BATCH` training images.
            This is checked without calibration as well.
    """
    cfg, seed = task.cfg, task.seed
    if fitted.transductive:
        return fitted
    classify_in_batches(fitted.logits, mean_over_views(bank.train_features[:, :BATCH]))
    if cfg.run.calibrate == "off" or bank.multilabel:
        return fitted

    def fit_again(part: FeatureBank) -> Classify:
        if cfg.run.trainer in ALL_BASELINES:
            return fit_method(task, part).logits
        return train_adapter(FeatureTask(part, cfg, seed), part).logits

    started = time.monotonic()
    classify = fitted.logits if fitted.classifier is None else fitted.classifier.logits
    result = calibrate(bank.without_test(), classify, fit_again, fitted.steps > 0, seed)
    return replace(fitted, calibration=replace(result, seconds=time.monotonic() - started))


def log_calibration(calibration: Calibration) -> None:
    """Log the temperature that `calibrated` fitted, or that it had too few images for a fit."""
    if calibration.num_images:
        parts = calibration.temperature, calibration.num_images, calibration.fitted_on
        logger.info("temperature %.3f, from %d images (%s)", *parts)
    elif calibration.seconds:
        logger.info("no temperature is fitted, which needs a class with two training images, or four classes")


def calibrate(bank: FeatureBank, classify: Classify, fit_again: Fit, trains: bool, seed: int) -> Calibration:
    """Fit the temperature of a method on val images, else on training images or classes that are held out.

    Args:
        bank: Bank without test images, which the method was fitted to.
        classify: The method.
        fit_again: Fits the method to a part of the bank.
        trains: Whether the method takes training steps, so that it is fitted again only once.
        seed: Seed of the held-out images or classes.
    """
    if has_val(bank):
        features, labels = val_images(bank)
        return calibration_on(classify_in_batches(classify, features), labels, "val")
    keys, max_parts = bank.cache_keys(), 1 if trains else None
    if parts := list(itertools.islice(without_images(bank, seed), max_parts)):
        logits = torch.cat([classify_in_batches(fit_again(rest), keys[mask]) for rest, mask in parts])
        return calibration_on(logits, torch.cat([bank.train_labels[mask] for _, mask in parts]), "held-out images")
    if parts := list(itertools.islice(without_classes(bank, seed), max_parts)):
        logits_of_parts = [classify_in_batches(fit_again(rest), keys[mask]) for rest, mask in parts]
        clip_of_parts = [text_logits(keys[mask], rest.text_positive, rest.logit_scale) for rest, mask in parts]
        train_clip = text_logits(keys, bank.text_positive, bank.logit_scale)
        return calibration_by_zero_shot(logits_of_parts, clip_of_parts, train_clip, bank.train_labels)
    return Calibration()
