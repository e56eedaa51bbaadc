"""HeGraphAdapter on one task: build, train or load, predict. Both hosts go through these functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode

from ..config import model_options, training_options
from ..features.bank import FeatureBank
from ..method.classifier import FoldedClassifier
from ..method.model import HeGraphModel, build_model
from ..method.transfer import TransferableAdapter
from ..training.checkpoints import Checkpoints
from ..training.loop import AdapterTraining, TrainingSummary, train_to_end
from ..training.memory import free_bytes, log_large, training_bytes
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


def new_model(bank: FeatureBank, cfg: CfgNode, seed: int) -> HeGraphModel:
    """The untrained adapter of a task, on the device of its features.

    Logs a warning if training it takes much of the free memory.

    Raises:
        UserError: If a class has no training image.
    """
    set_random_seed(seed)  # encoding may have drawn from the generators, reading what was encoded does not
    views, num_images, width = bank.train_features.shape
    batch = min(cfg.DATALOADER.TRAIN_X.BATCH_SIZE, num_images)
    parts = training_bytes(len(bank.classnames), num_images, width, views, batch)
    log_large(parts, free_bytes(bank.train_features.device.type))
    return build_model(bank, model_options(cfg))


def start_training(
    model: HeGraphModel,
    task: Task,
    bank: FeatureBank,
    cfg: CfgNode,
    checkpoints: Checkpoints | None,
    keep: Keep | None = None,
) -> AdapterTraining | None:
    """The training of a model, at its checkpoint if there is one; None if its variant has nothing to train.

    Args:
        model: The untrained adapter.
        task: The task, for its training batches.
        bank: Its features.
        cfg: The checked configuration.
        checkpoints: Where the training's state is kept; None does not keep it.
        keep: Called with the adapter and the number of epochs when TRAIN.CHECKPOINT_FREQ asks for the model.

    Raises:
        UserError: If the checkpoint is damaged or belongs to another run.
    """
    if model.layers is None:
        return None
    training = AdapterTraining(model, task.batches(bank), training_options(cfg), checkpoints, keep)
    training.resume()
    return training


def train_adapter(
    task: Task,
    bank: FeatureBank,
    cfg: CfgNode,
    seed: int,
    checkpoints: Checkpoints | None = None,
    keep: Keep | None = None,
) -> TrainedAdapter:
    """Builds and trains an adapter.

    Args:
        task: The task, for its training batches.
        bank: Its features.
        cfg: The checked configuration.
        seed: Seed of everything random.
        checkpoints: Where the training's state and the adapter are kept; None keeps neither.
        keep: As in `start_training`.

    Raises:
        UserError: If a class has no training image, the loss is not finite, or the checkpoint is another run's.
    """
    model = new_model(bank, cfg, seed)
    training = start_training(model, task, bank, cfg, checkpoints, keep)
    if training is None:
        return TrainedAdapter(model)
    summary = train_to_end(training)
    if checkpoints is not None:
        checkpoints.save_adapter(model)
    return TrainedAdapter(model, summary)


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
    folded = classifier or model.fold()
    logits = text = None
    if bank.test_features is not None:
        parts = folded.parts(bank.test_features)
        logits, text = folded.combine(parts), parts.text
        if not logits.isfinite().all():
            raise UserError("the trained adapter predicts NaN or infinite logits; lower OPTIM.LR")
    transferable = TransferableAdapter.of(model)
    adapted = model.adapt_to_test().class_features

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
        text_nodes=None if model.layers is None else (model.x_positive, F.normalize(adapted, dim=-1)),
        classifier=folded,
        transferable=transferable,
        transfer_rule="adapter",
        class_nodes=None if model.text_messages is None else model.text_messages.nodes,
    )
