"""What the trained methods share: rows of options, and the loop, with numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from by_hand import bank_of
from yacs.config import CfgNode

from trainers.hegraph.baselines.training import batches, by_dataset, by_shots, train, train_with_warmup
from trainers.hegraph.training.batches import Batch
from trainers.hegraph.training.schedule import constant
from trainers.hegraph.utils.errors import UserError

AXES = [[1.0, 0.0], [0.0, 1.0]]


def bank_of_shots(*shots: int, dataset: str = "Tiny"):
    labels = [label for label, count in enumerate(shots) for _ in range(count)]
    return bank_of([AXES[0]] * len(labels), labels, AXES, dataset=dataset)


@pytest.mark.parametrize(
    ("shots", "expected"), [((1, 1), 10), ((3, 2), 10), ((2, 4), 20), ((15, 1), 20), ((16, 0), 30)]
)
def test_by_shots_takes_the_row_that_the_largest_class_reaches_whatever_their_order(shots, expected):
    rows = [[16, 30], [1, 10], [4, 20]]
    assert by_shots("EPOCHS", rows, bank_of_shots(*shots)) == expected


def test_by_shots_refuses_rows_that_all_begin_later_or_are_no_rows():
    with pytest.raises(UserError, match=r"EPOCHS has no row for 2 shots: \[\[4, 20\]\]"):
        by_shots("EPOCHS", [[4, 20]], bank_of_shots(2, 1))
    with pytest.raises(UserError, match=r"a row of EPOCHS must be \[from this many shots, value\], got \['', 20\]"):
        by_shots("EPOCHS", [["", 20]], bank_of_shots(2, 1))


@pytest.mark.parametrize("rows_name", ["OxfordPets", "oxford_pets"])
@pytest.mark.parametrize(("dataset", "expected"), [("OxfordPets", 2.0), ("oxford_pets", 2.0), ("Tiny", 1.0)])
def test_by_dataset_knows_a_data_set_by_any_of_its_names_and_the_empty_row_is_for_all_others(
    rows_name, dataset, expected
):
    assert by_dataset("LR", [["", 1.0], [rows_name, 2.0]], bank_of_shots(1, 1, dataset=dataset)) == expected


def test_by_dataset_needs_no_empty_row_where_the_data_set_has_its_own():
    assert by_dataset("LR", [["Tiny", 3.0]], bank_of_shots(1, 1)) == 3.0
    with pytest.raises(UserError, match="LR has no row for 'Tiny'"):
        by_dataset("LR", [["OxfordPets", 3.0]], bank_of_shots(1, 1))
    with pytest.raises(UserError, match=r"a row of LR must be \[data set, value\], got \[1, 3.0\]"):
        by_dataset("LR", [[1, 3.0]], bank_of_shots(1, 1))


def test_batches_hold_every_image_with_its_label():
    bank = bank_of(AXES + AXES, [0, 1, 0, 1], AXES)
    found = list(batches(bank, 3, seed=1).epoch(0))
    assert [len(batch.labels) for batch in found] == [3, 1]
    for batch in found:
        assert torch.equal(batch.features.argmax(dim=1), batch.labels)
    assert len(list(batches(bank, 1, seed=1).epoch(0))) == 4


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


def test_one_epoch_is_enough_and_none_is_refused():
    w = torch.tensor(1.0, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.5)
    assert train(optimizer, lambda batch: w, TwoBatches(), 1, constant) == 2
    with pytest.raises(UserError, match="EPOCHS must be at least 1, got 0"):
        train(optimizer, lambda batch: w, TwoBatches(), 0, constant)


def test_a_loss_that_becomes_infinite_ends_the_training_with_the_epoch_and_the_largest_rate():
    w, v = (torch.tensor(1.0, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [w], "lr": 0.1}, {"params": [v], "lr": 0.7}])
    data, done = TwoBatches(), []

    def loss_of(batch):
        return (w + v) * (1.0 if len(data.epochs) < 2 else math.inf)

    with pytest.raises(UserError, match=r"^the loss is -?inf in epoch 2; lower LR \(0\.7\)$"):
        train(optimizer, loss_of, data, 5, constant, done.append)
    assert done == [1]


def test_the_warm_up_is_by_epoch_and_the_cosine_as_long_as_the_training():
    # Four images in batches of 2 are two steps in each of three epochs. The loss is w, so w falls by the sum of the
    # rates: twice the warm-up's 0.1, twice the peak 1, twice (1 + cos(pi / 3)) / 2 = 0.75.
    w = torch.tensor(0.0, requires_grad=True)
    options = CfgNode({"BATCH_SIZE": 2, "WARMUP_EPOCHS": 1, "WARMUP_LR": 0.1})
    bank = bank_of(AXES + AXES, [0, 1, 0, 1], AXES)
    assert train_with_warmup(torch.optim.SGD([w], lr=1.0), lambda batch: w, bank, options, 3, seed=1) == 6
    assert w.item() == pytest.approx(-2 * (0.1 + 1 + 0.75))
