"""What the trained methods share, the loop and the best epoch, with numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from trainers.hegraph.baselines.trained import BestEpoch, train
from trainers.hegraph.training.batches import Batch
from trainers.hegraph.utils.errors import UserError


class TwoBatches:
    """Two batches in every epoch; remembers which epochs were asked for."""

    def __init__(self) -> None:
        self.epochs: list[int] = []

    def epoch(self, number: int):
        self.epochs.append(number)
        for label in (0, 1):
            yield Batch(torch.zeros(1, 2), torch.tensor([label]), torch.tensor([0]))


def test_every_step_goes_down_its_own_gradient_at_the_rate_of_the_schedule():
    # The loss is 2 w + 4 v in the first batch of an epoch and 2 w - v in the second. The rate is the peak divided by
    # the number of the step, so over four steps w falls by 2 * 0.6 * (1 + 1/2 + 1/3 + 1/4) = 2.5, and v by 0.3 * (4 -
    # 1/2 + 4/3 - 1/4) = 1.375.
    w, v = (torch.tensor(1.0, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [w], "lr": 0.6}, {"params": [v], "lr": 0.3}])
    data, done = TwoBatches(), []

    def loss_of(batch):
        return 2 * w + (4 * v if batch.labels[0] == 0 else -v)

    steps = train(optimizer, loss_of, data, 2, lambda step, peak: peak / (step + 1), done.append)
    assert steps == 4
    assert (data.epochs, done) == ([0, 1], [1, 2])
    assert w.item() == pytest.approx(1 - 2.5)
    assert v.item() == pytest.approx(1 - 1.375)
    assert not w.requires_grad and not v.requires_grad


def test_a_loss_that_becomes_infinite_ends_the_training_with_the_epoch_and_the_largest_rate():
    w, v = (torch.tensor(1.0, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [w], "lr": 0.1}, {"params": [v], "lr": 0.7}])
    data, done = TwoBatches(), []

    def loss_of(batch):
        return (w + v) * (1.0 if len(data.epochs) < 2 else math.inf)

    with pytest.raises(UserError, match=r"^the loss is -?inf in epoch 2; lower LR \(0\.7\)$"):
        train(optimizer, loss_of, data, 5, lambda step, peak: peak, done.append)
    assert done == [1]


def test_of_epochs_that_are_equally_good_the_last_is_restored():
    parameter = torch.zeros(2)
    best = BestEpoch([parameter])
    for epochs, accuracy, value in [(10, 50.0, 1.0), (20, 75.00001, 2.0), (30, 75.0, 3.0), (40, 60.0, 4.0)]:
        parameter.fill_(value)
        best.record(epochs, accuracy)
    assert best.restore() == {"value": 30, "candidates": [[10, 50.0], [20, 75.0], [30, 75.0], [40, 60.0]]}
    assert parameter.tolist() == [3.0, 3.0]
