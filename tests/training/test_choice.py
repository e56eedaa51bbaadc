"""Accuracy and macro F1 against hand-counted cases, and choosing on the few-shot val split."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from trainers.hegraph.features.bank import load_bank
from trainers.hegraph.training.choice import choose, has_val, score, val_accuracy, val_images


@pytest.fixture
def bank(tiny_bank):
    return load_bank(tiny_bank)


def test_of_equally_good_candidates_the_nearest_or_the_first_is_taken_and_all_are_listed_with_four_digits():
    assert choose({3: 50.0, 1: 50.0})[0] == 3
    assert choose({"a": 50.0, "b": 50.00001})[0] == "b"  # though they are listed alike
    accuracies = {3: 20.0, 1: 200 / 3, 2: 200 / 3, 4: 200 / 3}
    assert choose(accuracies) == (1, {"value": 1, "candidates": [[3, 20.0], [1, 66.6667], [2, 66.6667], [4, 66.6667]]})
    best, entry = choose(accuracies, lambda candidate: abs(candidate - 3.6))
    assert (best, [value for value, _ in entry["candidates"]]) == (4, [4, 3, 2, 1])


def test_val_is_the_val_split_and_never_test(bank):
    features, labels = val_images(bank)
    assert torch.equal(features, bank.val_features) and torch.equal(labels, bank.val_labels)
    # Always class 0, which one of four val images has, and all test images
    val = {"val_features": bank.val_features[:4], "val_labels": torch.tensor([2, 0, 1, 3])}
    other = replace(bank, **val, test_labels=torch.zeros_like(bank.test_labels))
    assert val_accuracy(lambda features: torch.eye(5)[[0]].expand(len(features), 5), other) == 25.0


def test_a_val_split_without_images_is_none(bank):
    assert has_val(bank)
    assert not has_val(replace(bank, val_features=bank.val_features[:0], val_labels=bank.val_labels[:0]))
    for missing in ("val_features", "val_labels"):
        with pytest.raises(ValueError, match="no val images"):
            val_images(replace(bank, **{missing: None}))
    assert not has_val(replace(bank, val_features=None))


def one_hot(*predicted: int, num_classes: int = 4) -> torch.Tensor:
    return torch.eye(num_classes)[list(predicted)]


def test_macro_f1_weighs_classes_alike_and_images_not():
    # class 0: precision 1, recall 3/4 -> F1 6/7; class 1: precision 1/2, recall 1 -> F1 2/3
    scores = score(one_hot(0, 0, 0, 1, 1), torch.tensor([0, 0, 0, 0, 1]))
    assert scores["accuracy"] == 80.0
    assert scores["macro_f1"] == pytest.approx(100 * (6 / 7 + 2 / 3) / 2)


def test_macro_f1_is_over_the_classes_that_occur_in_the_labels():
    # class 3 is predicted once and never true: it costs class 0 recall and is no class of the mean
    scores = score(one_hot(0, 3, 1, 1), torch.tensor([0, 0, 1, 1]))
    assert scores["macro_f1"] == pytest.approx(100 * (2 / 3 + 1) / 2)
    assert score(one_hot(2, 1), torch.tensor([2, 1])) == {"accuracy": 100.0, "macro_f1": 100.0}
