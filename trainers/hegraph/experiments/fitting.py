"""A method is fitted to a task: HeGraphAdapter, which both hosts train through these functions, or another."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch.nn.functional as F
from torch import Tensor

from ..baselines import METHODS, load_method
from ..baselines.base import FittedMethod
from ..config import Config
from ..config_files import with_values
from ..features.bank import FeatureBank
from ..method.model import HeGraphModel, build_model
from ..method.options import ModelOptions
from ..method.transfer import TransferableAdapter
from ..training.batches import TrainingData
from ..training.checkpoints import Checkpoints
from ..training.choice import has_val, val_accuracy
from ..training.loop import AdapterTraining, TrainingSummary, train_to_end
from ..training.memory import free_bytes, log_large, training_bytes
from ..training.options import TrainingOptions
from ..utils.devices import wait_for
from ..utils.errors import UserError
from .provenance import set_random_seed
from .tasks import Task

logger = logging.getLogger(__name__)

Keep = Callable[[HeGraphModel, int], None]


@dataclass(frozen=True)
class TrainedAdapter:
    """A trained adapter.

    Attributes:
        model: The model with its trained parameters.
        training: How long training took.
        selected: What was chosen on the few-shot val split; {} if nothing was.
    """

    model: HeGraphModel
    training: TrainingSummary = field(default_factory=TrainingSummary)
    selected: dict = field(default_factory=dict)


def fit(
    task: Task,
    bank: FeatureBank,
    cfg: Config,
    seed: int,
    checkpoints: Checkpoints | None = None,
    keep: Keep | None = None,
) -> FittedMethod:
    """Fits the method that `TRAINER.NAME` names; arguments as of `train_adapter`, the last two for HeGraphAdapter.

    Raises:
        UserError: As `fit_method`, `tune_on_val` and `train_adapter`.
    """
    if cfg.run.trainer in METHODS:
        return fit_method(task, bank, cfg, seed)
    if cfg.run.select_on != "val" or checkpoints is None:
        return fitted_adapter(train_adapter(task, bank, cfg, seed, checkpoints, keep))
    trained = tune_on_val(task, bank, cfg, seed)
    checkpoints.save_adapter(trained.model)
    return fitted_adapter(trained)


def fit_method(task: Task, bank: FeatureBank, cfg: Config, seed: int) -> FittedMethod:
    """Fits another method than HeGraphAdapter, without test features at hand.

    Raises:
        UserError: If the method needs the backbone, and the task is a feature bank.
    """
    method = load_method(cfg.run.trainer)
    backbone = task.backbone if method.needs_backbone else None
    if method.needs_backbone and backbone is None:
        raise UserError(
            f"{method.name} learns prompts through the backbone's text tower; give images instead of --features"
        )
    started = time.monotonic()
    set_random_seed(seed)
    fitted = method.fit(bank.without_test(), cfg.method, seed, backbone)
    wait_for(bank.train_features.device)
    return replace(fitted, seconds=time.monotonic() - started)


def new_model(bank: FeatureBank, cfg: Config, seed: int) -> HeGraphModel:
    """The untrained adapter of a task, on the device of its features.

    Logs a warning if training it takes much of the free memory.

    Raises:
        UserError: If a class has no training image.
    """
    set_random_seed(seed)  # encoding may have drawn from the generators, reading what was encoded does not
    views, num_images, width = bank.train_features.shape
    batch = min(cfg.data.batch_size, num_images)
    parts = training_bytes(len(bank.classnames), num_images, width, views, batch, cfg.model.needs_closed_form)
    log_large(parts, free_bytes(str(bank.train_features.device)))
    return build_model(bank, cfg.model)


def start_training(
    model: HeGraphModel, data: TrainingData, cfg: Config, checkpoints: Checkpoints | None, keep: Keep | None = None
) -> AdapterTraining | None:
    """The training of a model, at its checkpoint if there is one; None if its variant has nothing to train.

    Args:
        model: The untrained adapter.
        data: The training batches of its task.
        cfg: The checked configuration.
        checkpoints: Where the training's state is kept; None does not keep it.
        keep: Called with the adapter and the number of epochs when TRAIN.CHECKPOINT_FREQ asks for the model.

    Raises:
        UserError: If the checkpoint is damaged or belongs to another run.
    """
    if model.layers is None:
        return None
    training = AdapterTraining(model, data, cfg.training, checkpoints, keep)
    training.resume()
    return training


def train_adapter(
    task: Task,
    bank: FeatureBank,
    cfg: Config,
    seed: int,
    checkpoints: Checkpoints | None = None,
    keep: Keep | None = None,
    data: TrainingData | None = None,
) -> TrainedAdapter:
    """Builds and trains an adapter.

    Args:
        task: The task, for its training batches.
        bank: Its features.
        cfg: The checked configuration.
        seed: Seed of everything random.
        checkpoints: Where the training's state and the adapter are kept; None keeps neither.
        keep: As in `start_training`.
        data: The training batches of the task, where they are at hand.

    Raises:
        UserError: If a class has no training image, the loss is not finite, or the checkpoint is another run's.
    """
    model = new_model(bank, cfg, seed)
    if model.layers is None:
        return TrainedAdapter(model)
    training = start_training(model, data or task.batches(bank), cfg, checkpoints, keep)
    assert training is not None  # it has layers
    trained = TrainedAdapter(model, train_to_end(training))
    if checkpoints is not None:
        checkpoints.save_adapter(model)
    return trained


def tune_on_val(task: Task, bank: FeatureBank, cfg: Config, seed: int) -> TrainedAdapter:
    """Trains every candidate of `TRAINER.HEGRAPHADAPTER.SELECT`, and returns the one that is best on val.

    Of equals the first wins, in the order of the rows. Candidates whose training would see the same options share it,
    as those of ALPHA_C do, which only weighs predictions.

    Args:
        task: The task, for its training batches.
        bank: Its features, with val images.
        cfg: The checked configuration.
        seed: Seed of everything random.

    Returns:
        The best candidate. Its `selected` holds the keys, the chosen values, and the accuracy of every candidate on val
        in percent; its training counts the seconds of the whole search.

    Raises:
        UserError: If the task has no val images of its own, nothing is declared to choose from, or a candidate is no
            configuration; all are checked before the first is trained.
    """
    if not has_val(bank):
        raise UserError(
            f"{bank.dataset} has no val images besides test, so nothing can be chosen on them; leave out --select val"
        )
    if not cfg.run.select:
        raise UserError("--select val needs TRAINER.HEGRAPHADAPTER.SELECT, rows [KEY, [VALUE, ...]]; it is empty")
    keys = [key for key, _ in cfg.run.select]
    combinations = list(itertools.product(*(values for _, values in cfg.run.select)))
    configurations = [with_values(cfg, [x for pair in zip(keys, values) for x in pair]) for values in combinations]
    data, candidates, seconds = task.batches(bank), [], 0.0
    known: list[tuple[ModelOptions, TrainingOptions, TrainedAdapter]] = []
    best: tuple[float, tuple, TrainedAdapter] | None = None
    for values, changed in zip(combinations, configurations):
        asked = changed.model.in_training, changed.training
        like = next((trained for *seen, trained in known if tuple(seen) == asked), None)
        if like is None:
            trained = train_adapter(task, bank, changed, seed, data=data)
            known.append((*asked, trained))
            seconds += trained.training.seconds
        else:
            trained = TrainedAdapter(new_model(bank, changed, seed), like.training)
            trained.model.layers = like.model.layers
        on_val = val_accuracy(trained.model.fold().logits, bank)
        candidates.append([list(values), round(on_val, 4)])
        logger.info("%s: %.2f on val", ", ".join(f"{k} {v}" for k, v in zip(keys, values)), on_val)
        if best is None or on_val > best[0]:
            best = on_val, values, trained
    if best is None:
        raise UserError("a row of TRAINER.HEGRAPHADAPTER.SELECT has no value to choose from")
    _, chosen, trained = best
    num_val = 0 if bank.val_labels is None else len(bank.val_labels)
    selected = {"keys": keys, "value": list(chosen), "candidates": candidates, "num_val": num_val}
    return replace(trained, training=replace(trained.training, seconds=seconds), selected=selected)


def fitted_adapter(trained: TrainedAdapter) -> FittedMethod:
    """A trained adapter as every method is once it is fitted."""
    model = trained.model
    adapted = model.adapt_to_test()
    folded = model.fold(adapted)
    transferable = TransferableAdapter.of(model)
    closed = model.closed_form if model.options.has_closed_form else None

    def transfer(other: FeatureBank) -> Tensor:
        features = other.features_to_classify
        return transferable.logits(features, other.text_positive, other.text_negative, other.logit_scale)

    return FittedMethod(
        folded.logits,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        epochs=trained.training.epochs,
        steps=trained.training.steps,
        seconds=trained.training.seconds,
        selected=trained.selected,
        transfer=transfer,
        classifier=folded,
        transfer_rule="adapter",
        transferable=transferable,
        text_classifier=folded.text_only(),
        variant=model.options.variant,
        text_nodes=None if model.layers is None else (model.x_positive, F.normalize(adapted.positive, dim=-1)),
        class_nodes=None if closed is None else closed.to_text.nodes,
    )
