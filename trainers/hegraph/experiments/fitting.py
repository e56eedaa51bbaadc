"""A method is fitted to a task: HeGraphAdapter, which both hosts train through these functions, or another.

Where a function takes a task and a bank, the bank holds the task's features, on the device that computes.
"""

from __future__ import annotations

import itertools
import logging
import random
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..baselines import OTHERS, load_method
from ..baselines.base import FittedMethod
from ..config import Config
from ..config_files import with_values
from ..features.bank import FeatureBank
from ..method.model import HeGraphModel, TransferableAdapter, build_model
from ..training.batches import TrainingData
from ..training.checkpoints import Checkpoints
from ..training.choice import has_val, val_accuracy, val_images
from ..training.loop import AdapterTraining, TrainingSummary, train_to_end
from ..training.memory import free_bytes, log_large, training_bytes
from ..utils.devices import wait_for
from ..utils.errors import UserError, unknown
from .tasks import Task

logger = logging.getLogger(__name__)

Keep = Callable[[HeGraphModel, int], None]  # writes the model as it is after so many epochs


def fit(task: Task, bank: FeatureBank, checkpoints: Checkpoints, keep: Keep) -> FittedMethod:
    """Fits the method that `TRAINER.NAME` names; the last two are HeGraphAdapter's, see `train_adapter`."""
    if task.cfg.run.trainer in OTHERS:
        return fit_method(task, bank)
    if task.cfg.run.select_on == "val":
        return tune_on_val(task, bank, checkpoints)
    return train_adapter(task, bank, checkpoints, keep)


def fit_method(task: Task, bank: FeatureBank) -> FittedMethod:
    """Fits another method than HeGraphAdapter, without test features at hand; raises UserError if the method needs the
    backbone, and the task is a feature bank.
    """
    method = load_method(task.cfg.run.trainer)
    backbone = task.backbone if method.needs_backbone else None
    if method.needs_backbone and backbone is None:
        raise UserError(
            f"{method.name} learns prompts through the backbone's text tower; give images instead of --features"
        )
    started = time.monotonic()
    base = {"base": task.opened.fitted(task.name, *_fit_base(task, bank))} if method.needs_base else {}
    set_random_seed(task.seed)
    fitted = method.fit(bank.without_test(), task.cfg.method, task.seed, backbone, **base)
    wait_for(bank.train_features.device)
    return replace(fitted, seconds=time.monotonic() - started)


def _fit_base(task: Task, bank: FeatureBank) -> tuple[str, Callable[[], FittedMethod]]:
    """What tells the base of a transductive method from others, and what fits it.

    Raises:
        UserError: If `BASE` names no method that can be one.
    """
    name, cfg = task.cfg.method.BASE, task.cfg
    if name == "ZeroShot":
        return name, lambda: load_method(name).fit(bank, None, task.seed)
    if name != "HeGraphAdapter":
        raise unknown("BASE", name, ("HeGraphAdapter", "ZeroShot"))
    key = repr((task.identity, task.split, task.seed, cfg.model, cfg.training, cfg.encoding, cfg.backbone))
    return key, lambda: train_adapter(task, bank)


def train_adapter(
    task: Task, bank: FeatureBank, checkpoints: Checkpoints | None = None, keep: Keep | None = None
) -> FittedMethod:
    """Builds and trains an adapter, keeps its state and what is left in `checkpoints`, and calls `keep` when
    TRAIN.CHECKPOINT_FREQ asks for the model; None keeps nothing.

    Raises:
        UserError: If a class has no training image, the loss is not finite, or the checkpoint is another run's.
    """
    model = new_model(bank, task.cfg, task.seed)
    return fitted_adapter(model, _train(model, task.batches(bank), task.cfg, checkpoints, keep))


def new_model(bank: FeatureBank, cfg: Config, seed: int) -> HeGraphModel:
    """The untrained adapter of a bank; logs a warning if training it takes much of the free memory. Raises UserError if
    a class has no training image.
    """
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
    torch.manual_seed(seed)
    torch.cuda.manual_seed_all(seed)


def _train(
    model: HeGraphModel,
    data: TrainingData,
    cfg: Config,
    checkpoints: Checkpoints | None = None,
    keep: Keep | None = None,
) -> TrainingSummary:
    """Trains a model in place, from its checkpoint on if there is one, unless its variant has nothing to train."""
    if model.layers is None:
        return TrainingSummary()
    training = AdapterTraining(model, data, cfg.training, checkpoints, keep)
    training.resume()
    summary = train_to_end(training)
    if checkpoints is not None:
        checkpoints.save_adapter(model)
    return summary


def tune_on_val(task: Task, bank: FeatureBank, checkpoints: Checkpoints) -> FittedMethod:
    """Trains every candidate of `TRAINER.HEGRAPHADAPTER.SELECT`, and returns and keeps the one that is best on val.

    Of equals the first wins, in the order of the rows. Candidates whose training would see the same options share it,
    as those of ALPHA_C do, which only weighs predictions.

    Returns:
        The best candidate. Its `selected` holds the keys, the chosen values, and the accuracy of every candidate on val
        in percent; its seconds are those of the whole search.

    Raises:
        UserError: If the task has no val images of its own, nothing is declared to choose from, or a candidate is no
            configuration; all are checked before the first is trained.
    """
    cfg = task.cfg
    if not has_val(bank):
        raise UserError(
            f"{bank.dataset} has no val images besides test, so nothing can be chosen on them; leave out --select val"
        )
    if not cfg.run.select:
        raise UserError("--select val needs TRAINER.HEGRAPHADAPTER.SELECT, rows [KEY, [VALUE, ...]]; it is empty")
    keys = [key for key, _ in cfg.run.select]
    combinations = list(itertools.product(*(values for _, values in cfg.run.select)))
    configurations = [with_values(cfg, dict(zip(keys, values))) for values in combinations]
    data, table, best_on_val, seconds = task.batches(bank), [], -1.0, 0.0
    known: dict[str, tuple[HeGraphModel, TrainingSummary]] = {}
    for values, candidate in zip(combinations, configurations):
        model = new_model(bank, candidate, task.seed)
        seen = repr((candidate.model.in_training, candidate.training))
        if seen in known:
            model.layers = known[seen][0].layers
        else:
            known[seen] = model, _train(model, data, candidate)
            seconds += known[seen][1].seconds
        on_val = val_accuracy(model.fold().logits, bank)
        table.append([list(values), round(on_val, 4)])
        logger.info("%s: %.2f on val", ", ".join(f"{k} {v}" for k, v in zip(keys, values)), on_val)
        if on_val > best_on_val:
            best_on_val, chosen, best, summary = on_val, values, model, known[seen][1]
    checkpoints.save_adapter(best)
    num_val = len(val_images(bank)[1])
    selected = {"keys": keys, "value": list(chosen), "candidates": table, "num_val": num_val}
    return fitted_adapter(best, replace(summary, seconds=seconds), selected)


def fitted_adapter(
    model: HeGraphModel, training: TrainingSummary | None = None, selected: dict | None = None
) -> FittedMethod:
    """An adapter as every method is once it is fitted, with how it was trained and what was chosen on val."""
    training, closed = training or TrainingSummary(), model.closed_form if model.options.has_closed_form else None
    adapted = model.adapt_to_test()
    folded = model.fold(adapted)
    transferable = TransferableAdapter.of(model)
    return FittedMethod(
        folded.logits,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        epochs=training.epochs,
        steps=training.steps,
        seconds=training.seconds,
        selected=selected or {},
        transfer=reach_other_classes(transferable, model.logit_scale),
        classifier=folded,
        transfer_rule="adapter",
        transferable=transferable,
        text_classifier=folded.text_only(),
        variant=model.options.variant,
        text_nodes=None if model.layers is None else (model.x_positive, F.normalize(adapted.positive, dim=-1)),
        class_nodes=None if closed is None else closed.to_text.nodes,
    )


def reach_other_classes(adapter: TransferableAdapter, logit_scale: float) -> Callable[[FeatureBank], Tensor]:
    """What maps a bank of other classes to the logits of its test images, as `FittedMethod.transfer`."""

    def transfer(other: FeatureBank) -> Tensor:
        return adapter.logits(other.features_to_classify, other.text_positive, other.text_negative, logit_scale)

    return transfer
