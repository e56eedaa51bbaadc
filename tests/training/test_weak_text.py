"""Weak text: the share of the classes that it tells, and the rate of training where that is small."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import pytest
import torch

from benchmarks.tasks import random_bank, start_training
from trainers.hegraph.config_files import load_cfg
from trainers.hegraph.features.bank import FeatureBank
from trainers.hegraph.training import schedule as module
from trainers.hegraph.training.schedule import text_share

KEY = "TRAINER.HEGRAPHADAPTER.WEAK_TEXT_LR_MULT"
AXES, LABELS = torch.eye(3), torch.arange(3)


def share(text: torch.Tensor, logit_scale: float = 2.0) -> float:
    return text_share(AXES, LABELS, text, logit_scale)


def test_the_share_is_worked_out_by_hand():
    # Logits (2, 0, 0) for the right class: NLL log(1 + 2 e^-2) = 0.239545, and log 3 = 1.098612
    assert share(AXES) == pytest.approx(1 - 0.239545 / 1.098612, abs=1e-6)


def test_text_that_is_sure_and_right_tells_all():
    assert share(AXES, 100.0) == pytest.approx(1.0)


def test_text_that_is_the_same_for_all_classes_tells_nothing():
    assert share(torch.ones(3, 3)) == pytest.approx(0.0, abs=1e-6)


def test_wrong_text_is_judged_at_the_factor_that_suits_it_best():
    # The least factor is 0.06: logits (0, 0.12, 0) with the first class right
    nll = math.log(2 + math.exp(0.12))
    assert share(AXES.roll(1, 0)) == pytest.approx(1 - nll / math.log(3), abs=1e-6)


def test_batches_change_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    features, text = torch.randn(2, 7, 5, generator=generator)
    labels = torch.tensor([0, 1, 2, 3, 4, 5, 6])
    whole = text_share(features, labels, text, 3.0)
    monkeypatch.setattr(module, "BATCH", 3)
    assert text_share(features, labels, text, 3.0) == pytest.approx(whole)


def bank_of(strong: bool, shots: int) -> FeatureBank:
    """Five classes whose text is the mean of their images, or that of the next class."""
    bank = random_bank(5, 32, shots=shots, test=10)
    means = torch.nn.functional.normalize(bank.cache_keys().view(5, shots, -1).mean(dim=1), dim=-1)
    return replace(bank, text_positive=means if strong else means.roll(1, 0))


def peak_rate(bank: FeatureBank, shots: int, *opts) -> float:
    return start_training(bank, load_cfg(opts=["DATASET.NUM_SHOTS", shots, *opts])).peak_rate


@pytest.mark.parametrize(
    ("strong", "shots", "opts", "factor"),
    [
        (True, 1, (), 1),
        (False, 1, (), 3),
        (False, 2, (), 1),
        (False, 2, (KEY, [[1, 3.0], [2, 1.5]]), 1.5),
        (False, 1, (KEY, [[1, 1.0]]), 1),
    ],
)
def test_at_one_shot_weak_text_is_left_at_a_larger_rate(strong, shots, opts, factor):
    bank = bank_of(strong, shots)
    plain = peak_rate(bank, shots, KEY, [[1, 1.0]])
    assert peak_rate(bank, shots, *opts) == pytest.approx(factor * plain)


def test_the_log_says_that_text_is_weak(caplog):
    with caplog.at_level(logging.INFO):
        peak_rate(bank_of(strong=False, shots=1), 1)
        assert "text is weak" in caplog.text
        caplog.clear()
        peak_rate(bank_of(strong=True, shots=1), 1)
        assert caplog.text == ""
