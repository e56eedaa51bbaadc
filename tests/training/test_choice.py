"""Choosing on the few-shot val split."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from trainers.hegraph.features.bank import load_bank
from trainers.hegraph.training.choice import choose, has_val, val_accuracy


@pytest.fixture
def bank(tiny_bank):
    return load_bank(tiny_bank)


def test_the_best_is_taken_and_all_are_listed():
    accuracies = {"a": 10.0, "b": 30.00004, "c": 20.0}
    best, entry = choose(list(accuracies), accuracies.__getitem__)
    assert best == "b"
    assert entry == {"value": "b", "candidates": [["a", 10.0], ["b", 30.0], ["c", 20.0]]}


def test_of_equally_good_candidates_the_first_is_taken():
    assert choose([3, 1, 2], lambda candidate: 50.0)[0] == 3


def test_a_val_split_without_images_is_none(bank):
    assert has_val(bank)
    assert not has_val(replace(bank, val_features=None, val_labels=None))
    assert not has_val(replace(bank, val_features=bank.val_features[:0], val_labels=bank.val_labels[:0]))


def test_the_accuracy_on_val_is_in_percent_and_takes_no_gradient(bank):
    num_classes, grad = len(bank.classnames), []

    def oracle(features):
        grad.append(torch.is_grad_enabled())
        return torch.nn.functional.one_hot(bank.val_labels, num_classes)

    assert val_accuracy(oracle, bank) == 100.0
    assert grad == [False]


def test_without_val_images_there_is_no_accuracy(bank):
    with pytest.raises(ValueError, match="no val images"):
        val_accuracy(lambda features: features, replace(bank, val_features=None, val_labels=None))
