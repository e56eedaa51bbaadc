"""What several methods share: settings by shots or data set, the training loop, a choice made on val."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..features import FeatureBank
from ..training.batches import BankBatches, Batch, TrainingData
from ..training.evaluation import accuracy
from ..training.loop import learning_rate
from ..utils.errors import UserError

Schedule = Callable[[int, float], float]  # step from 0 and the group's own rate -> the rate of that step
T = TypeVar("T")

ALIASES = {"dtd": "describabletextures"}  # CoOp's file name of a data set, where it is not its name in other letters


def by_shots(key: str, rows: Sequence[Sequence], bank: FeatureBank) -> Any:
    """The value that holds for the task's shots: the most training images that any class has.

    Args:
        key: Name of the setting, for the message.
        rows: Each `[from this many shots, value]`; the last that the shots reach holds.

    Raises:
        UserError: If `rows` are not such rows, or none begins so low.
    """
    _check_rows(key, rows, int, "[from this many shots, value]")
    shots = int(bank.train_labels.bincount().max())
    reached = [value for least, value in sorted(rows, key=lambda row: row[0]) if least <= shots]
    if not reached:
        raise UserError(f"{key} has no row for {shots} shots: {list(rows)}; let the first begin at 1")
    return reached[-1]


def by_dataset(key: str, rows: Sequence[Sequence], bank: FeatureBank) -> Any:
    """The value that holds for the bank's data set.

    Args:
        key: Name of the setting, for the message.
        rows: Each `[data set, value]`; the data set "" stands for all that have no row. Case, `_` and
            `-` are not compared, so OxfordFlowers and oxford_flowers are the same.

    Raises:
        UserError: If `rows` are not such rows, or none holds.
    """
    _check_rows(key, rows, str, "[data set, value]")
    values = {_plain(name): value for name, value in rows}
    name = _plain(bank.dataset)
    if name not in values and "" not in values:
        raise UserError(f"{key} has no row for {bank.dataset!r}: {list(rows)}; a row ['', value] stands for all others")
    return values.get(name, values.get(""))


def batches(bank: FeatureBank, batch_size: int, seed: int) -> BankBatches:
    """Batches of a bank's training images: each epoch draws one view of every image, in a new order.

    Raises:
        UserError: If a batch would be empty.
    """
    if batch_size < 1:
        raise UserError(f"BATCH_SIZE must be at least 1, got {batch_size}")
    return BankBatches(bank.train_features, bank.train_labels, batch_size, seed)


def cosine(steps: int) -> Schedule:
    """torch's `CosineAnnealingLR` over all steps: from the group's rate to nearly 0, no warm-up."""
    return lambda step, peak: 0.5 * peak * (1 + math.cos(math.pi * step / steps))


def cosine_by_epoch(epochs: int, steps_per_epoch: int, warmup_epochs: int, warmup_rate: float) -> Schedule:
    """Dassl's cosine schedule with a constant warm-up, as CoOp's configurations have it."""
    return lambda step, peak: learning_rate(step // steps_per_epoch, epochs, peak, warmup_epochs, warmup_rate)


def train(
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[Batch], Tensor],
    data: TrainingData,
    epochs: int,
    schedule: Schedule,
    after_epoch: Callable[[int], None] = lambda epochs: None,
) -> int:
    """Minimises a loss over the batches of `epochs` epochs; the last step is the result.

    Args:
        optimizer: Over the parameters to train; the rates of its groups are where the schedule begins.
        loss_of: A batch to its loss, a scalar.
        data: Training batches.
        epochs: At least 1.
        schedule: Sets the learning rate before every step.
        after_epoch: Called with the number of epochs that are done.

    Returns:
        The number of steps.

    Raises:
        UserError: If there is nothing to train for, or the loss is not finite.
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


def choose(candidates: Sequence[T], accuracy_of: Callable[[T], float]) -> tuple[T, dict]:
    """The candidate of the best accuracy on val.

    Args:
        candidates: In order of preference: of equals, which a small val split has many of, the first is taken.
        accuracy_of: A candidate to its accuracy in percent.

    Returns:
        The candidate, and an entry of `Fitted.selected`: {"value": ..., "candidates": [[value, accuracy], ...]}.
    """
    accuracies = [accuracy_of(candidate) for candidate in candidates]
    best = candidates[max(range(len(candidates)), key=accuracies.__getitem__)]
    table = [[candidate, round(accuracy, 4)] for candidate, accuracy in zip(candidates, accuracies)]
    return best, {"value": best, "candidates": table}


def has_val(bank: FeatureBank) -> bool:
    """Whether the task has val images to choose on; an empty val split is none."""
    return bank.val_features is not None and len(bank.val_features) > 0


@torch.no_grad()
def val_accuracy(logits: Callable[[Tensor], Tensor], bank: FeatureBank) -> float:
    """Percent on the task's val split; only where `has_val`."""
    return accuracy(logits(bank.val_features), bank.val_labels)


def _check_rows(key: str, rows: Sequence[Sequence], kind: type, form: str) -> None:
    for row in rows:
        if not (isinstance(row, (list, tuple)) and len(row) == 2 and isinstance(row[0], kind)):
            raise UserError(f"a row of {key} must be {form}, got {row!r}")


def _plain(name: str) -> str:
    plain = name.lower().replace("_", "").replace("-", "")
    return ALIASES.get(plain, plain)
