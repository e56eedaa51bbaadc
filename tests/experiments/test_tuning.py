"""Choosing on val: which candidates there are, in which order they are tried, and what the winner is judged by."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch

from trainers.hegraph.config_files import load_cfg
from trainers.hegraph.experiments import tuning
from trainers.hegraph.experiments.adapter import TrainedAdapter
from trainers.hegraph.features.bank import FeatureBank
from trainers.hegraph.training.loop import TrainingSummary
from trainers.hegraph.utils.errors import UserError

NODE = "TRAINER.HEGRAPHADAPTER"
ALPHA, BETA = f"{NODE}.ALPHA_C", f"{NODE}.BETA_C"
AXES = torch.eye(2)
TASK = object()


def bank_of(num_val: int = 4) -> FeatureBank:
    """Four val images of classes 0, 1, 1, 1; three test and two training images, all of class 0."""
    return FeatureBank(
        train_features=AXES[None],
        train_labels=torch.tensor([0, 0]),
        text_positive=AXES,
        text_negative=AXES,
        classnames=["cat", "dog"],
        dataset="Tiny",
        backbone="none",
        logit_scale=1.0,
        val_features=torch.eye(2)[[0, 1, 1, 1]][:num_val],
        val_labels=torch.tensor([0, 1, 1, 1])[:num_val],
        test_features=torch.eye(2)[[0, 0, 0]],
        test_labels=torch.tensor([0, 0, 0]),
    )


def always(label: int):
    """A classifier that says the same class for every image."""
    return lambda features: torch.eye(2)[[label]].expand(len(features), 2)


def oracle(features):
    return features


@dataclass
class Asked:
    """What `train_adapter` was asked for, in the order of the asking."""

    task: object
    bank: FeatureBank
    values: tuple[float, float]
    seed: int


@pytest.fixture
def trains(monkeypatch):
    """Function of classifiers by the values of ALPHA_C and BETA_C: trains none, and returns what will be asked."""

    def prepare(classifiers: dict) -> list[Asked]:
        asked: list[Asked] = []

        def train_adapter(task, bank, cfg, seed, shared):
            values = (cfg.model.alpha_c, cfg.model.beta_c)
            asked.append(Asked(task, bank, values, seed))
            folded = SimpleNamespace(logits=classifiers[values])
            model = SimpleNamespace(fold=lambda: folded, values=values)
            return TrainedAdapter(model, TrainingSummary(3, 6, 1.0))

        monkeypatch.setattr(tuning, "train_adapter", train_adapter)
        return asked

    return prepare


def configured(*rows: list):
    return load_cfg(opts=[f"{NODE}.SELECT", str(list(rows)), ALPHA, 9.0, BETA, 9.0])


def test_every_candidate_is_trained_once_the_last_row_changing_fastest_and_the_best_on_val_is_returned(trains):
    # On val, always saying class 0 is right for 1 of 4 images, class 1 for 3 of 4; on test and train 0 is always right
    asked = trains({(2.0, 0.5): always(0), (2.0, 1.5): always(1), (1.0, 0.5): always(0), (1.0, 1.5): always(0)})
    bank = bank_of()
    found = tuning.tune_on_val(TASK, bank, configured([ALPHA, [2.0, 1.0]], [BETA, [0.5, 1.5]]), seed=7)
    assert [one.values for one in asked] == [(2.0, 0.5), (2.0, 1.5), (1.0, 0.5), (1.0, 1.5)]
    assert all(one.task is TASK and one.bank is bank and one.seed == 7 for one in asked)
    assert found.model.values == (2.0, 1.5)
    assert found.selected == {
        "keys": [ALPHA, BETA],
        "value": [2.0, 1.5],
        "candidates": [[[2.0, 0.5], 25.0], [[2.0, 1.5], 75.0], [[1.0, 0.5], 25.0], [[1.0, 1.5], 25.0]],
        "num_val": 4,
    }
    assert (found.training.epochs, found.training.steps) == (3, 6)


def test_of_equals_the_first_wins(trains):
    trains({(1.0, 9.0): always(0), (2.0, 9.0): always(1), (3.0, 9.0): always(1), (0.5, 9.0): always(1)})
    found = tuning.tune_on_val(TASK, bank_of(), configured([ALPHA, [1.0, 2.0, 3.0, 0.5]]), seed=1)
    assert found.model.values == (2.0, 9.0)
    assert found.selected["value"] == [2.0]


def test_a_worse_candidate_after_the_best_does_not_win(trains):
    trains({(1.0, 9.0): always(1), (2.0, 9.0): oracle, (3.0, 9.0): always(1)})
    found = tuning.tune_on_val(TASK, bank_of(), configured([ALPHA, [1.0, 2.0, 3.0]]), seed=1)
    assert found.selected["value"] == [2.0]
    assert [accuracy for _, accuracy in found.selected["candidates"]] == [75.0, 100.0, 75.0]


def test_accuracies_are_listed_with_four_digits(trains):
    trains({(1.0, 9.0): always(1)})
    found = tuning.tune_on_val(TASK, bank_of(num_val=3), configured([ALPHA, [1.0]]), seed=1)
    assert found.selected["candidates"] == [[[1.0], 66.6667]]
    assert found.selected["num_val"] == 3


def test_the_configuration_that_was_given_is_left_as_it_was(trains):
    trains({(1.0, 9.0): always(1)})
    cfg = configured([ALPHA, [1.0]])
    tuning.tune_on_val(TASK, bank_of(), cfg, seed=1)
    assert cfg.model.alpha_c == 9.0


def test_every_candidate_is_said_with_its_accuracy(trains, caplog):
    trains({(1.0, 0.5): always(1)})
    with caplog.at_level(logging.INFO, "trainers.hegraph"):
        tuning.tune_on_val(TASK, bank_of(), configured([ALPHA, [1.0]], [BETA, [0.5]]), seed=1)
    assert caplog.messages == [f"{ALPHA} 1.0, {BETA} 0.5: 75.00 on val"]


@pytest.mark.parametrize("val", ["none", "empty"])
def test_without_val_images_nothing_is_trained(trains, val):
    asked = trains({})
    bank = bank_of(num_val=0) if val == "empty" else replace(bank_of(), val_features=None, val_labels=None)
    with pytest.raises(UserError, match="Tiny has no val images besides test"):
        tuning.tune_on_val(TASK, bank, configured([ALPHA, [1.0]]), seed=1)
    assert asked == []


def test_without_candidates_the_key_is_named():
    with pytest.raises(UserError, match=r"--select val needs TRAINER\.HEGRAPHADAPTER\.SELECT"):
        tuning.tune_on_val(TASK, bank_of(), load_cfg(opts=[f"{NODE}.SELECT", "[]"]), seed=1)
