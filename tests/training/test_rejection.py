"""Scores that tell images of no known class, thresholds, AUROC and FPR95: numbers by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from trainers.hegraph.training.rejection import KnownScores, known_score, metric_scores, separation, text_scores


def test_the_probability_is_the_highest_and_the_energy_the_log_of_the_sum():
    logits = torch.tensor([[0.0, math.log(3)], [math.log(6), math.log(2)]])
    assert_close(known_score(logits, 1.0, "probability"), torch.tensor([0.75, 0.75]))
    assert_close(known_score(logits, 1.0, "energy"), torch.tensor([math.log(4), math.log(8)]))
    doubled = 2 * logits
    assert_close(known_score(doubled, 2.0, "energy"), torch.tensor([math.log(4), math.log(8)]))


def test_distance_and_angle_are_taken_in_the_whitened_space():
    mean, whitening = torch.tensor([0.1, 0.0]), torch.diag(torch.tensor([10.0, 5.0]))
    nodes = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    features = torch.tensor([[0.7, 0.8], [0.5, 0.0]])  # whitened: (6, 4), (4, 0)
    found = metric_scores(features, mean, whitening, nodes)
    assert_close(found["distance"], torch.tensor([-5.0, -1.0]))  # (3, 4) to the first node, (6, 0) to the second
    assert_close(found["angle"], torch.tensor([6 / math.sqrt(52), 1.0]))


def test_the_margin_is_that_of_the_predicted_class_against_its_own_negative_node():
    positive, negative = torch.eye(2), torch.tensor([[0.6, 0.8], [-1.0, 0.0]])
    features = torch.tensor([[0.8, 0.6], [0.6, 0.8]])
    found = text_scores(features, torch.tensor([0, 1]), positive, {"margin": negative, "other": negative.flip(0)})
    assert_close(found["own text"], torch.tensor([0.8, 0.8]))
    assert_close(found["margin"], torch.tensor([0.8 - 0.96, 0.8 + 0.6]))
    assert_close(found["other"], torch.tensor([0.8 + 0.8, 0.8 - 1.0]))


def test_the_threshold_keeps_the_share_of_known_images_that_was_asked_for():
    scores = torch.arange(1001).flip(0) / 10  # 100 down to 0
    known = KnownScores.of(scores, "val")
    assert (len(known.quantiles), known.num_images, known.fitted_on) == (101, 1001, "val")
    assert known.quantiles[0] == 0.0 and known.quantiles[-1] == 100.0
    assert known.threshold(0.95) == pytest.approx(5.0)
    assert known.threshold(0.5) == pytest.approx(50.0)
    assert known.threshold(0.905) == pytest.approx(9.5)
    assert (scores >= known.threshold(0.95)).double().mean().item() == pytest.approx(0.95, abs=0.001)


def test_the_share_of_known_images_below_a_score_is_what_its_threshold_would_lose():
    known = KnownScores.of(torch.arange(1001) / 10, "val")  # 0 to 100
    assert known.share_below(5.0) == pytest.approx(0.05)
    assert known.share_below(9.5) == pytest.approx(0.095)
    assert [known.share_below(score) for score in (-1.0, 101.0)] == [0.0, 1.0]


def test_auroc_counts_the_pairs_in_order_and_fpr95_the_unknown_that_are_kept():
    # Pairs (known, unknown) in order: 3 with both, 2 and 1 with 0.5 only; all of the known are kept at 1 and above
    found = separation([3.0, 2.0, 1.0], [2.5, 0.5])
    assert found["auroc"] == pytest.approx(100 * 4 / 6)
    assert found["fpr95"] == pytest.approx(50.0)
    assert separation([1.0, 1.0], [1.0, 0.0]) == pytest.approx({"auroc": 75.0, "fpr95": 50.0})


def test_fpr95_may_lose_one_known_image_of_twenty():
    known = [0.0, *range(2, 21)]  # 20 images
    assert separation(known, [1.0, 1.0, 5.0, -1.0])["fpr95"] == pytest.approx(25.0)  # at 2 and above
    assert separation(known[:19], [1.0, 1.0, 5.0, -1.0])["fpr95"] == pytest.approx(75.0)  # 18 of 19 are too few
