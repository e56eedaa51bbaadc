"""Accuracy and macro F1 against hand-counted cases."""

from __future__ import annotations

import pytest
import torch

from trainers.hegraph.training.evaluation import score


def one_hot(*predicted: int, num_classes: int = 4) -> torch.Tensor:
    return torch.eye(num_classes)[list(predicted)]


def test_accuracy_counts_the_right_predictions_in_percent():
    assert score(one_hot(0, 1, 1, 2, 3), torch.tensor([0, 1, 0, 2, 2]))["accuracy"] == 60.0


def test_macro_f1_weighs_classes_alike_and_images_not():
    # class 0: precision 1, recall 3/4 -> F1 6/7; class 1: precision 1/2, recall 1 -> F1 2/3
    scores = score(one_hot(0, 0, 0, 1, 1), torch.tensor([0, 0, 0, 0, 1]))
    assert scores["accuracy"] == 80.0
    assert scores["macro_f1"] == pytest.approx(100 * (6 / 7 + 2 / 3) / 2)


def test_macro_f1_counts_what_a_class_is_given_wrongly():
    # the image of class 1 is taken for class 0, whose precision is 2/3 -> F1 4/5; class 1: 0; class 2: 1
    scores = score(one_hot(0, 0, 0, 2), torch.tensor([0, 0, 1, 2]))
    assert scores["accuracy"] == 75.0
    assert scores["macro_f1"] == pytest.approx(100 * (0.8 + 0 + 1) / 3)


def test_macro_f1_is_over_the_classes_that_occur_in_the_labels():
    # class 3 is predicted once and never true: it costs class 0 recall and is no class of the mean
    scores = score(one_hot(0, 3, 1, 1), torch.tensor([0, 0, 1, 1]))
    assert scores["macro_f1"] == pytest.approx(100 * (2 / 3 + 1) / 2)


def test_a_class_that_is_never_predicted_counts_as_zero():
    assert score(one_hot(0, 0), torch.tensor([0, 1]))["macro_f1"] == pytest.approx(100 * (2 / 3 + 0) / 2)


def test_everything_right_is_one_hundred():
    assert score(one_hot(2, 1), torch.tensor([2, 1])) == {"accuracy": 100.0, "macro_f1": 100.0}


def test_scores_are_plain_floats_that_json_can_hold():
    assert {type(value) for value in score(one_hot(0), torch.tensor([0])).values()} == {float}
