"""Shared parts of trained methods: the base class for trained class features, the training loop, selection on val."""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..features.bank import FeatureBank
from ..method.cache import text_logits
from ..method.training.batches import BankBatches, Batch, TrainingData
from ..method.training.loop import learning_rate
from ..utils.errors import UserError
from .base import FittedMethod, Method, cosine_classifier
from .options import BottleneckOptions, ClassifierOptions, SgdOptions

if TYPE_CHECKING:
    from ..features.backbones.base import Backbone

ClassifierOptionsT = TypeVar("ClassifierOptionsT", bound=ClassifierOptions)


@dataclass(frozen=True)
class Trainable:
    """Cosine classifier with trainable parameters, on which its functions depend.

    Attributes:
        parameters: Parameters to train.
        class_features: Function that returns the class features `x_k`, of any norm, shape `[K, d]`.
        query: Function from image features `[B, d]` to the features to compare with the class features.
        penalty: Function that returns the term to add to the cross-entropy.
        transfer: Function from a bank with other classes to their `x_k`; None if the method has no rule for them.
    """

    parameters: list[Tensor]
    class_features: Callable[[], Tensor]
    query: Callable[[Tensor], Tensor] = lambda features: features
    penalty: Callable[[], Tensor | float] = lambda: 0.0
    transfer: Callable[[FeatureBank], Tensor] | None = None

    def logits(self, features: Tensor, class_features: Tensor, logit_scale: float) -> Tensor:
        """Return `tau * cos(query(f), x_k)`, shape `[B, K]`."""
        return text_logits(self.query(features), class_features, logit_scale)


class TrainedClassifier(Method[ClassifierOptionsT]):
    """Base class of methods that predict `tau * cos(f, x_k)` and train `x_k` with cross-entropy, as CoOp does.

    The schedule is Dassl's cosine by epoch after WARMUP_EPOCHS epochs at WARMUP_LR. The optimizer is SGD for a method
    with `SgdOptions`, else Adam. The last epoch counts.
    """

    @abstractmethod
    def build(
        self, bank: FeatureBank, options: ClassifierOptionsT, seed: int, backbone: "Backbone | None"
    ) -> Trainable:
        """Return the untrained classifier; arguments as in `fit`."""

    def fit(
        self, bank: FeatureBank, options: ClassifierOptionsT, seed: int, backbone: "Backbone | None" = None
    ) -> FittedMethod:
        rate = options.learning_rate
        epochs = options.epochs
        model = self.build(bank, options, seed, backbone)

        def loss(batch: Batch) -> Tensor:
            penalty = model.penalty()  # before the logits: gradients are summed in this order, which affects rounding
            logits = model.logits(batch.features, model.class_features(), bank.logit_scale)
            return F.cross_entropy(logits, batch.labels) + penalty

        optimizer: torch.optim.Optimizer
        if isinstance(options, SgdOptions):
            optimizer = torch.optim.SGD(model.parameters, rate, options.momentum, weight_decay=options.weight_decay)
        else:
            optimizer = torch.optim.Adam(model.parameters, rate, weight_decay=options.weight_decay)
        data = batches(bank, options.batch_size, seed)

        def schedule(step: int, peak: float) -> float:
            return learning_rate(step // data.steps_per_epoch, epochs, peak, options.warmup_epochs, options.warmup_lr)

        steps = train(optimizer, loss, data, epochs, schedule)
        class_features = model.class_features()
        rule = model.transfer

        def logits(features: Tensor) -> Tensor:
            return model.logits(features, class_features, bank.logit_scale)

        transfer = rule and (lambda bank: model.logits(bank.features_to_classify, rule(bank), bank.logit_scale))
        classifier = None if self.not_saved else cosine_classifier(class_features, bank.logit_scale)
        number = count_parameters(model.parameters)
        return FittedMethod(logits, number, epochs, steps, transfer=transfer, classifier=classifier)


def count_parameters(parameters: Iterable[Tensor]) -> int:
    """Return the number of entries of all parameters."""
    return sum(parameter.numel() for parameter in parameters)


def bottleneck(width: int, options: BottleneckOptions, seed: int) -> tuple[nn.Linear, nn.Linear]:
    """Create two linear layers without bias, from `width` to `width // REDUCTION` and back, initialised on the CPU.

    Raises:
        UserError: If REDUCTION is larger than the width.
    """
    if options.reduction > width:
        raise UserError(f"REDUCTION must be at most the feature width {width}, got {options.reduction}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hidden = width // options.reduction
        return nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)


def batches(bank: FeatureBank, batch_size: int, seed: int) -> BankBatches:
    """Return batches of a bank's training images; each epoch samples one view of every image, in a new order."""
    return BankBatches(bank.train_features, bank.train_labels, batch_size, seed)


def train(
    optimizer: torch.optim.Optimizer,
    loss_fn: Callable[[Batch], Tensor],
    data: TrainingData,
    epochs: int,
    schedule: Callable[[int, float], float],
    on_epoch: Callable[[int], None] = lambda epoch: None,
) -> int:
    """Minimise a loss by gradient descent; afterwards no parameter requires a gradient.

    Args:
        schedule: Function from the number of a step, counted from 0, and the peak learning rate, which is that of the
            optimizer's parameter group, to the learning rate of the step.
        on_epoch: Function that is called after every epoch with its number, counted from 1.

    Returns:
        The number of steps.

    Raises:
        UserError: If the loss becomes infinite or NaN.
    """
    peaks = [group["lr"] for group in optimizer.param_groups]
    step = 0
    for epoch in range(epochs):
        for batch in data.epoch(epoch):
            for group, peak in zip(optimizer.param_groups, peaks):
                group["lr"] = schedule(step, peak)
            loss = loss_fn(batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
        if not loss.isfinite():
            raise UserError(f"the loss is {loss.item()} in epoch {epoch + 1}; lower LR ({max(peaks)})")
        on_epoch(epoch + 1)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.requires_grad_(False)
    return step


class BestEpoch:
    """Copy of the parameters at the epoch with the best accuracy on val, the last of equally good ones.

    Attributes:
        candidates: `[epoch, accuracy in percent]` of every recorded epoch.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.parameters = list(parameters)
        self.candidates: list[list] = []
        self.epoch = 0
        self.best = self.parameters

    def record(self, epoch: int, accuracy: float) -> None:
        """Record the accuracy on val after an epoch."""
        self.candidates.append([epoch, round(accuracy, 4)])
        if self.candidates[-1][1] >= max(row[1] for row in self.candidates):
            self.epoch = epoch
            self.best = [p.detach().clone() for p in self.parameters]

    def restore(self) -> dict:
        """Reset the parameters to the best epoch and return the entry of `FittedMethod.selected`."""
        for parameter, best in zip(self.parameters, self.best):
            parameter.copy_(best)
        return {"value": self.epoch, "candidates": self.candidates}
