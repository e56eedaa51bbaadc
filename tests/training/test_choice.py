"""Choosing on the few-shot val split."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from trainers.hegraph.features.bank import load_bank
from trainers.hegraph.training.choice import choose, has_val, val_accuracy, val_images


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
    assert choose([3, 1, 2, 4], {3: 20.0, 1: 60.0, 2: 60.0, 4: 60.0}.__getitem__)[0] == 1


def test_candidates_are_asked_once_each_in_their_order_and_listed_with_four_digits():
    asked = []

    def accuracy_of(candidate: int) -> float:
        asked.append(candidate)
        return 100 * candidate / 3

    best, entry = choose([1, 0, 2], accuracy_of)
    assert asked == [1, 0, 2]
    assert (best, entry) == (2, {"value": 2, "candidates": [[1, 33.3333], [0, 0.0], [2, 66.6667]]})


def test_candidates_whose_accuracies_differ_by_less_than_is_listed_are_still_told_apart():
    assert choose(["a", "b"], {"a": 50.0, "b": 50.00001}.__getitem__)[0] == "b"


def test_val_is_the_val_split_and_never_test(bank):
    features, labels = val_images(bank)
    assert torch.equal(features, bank.val_features)
    assert torch.equal(labels, bank.val_labels)
    # Always class 0, which 1 of 4 val images has, 3 of 3 test images, and 2 of 2 training images
    other = replace(
        bank,
        val_features=bank.val_features[:4],
        val_labels=torch.tensor([2, 0, 1, 3]),
        test_features=bank.test_features[:3],
        test_labels=torch.tensor([0, 0, 0]),
        train_features=bank.train_features[:, :2],
        train_labels=torch.tensor([0, 0]),
    )
    assert val_accuracy(lambda features: torch.eye(5)[[0]].expand(len(features), 5), other) == 25.0
    assert val_accuracy(lambda features: torch.eye(5)[[0]].expand(len(features), 5), other.without_test()) == 25.0


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
    for missing in ("val_features", "val_labels"):
        with pytest.raises(ValueError, match="no val images"):
            val_images(replace(bank, **{missing: None}))
