"""The candidates of a search on val share what their values do not change, and are what they would be alone."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch

from trainers.hegraph.config_files import load_cfg, with_values
from trainers.hegraph.experiments import adapter
from trainers.hegraph.experiments.adapter import Shared, train_adapter
from trainers.hegraph.experiments.tasks import BankTask
from trainers.hegraph.experiments.tuning import tune_on_val
from trainers.hegraph.features import bank as bank_module

NODE = "TRAINER.HEGRAPHADAPTER"
SHORT = ["OPTIM.MAX_EPOCH", 2, f"{NODE}.MIN_STEPS", 0, "DATASET.NUM_SHOTS", 2]
ALPHA = [f"{NODE}.ALPHA_C", [2.0, 4.0, 8.0]]


@pytest.fixture
def calls(monkeypatch) -> Counter:
    """How often what is expensive is done."""
    counted: Counter = Counter()

    def count(owner, name: str) -> None:
        real = getattr(owner, name)

        def counting(*args, **kwargs):
            counted[name] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    count(bank_module, "mean_over_views")
    count(adapter, "train_to_end")
    count(BankTask, "batches")
    return counted


def search(tiny_bank, *rows: list) -> dict:
    cfg = load_cfg(opts=[*SHORT, f"{NODE}.SELECT", str(list(rows))])
    task = BankTask(tiny_bank, cfg, 1)
    return tune_on_val(task, task.bank(), cfg, 1).selected


def test_candidates_that_weigh_predictions_alone_are_trained_once(tiny_bank, calls):
    found = search(tiny_bank, ALPHA, [f"{NODE}.CLOSED_FORM.OMEGA", [0.1, 0.3]])
    assert len(found["candidates"]) == 6
    assert calls == {"mean_over_views": 1, "train_to_end": 1, "batches": 1}


def test_what_another_training_does_not_change_is_worked_out_once_too(tiny_bank, calls):
    search(tiny_bank, ALPHA, [f"{NODE}.BETA_C", [0.5, 1.0]], ["OPTIM.LR", [0.001, 0.002]])
    assert calls == {"mean_over_views": 1, "train_to_end": 4, "batches": 1}


def test_the_strength_of_the_ridge_needs_no_other_training(tiny_bank, calls):
    search(tiny_bank, ALPHA, [f"{NODE}.CLOSED_FORM.RHO", [0.1, 0.3]], [f"{NODE}.CLOSED_FORM.KAPPA", [2.0, 4.0]])
    assert calls["train_to_end"] == 2, "the noise of training depends on KAPPA, and not on RHO"


@pytest.mark.parametrize("text_weights", [False, True])
def test_every_candidate_is_what_it_is_when_it_is_trained_alone(tiny_bank, text_weights):
    cfg = load_cfg(opts=[*SHORT, f"{NODE}.TEXT_W", text_weights])
    task = BankTask(tiny_bank, cfg, 1)
    bank = task.bank()
    shared = Shared(task, bank)
    values = {
        "ALPHA_C": (2.0, 8.0), "CLOSED_FORM.RHO": (0.1, 0.3), "CLOSED_FORM.OMEGA": (0.0, 0.3), "BETA_C": (0.5, 1.0),
        "ALPHA_NP_TEST": (0.1, 0.2), "SHUFFLE": ("none", "negative", "visual_to_text"), "NOISE": (0.0, 1.0),
    }  # fmt: skip
    for chosen in itertools.product(*values.values()):
        pairs = [word for key, value in zip(values, chosen) for word in (f"{NODE}.{key}", value)]
        changed = with_values(cfg, pairs)
        one, other = train_adapter(task, bank, changed, 1, shared=shared), train_adapter(task, bank, changed, 1)
        assert one.model.options == other.model.options
        ours, alone = one.model.state_dict(), other.model.state_dict()
        assert ours.keys() == alone.keys()
        assert all(torch.equal(ours[name], alone[name]) for name in alone)
        folded, expected = one.model.fold(), other.model.fold()
        assert torch.equal(folded.logits(bank.val_features), expected.logits(bank.val_features))
        assert one.training.steps == other.training.steps
