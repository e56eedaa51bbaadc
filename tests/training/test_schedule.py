"""The learning rate of every epoch and step, against the real Dassl and torch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from trainers.hegraph.training.schedule import constant, cosine, cosine_by_epoch, learning_rate, rate_at_width


def test_the_learning_rate_is_dassls_in_every_epoch(shared):
    golden = json.loads((Path(shared) / "golden" / "golden_lr.json").read_text())
    assert {"1", "2", "3", "10", "50"} <= set(golden)
    for epochs, rates in golden.items():
        ours = [learning_rate(epoch, int(epochs), 0.002, 1, 1e-5) for epoch in range(int(epochs))]
        assert ours == pytest.approx(rates, rel=1e-9)


def test_the_first_epoch_is_at_the_warm_up_rate_and_the_second_at_the_peak():
    assert learning_rate(0, 10, 0.5, 1, 1e-5) == 1e-5
    assert learning_rate(1, 10, 0.5, 1, 1e-5) == 0.5


def test_the_rate_is_a_cosine_after_the_warm_up():
    # cos(pi * 5 / 10) = 0 and cos(pi * 9 / 10) = -0.9510565
    assert learning_rate(6, 10, 0.002, 1, 1e-5) == pytest.approx(0.001)
    assert learning_rate(10, 10, 0.002, 1, 1e-5) == pytest.approx(0.5 * 0.002 * (1 - 0.9510565), rel=1e-6)


def test_without_warm_up_the_first_epoch_is_at_the_peak():
    assert learning_rate(0, 10, 0.5, 0, 1e-5) == 0.5


@pytest.mark.parametrize(("meant_for", "factor"), [(512, 1), (2048, 2), (128, 0.5), (0, 1)])
def test_a_rate_at_another_width_turns_a_unit_vector_by_the_same_angle(meant_for, factor):
    assert rate_at_width(0.01, meant_for, 512) == pytest.approx(0.01 * factor)


def test_the_cosine_by_step_is_torchs():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=7)
    schedule = cosine(7)
    for step in range(7):
        assert schedule(step, 0.1) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()


def test_the_cosine_by_epoch_gives_all_steps_of_an_epoch_its_rate():
    schedule = cosine_by_epoch(5, 3, 1, 1e-5)
    assert [schedule(step, 0.1) for step in range(15)] == [
        learning_rate(e, 5, 0.1, 1, 1e-5) for e in range(5) for _ in range(3)
    ]


def test_the_constant_schedule_stays_at_the_peak():
    assert {constant(step, 0.1) for step in range(10)} == {0.1}
