"""Learning rates: of every epoch and step against the real Dassl and torch, and where text is weak."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.tasks import random_bank, start_training
from trainers.hegraph.config_files import load_cfg
from trainers.hegraph.features.bank import FeatureBank
from trainers.hegraph.training import schedule as module
from trainers.hegraph.training.schedule import (
    constant,
    cosine,
    cosine_by_epoch,
    learning_rate,
    rate_at_scale,
    rate_at_width,
    text_share,
)

KEY = "TRAINER.HEGRAPHADAPTER.WEAK_TEXT_LR_MULT"


def test_the_learning_rate_is_dassls_in_every_epoch(shared):
    golden = json.loads((Path(shared) / "golden" / "golden_lr.json").read_text())
    assert {"1", "2", "3", "10", "50"} <= set(golden)
    for epochs, rates in golden.items():
        ours = [learning_rate(epoch, int(epochs), 0.002, 1, 1e-5) for epoch in range(int(epochs))]
        assert ours == pytest.approx(rates, rel=1e-9)


@pytest.mark.parametrize(
    ("epoch", "warmup_epochs", "rate"),
    # cos(pi * 5 / 10) = 0 and cos(pi * 9 / 10) = -0.9510565
    [(0, 1, 1e-5), (1, 1, 0.5), (6, 1, 0.25), (10, 1, 0.25 * (1 - 0.9510565)), (0, 0, 0.5), (0, -1, 0.5), (1, 2, 1e-5)],
)
def test_the_rate_is_a_cosine_from_the_peak_after_the_warm_up(epoch, warmup_epochs, rate):
    assert learning_rate(epoch, 10, 0.5, warmup_epochs, 1e-5) == pytest.approx(rate, rel=1e-6)


def test_a_rate_is_scaled_to_another_width_or_logit_scale():
    widths = [rate_at_width(0.01, meant_for, 512) for meant_for in (512, 2048, 128, 0)]
    assert widths == pytest.approx([0.01, 0.02, 0.005, 0.01])  # a unit vector turns by the same angle
    scales = [rate_at_scale(0.01, meant_for, 50.0) for meant_for in (50, 100, 25, 0)]
    assert scales == pytest.approx([0.01, 0.02, 0.005, 0.01])


def test_the_schedules_by_step():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    torchs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=7)
    for step in range(7):
        assert cosine(7)(step, 0.1) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        torchs.step()
    by_epoch = [cosine_by_epoch(5, 3, 1, 1e-5)(step, 0.1) for step in range(15)]
    assert by_epoch == [learning_rate(e, 5, 0.1, 1, 1e-5) for e in range(5) for _ in range(3)]
    assert {constant(step, 0.1) for step in range(10)} == {0.1}


# Weak text


def test_the_share_of_the_classes_that_text_tells_is_worked_out_by_hand():
    axes, labels = torch.eye(3), torch.arange(3)
    # Logits (2, 0, 0) for the right class: NLL log(1 + 2 e^-2) = 0.239545, and log 3 = 1.098612
    assert text_share(axes, labels, axes, 2.0) == pytest.approx(1 - 0.239545 / 1.098612, abs=1e-6)
    assert text_share(axes, labels, axes, 100.0) == pytest.approx(1.0)
    assert text_share(axes, labels, torch.ones(3, 3), 2.0) == pytest.approx(0.0, abs=1e-6)
    # Wrong text is judged at the factor that suits it best, 0.06: logits (0, 0.12, 0) with the first class right
    nll = math.log(2 + math.exp(0.12))
    assert text_share(axes, labels, axes.roll(1, 0), 2.0) == pytest.approx(1 - nll / math.log(3), abs=1e-6)


def test_batches_change_no_share(monkeypatch):
    features, text = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(1))
    whole = text_share(features, torch.arange(7), text, 3.0)
    monkeypatch.setattr(module, "BATCH", 3)
    assert text_share(features, torch.arange(7), text, 3.0) == pytest.approx(whole)


def bank_of(strong: bool, shots: int) -> FeatureBank:
    """Five classes whose text is the mean of their images, or that of the next class."""
    bank = random_bank(5, 32, shots=shots, test=10)
    means = torch.nn.functional.normalize(bank.cache_keys().view(5, shots, -1).mean(dim=1), dim=-1)
    return replace(bank, text_positive=means if strong else means.roll(1, 0))


@pytest.mark.parametrize(
    ("strong", "shots", "opts", "factor"),
    [(True, 1, (), 1), (False, 1, (), 3), (False, 2, (), 1), (False, 2, (KEY, [[1, 3.0], [2, 1.5]]), 1.5)],
)
def test_at_one_shot_weak_text_is_left_at_a_larger_rate_and_the_log_says_so(caplog, strong, shots, opts, factor):
    def peak_rate(*opts: object) -> float:
        return start_training(bank_of(strong, shots), load_cfg(opts=["DATASET.NUM_SHOTS", shots, *opts])).peak_rate

    plain = peak_rate(KEY, [[1, 1.0]])
    with caplog.at_level(logging.INFO):
        assert peak_rate(*opts) == pytest.approx(factor * plain)
    assert ("text is weak" in caplog.text) == (factor > 1)
