"""What the trained methods share: options by shots or data set, batches, the training loop, the best epoch on val."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from yacs.config import CfgNode

from ..datasets.registry import canonical_name
from ..features.bank import FeatureBank
from ..training.batches import BankBatches, Batch, TrainingData
from ..training.schedule import Schedule, cosine_by_epoch
from ..utils.errors import UserError
from ..utils.rows import check_rows, values_up_to


def by_shots(key: str, rows: Sequence[Sequence], bank: FeatureBank) -> Any:
    """Looks up the value for the task's number of shots, which is the largest number of training images of a class.

    Args:
        key: Name of the option, for the message.
        rows: Each `[from this many shots, value]`; of the rows that the shots reach, the one of most shots holds.
        bank: The task.

    Raises:
        UserError: If `rows` are not such rows, or all of them begin at more shots.
    """
    check_rows(key, rows, int, "[from this many shots, value]")
    shots = int(bank.train_labels.bincount().max())
    values = values_up_to(rows, shots)
    if not values:
        raise UserError(f"{key} has no row for {shots} shots: {list(rows)}; let the first begin at 1")
    return values[-1]


def by_dataset(key: str, rows: Sequence[Sequence], bank: FeatureBank) -> Any:
    """Looks up the value for the bank's data set.

    Args:
        key: Name of the option, for the message.
        rows: Each `[data set, value]`, by any name of the data set that `datasets/registry.py` knows. The row of the
            data set "" is for all that have no row of their own.
        bank: The task.

    Raises:
        UserError: If `rows` are not such rows, or none is for this data set.
    """
    check_rows(key, rows, str, "[data set, value]")
    values = {canonical_name(name): value for name, value in rows}
    name = canonical_name(bank.dataset)
    if name not in values and "" not in values:
        raise UserError(f"{key} has no row for {bank.dataset!r}: {list(rows)}; a row ['', value] stands for all others")
    return values.get(name, values.get(""))


def batches(bank: FeatureBank, batch_size: int, seed: int) -> BankBatches:
    """Batches of a bank's training images; every epoch draws one view of each image, in a new order.

    Raises:
        UserError: If a batch would be empty.
    """
    if batch_size < 1:
        raise UserError(f"BATCH_SIZE must be at least 1, got {batch_size}")
    return BankBatches(bank.train_features, bank.train_labels, batch_size, seed)


def train(
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[Batch], Tensor],
    data: TrainingData,
    epochs: int,
    schedule: Schedule,
    after_epoch: Callable[[int], None] = lambda epochs: None,
) -> int:
    """Minimises a loss for `epochs` epochs. The parameters of the optimizer are left as the last step makes them.

    Args:
        optimizer: Holds the parameters to train; the rates of its groups are the peaks of the schedule.
        loss_of: Maps a batch to its loss, a scalar.
        data: The training batches.
        epochs: At least 1.
        schedule: Gives the learning rate of every step.
        after_epoch: Called after each epoch, with the number of epochs that are done.

    Returns:
        The number of steps.

    Raises:
        UserError: If there are no epochs, or the loss becomes infinite or NaN.
    """
    if epochs < 1:
        raise UserError(f"EPOCHS must be at least 1, got {epochs}")
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
    return step


def train_with_warmup(
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[Batch], Tensor],
    bank: FeatureBank,
    options: CfgNode,
    epochs: int,
    seed: int,
) -> int:
    """`train` on a bank's images by CoOp's schedule: a cosine by epoch after WARMUP_EPOCHS epochs at WARMUP_LR.

    Args:
        optimizer, loss_of, epochs: As of `train`.
        bank: The task.
        options: Those of the method; BATCH_SIZE, WARMUP_EPOCHS and WARMUP_LR are read.
        seed: Orders the batches and draws the views.

    Returns:
        The number of steps.

    Raises:
        UserError: As `batches` and `train`.
    """
    data = batches(bank, options.BATCH_SIZE, seed)
    schedule = cosine_by_epoch(epochs, data.steps_per_epoch, options.WARMUP_EPOCHS, options.WARMUP_LR)
    return train(optimizer, loss_of, data, epochs, schedule)


class BestEpoch:
    """Remembers the parameters at the epoch that is best on val; of equally good epochs, at the last.

    Attributes:
        candidates: `[epochs, accuracy in percent]` of every look at val.
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
