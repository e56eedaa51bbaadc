"""What trained methods share: the class features they train, the training loop, the best epoch on val."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..features.bank import FeatureBank
from ..method.cache import text_logits
from ..training.batches import BankBatches, Batch, TrainingData
from ..training.loop import learning_rate
from ..utils.errors import UserError
from .base import FittedMethod, Method, Options, check_numbers, cosine_classifier, value_for_task

if TYPE_CHECKING:
    from ..backbones.clip import Backbone


@dataclass(frozen=True)
class Trainable:
    """What a `TrainedClassifier` trains.

    Attributes:
        class_features: Gives `x_k`, of any norm, shape `[K, d]`, from the parameters as they are.
        query: Maps image features `[B, d]` to what is compared with the class features.
        penalty: What the loss has beside the cross-entropy.
        transfer: Maps a bank of other classes to their `x_k`, if the method has a rule for them.
    """

    parameters: list[Tensor]
    class_features: Callable[[], Tensor]
    query: Callable[[Tensor], Tensor] = lambda features: features
    penalty: Callable[[], Tensor | float] = lambda: 0.0
    transfer: Callable[[FeatureBank], Tensor] | None = None

    def logits(self, features: Tensor, class_features: Tensor, logit_scale: float) -> Tensor:
        """`tau * cos(query(f), x_k)`, shape `[B, K]`."""
        return text_logits(self.query(features), class_features, logit_scale)


class TrainedClassifier(Method):
    """A method that predicts `tau * cos(f, x_k)` and trains `x_k` with cross-entropy, as CoOp is trained.

    The schedule is Dassl's cosine by epoch after WARMUP_EPOCHS epochs at WARMUP_LR, the optimizer SGD if the method has
    an option MOMENTUM, else Adam. The parameters after the last epoch count.
    """

    @abstractmethod
    def start(self, bank: FeatureBank, options: Options, seed: int, backbone: Backbone | None) -> Trainable:
        """What is trained, as it is before the first step; arguments as of `fit`."""

    def fit(self, bank: FeatureBank, options: Options, seed: int, backbone: Backbone | None = None) -> FittedMethod:
        rate, epochs = value_for_task(options, "LR", bank), value_for_task(options, "EPOCHS", bank)
        model = self.start(bank, options, seed, backbone)

        def loss(batch: Batch) -> Tensor:
            penalty = model.penalty()  # first: the order decides how gradients round
            logits = model.logits(batch.features, model.class_features(), bank.logit_scale)
            return F.cross_entropy(logits, batch.labels) + penalty

        optimizer: torch.optim.Optimizer
        if "MOMENTUM" in self.defaults:
            optimizer = torch.optim.SGD(model.parameters, rate, options.MOMENTUM, weight_decay=options.WEIGHT_DECAY)
        else:
            optimizer = torch.optim.Adam(model.parameters, rate, weight_decay=options.WEIGHT_DECAY)
        data = batches(bank, options.BATCH_SIZE, seed)

        def by_epoch(step: int, peak: float) -> float:
            epoch = step // data.steps_per_epoch
            return learning_rate(epoch, epochs, peak, options.WARMUP_EPOCHS, options.WARMUP_LR)

        steps = train(optimizer, loss, data, epochs, by_epoch)
        learned, others = model.class_features(), model.transfer

        def logits(features: Tensor) -> Tensor:
            return model.logits(features, learned, bank.logit_scale)

        number = sum(parameter.numel() for parameter in model.parameters)
        folded = None if self.not_saved else cosine_classifier(learned, bank.logit_scale)
        transfer = others and (lambda bank: model.logits(bank.features_to_classify, others(bank), bank.logit_scale))
        return FittedMethod(logits, number, epochs, steps, transfer=transfer, classifier=folded)


def bottleneck(width: int, options: Options, seed: int) -> tuple[nn.Linear, nn.Linear]:
    """Two layers without a bias, from a width to the width over REDUCTION and back, drawn on the CPU.

    Raises UserError if REDUCTION or RATIO, the share of what they give in the adapted feature, is out of range.
    """
    check_numbers("REDUCTION", [options.REDUCTION], 1, width, whole=True)
    check_numbers("RATIO", [options.RATIO], 0, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        narrow = width // options.REDUCTION
        return nn.Linear(width, narrow, bias=False), nn.Linear(narrow, width, bias=False)


def batches(bank: FeatureBank, batch_size: int, seed: int) -> BankBatches:
    """Batches of a bank's training images; every epoch draws one view of each image, in a new order."""
    check_numbers("BATCH_SIZE", [batch_size], 1)
    return BankBatches(bank.train_features, bank.train_labels, batch_size, seed)


def train(
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[Batch], Tensor],
    data: TrainingData,
    epochs: int,
    schedule: Callable[[int, float], float],
    after_epoch: Callable[[int], None] = lambda epochs: None,
) -> int:
    """Minimises a loss. Leaves the parameters as the last step makes them, with nothing left to train.

    The `schedule` gives the rate of a step, counted from 0, from its number and the peak, which is the optimizer's rate
    of the group; `after_epoch` hears how many epochs are done.
    Returns the number of steps. Raises UserError if there are no epochs, or the loss becomes infinite or NaN.
    """
    check_numbers("EPOCHS", [epochs], 1, whole=True)
    peaks = [group["lr"] for group in optimizer.param_groups]
    step = 0
    for epoch in range(epochs):
        for batch in data.epoch(epoch):
            for group, peak in zip(optimizer.param_groups, peaks):
                group["lr"] = schedule(step, peak)
            loss = loss_of(batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
        if not loss.isfinite():
            raise UserError(f"the loss is {loss.item()} in epoch {epoch + 1}; lower LR ({max(peaks)})")
        after_epoch(epoch + 1)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.requires_grad_(False)
    return step


class BestEpoch:
    """Remembers the parameters at the epoch that is best on val, of equally good epochs at the last.

    `candidates` are `[epochs, accuracy in percent]` of every look at val.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.parameters = list(parameters)
        self.candidates: list[list] = []
        self.epochs, self.best = 0, self.parameters

    def record(self, epochs: int, accuracy: float) -> None:
        """Takes note of the accuracy after so many epochs."""
        self.candidates.append([epochs, round(accuracy, 4)])
        if self.candidates[-1][1] >= max(row[1] for row in self.candidates):
            self.epochs, self.best = epochs, [p.detach().clone() for p in self.parameters]

    def restore(self) -> dict:
        """Sets the parameters back to the best epoch, and returns the entry of `FittedMethod.selected`."""
        for parameter, best in zip(self.parameters, self.best):
            parameter.copy_(best)
        return {"value": self.epochs, "candidates": self.candidates}
