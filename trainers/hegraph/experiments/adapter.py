"""HeGraphAdapter on one task: build, train or load, predict. Both hosts go through these functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch.nn.functional as F
from torch import Tensor

from ..config import Config
from ..features.bank import FeatureBank
from ..method.cache import FoldedClassifier
from ..method.model import HeGraphModel, build_model
from ..method.options import ModelOptions
from ..method.transfer import TransferableAdapter
from ..training.batches import TrainingData
from ..training.checkpoints import Checkpoints
from ..training.loop import AdapterTraining, TrainingSummary, train_to_end
from ..training.memory import free_bytes, log_large, training_bytes
from ..training.options import TrainingOptions
from ..utils.errors import UserError
from .outcome import Outcome
from .provenance import set_random_seed
from .tasks import Task

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


class Shared:
    """What adapters share that are trained on one task with different configurations. Nothing is worked out twice.

    Args:
        task: The task, for its training batches.
        bank: Its features.
    """

    def __init__(self, task: Task, bank: FeatureBank) -> None:
        self.task, self.bank = task, bank
        self._trained: list[tuple[ModelOptions, TrainingOptions, TrainedAdapter]] = []

    @cached_property
    def batches(self) -> TrainingData:
        """The training batches of the task."""
        return self.task.batches(self.bank)

    def keep(self, trained: TrainedAdapter, options: TrainingOptions) -> None:
        """Keeps an adapter for `trained_like`."""
        self._trained.append((trained.model.options.in_training, options, trained))

    def trained_like(self, model: HeGraphModel, options: TrainingOptions) -> TrainedAdapter | None:
        """An adapter whose layers are those that a training of this model would leave, if there is one."""
        asked = model.options.in_training, options
        return next((trained for *seen, trained in self._trained if tuple(seen) == asked), None)


def new_model(bank: FeatureBank, cfg: Config, seed: int) -> HeGraphModel:
    """The untrained adapter of a task, on the device of its features.

    Logs a warning if training it takes much of the free memory.

    Args:
        bank: The task's features.
        cfg: The checked configuration.
        seed: Seed of everything random.

    Raises:
        UserError: If a class has no training image.
    """
    set_random_seed(seed)  # encoding may have drawn from the generators, reading what was encoded does not
    views, num_images, width = bank.train_features.shape
    batch = min(cfg.data.batch_size, num_images)
    options = cfg.model
    parts = training_bytes(len(bank.classnames), num_images, width, views, batch, options.needs_closed_form)
    log_large(parts, free_bytes(str(bank.train_features.device)))
    return build_model(bank, options)


def start_training(
    model: HeGraphModel,
    shared: Shared,
    cfg: Config,
    checkpoints: Checkpoints | None,
    keep: Keep | None = None,
) -> AdapterTraining | None:
    """The training of a model, at its checkpoint if there is one; None if its variant has nothing to train.

    Args:
        model: The untrained adapter.
        shared: Has the training batches of its task.
        cfg: The checked configuration.
        checkpoints: Where the training's state is kept; None does not keep it.
        keep: Called with the adapter and the number of epochs when TRAIN.CHECKPOINT_FREQ asks for the model.

    Raises:
        UserError: If the checkpoint is damaged or belongs to another run.
    """
    if model.layers is None:
        return None
    training = AdapterTraining(model, shared.batches, cfg.training, checkpoints, keep)
    training.resume()
    return training


def train_adapter(
    task: Task,
    bank: FeatureBank,
    cfg: Config,
    seed: int,
    checkpoints: Checkpoints | None = None,
    keep: Keep | None = None,
    shared: Shared | None = None,
) -> TrainedAdapter:
    """Builds and trains an adapter.

    Args:
        task: The task, for its training batches.
        bank: Its features.
        cfg: The checked configuration.
        seed: Seed of everything random.
        checkpoints: Where the training's state and the adapter are kept; None keeps neither.
        keep: As in `start_training`.
        shared: What it shares with other adapters of the task. One whose training would see the same options is not
            trained again, and its training took 0 seconds. None shares nothing.

    Raises:
        UserError: If a class has no training image, the loss is not finite, or the checkpoint is another run's.
    """
    shared = shared or Shared(task, bank)
    model = new_model(bank, cfg, seed)
    if like := shared.trained_like(model, cfg.training):
        model.layers = like.model.layers
        return TrainedAdapter(model, replace(like.training, seconds=0.0))
    training = start_training(model, shared, cfg, checkpoints, keep)
    if training is None:
        return TrainedAdapter(model)
    trained = TrainedAdapter(model, train_to_end(training))
    shared.keep(trained, training.options)
    if checkpoints is not None:
        checkpoints.save_adapter(model)
    return trained


def predict_test(trained: TrainedAdapter, bank: FeatureBank, classifier: FoldedClassifier | None = None) -> Outcome:
    """What a trained adapter says about the test images.

    Args:
        trained: The adapter.
        bank: The task's features; without test features nothing is predicted.
        classifier: The folded adapter, if it was folded before.

    Raises:
        UserError: If a logit is not finite.
    """
    model = trained.model
    closed = model.closed_form if model.options.has_closed_form else None
    adapted = model.adapt_to_test()
    folded = classifier or model.fold(adapted)
    logits = text = None
    if bank.test_features is not None:
        parts = folded.parts(bank.test_features)
        logits, text = folded.combine(parts), parts.text
        if not logits.isfinite().all():
            raise UserError("the trained adapter predicts NaN or infinite logits; lower OPTIM.LR")
    transferable = TransferableAdapter.of(model)

    def transfer(other: FeatureBank) -> Tensor:
        features = other.features_to_classify
        return transferable.logits(features, other.text_positive, other.text_negative, other.logit_scale)

    return Outcome(
        logits,
        bank.test_labels,
        trained.training,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        text_logits=text,
        variant=model.options.variant,
        selected=trained.selected,
        classify=folded.text_only().logits,
        transfer=transfer,
        text_nodes=None if model.layers is None else (model.x_positive, F.normalize(adapted.positive, dim=-1)),
        classifier=folded,
        transferable=transferable,
        transfer_rule="adapter",
        class_nodes=None if closed is None else closed.to_text.nodes,
    )
