"""Accuracy, choices on val, temperatures and the scores of probabilities, against cases worked by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from trainers.hegraph.features.bank import load_bank
from trainers.hegraph.method.training import confidence
from trainers.hegraph.method.training.choice import choose, has_val, macro_accuracy, score, val_accuracy, val_images

# Choices


def test_first_or_nearest_of_equals_is_chosen():
    assert choose({3: 50.0, 1: 50.0})[0] == 3
    assert choose({"a": 50.0, "b": 50.00001})[0] == "b"  # though they are listed alike
    accuracies = {3: 20.0, 1: 200 / 3, 2: 200 / 3, 4: 200 / 3}
    assert choose(accuracies) == (1, {"value": 1, "candidates": [[3, 20.0], [1, 66.6667], [2, 66.6667], [4, 66.6667]]})
    best, entry = choose(accuracies, lambda candidate: abs(candidate - 3.6))
    assert (best, [value for value, _ in entry["candidates"]]) == (4, [4, 3, 2, 1])


def test_val_is_never_the_test_split(tiny_bank):
    bank = load_bank(tiny_bank)
    assert has_val(bank) and all(map(torch.equal, val_images(bank), (bank.val_features, bank.val_labels)))
    # Always class 0, which one of four val images has, and all test images
    val = {"val_features": bank.val_features[:4], "val_labels": torch.tensor([2, 0, 1, 3])}
    other = replace(bank, **val, test_labels=torch.zeros_like(bank.test_labels))
    assert val_accuracy(lambda features: torch.eye(5)[[0]].expand(len(features), 5), other) == 25.0
    assert not has_val(replace(bank, val_features=bank.val_features[:0], val_labels=bank.val_labels[:0]))
    assert not has_val(replace(bank, val_features=None))


@pytest.mark.parametrize("missing", ["val_features", "val_labels"])
def test_selection_needs_validation_images(tiny_bank, missing):
    with pytest.raises(ValueError, match="no validation images"):
        val_images(replace(load_bank(tiny_bank), **{missing: None}))


def test_macro_f1_by_hand():
    one_hot = torch.eye(4)
    # Class 0: precision 1, recall 3/4 -> F1 6/7; class 1: precision 1/2, recall 1 -> F1 2/3
    scores = score(one_hot[[0, 0, 0, 1, 1]], torch.tensor([0, 0, 0, 0, 1]))
    assert scores == {"accuracy": 80.0, "macro_f1": pytest.approx(100 * (6 / 7 + 2 / 3) / 2)}
    # Class 3 is predicted once and never true: it costs class 0 recall and is no class of the mean
    scores = score(one_hot[[0, 3, 1, 1]], torch.tensor([0, 0, 1, 1]))
    assert scores["macro_f1"] == pytest.approx(100 * (2 / 3 + 1) / 2)
    assert score(one_hot[[2, 1]], torch.tensor([2, 1])) == {"accuracy": 100.0, "macro_f1": 100.0}


def test_macro_accuracy_by_hand():
    one_hot = torch.eye(4)
    # Class 0: 3 of 4 images; class 1: 1 of 1; class 2: 0 of 1; class 3 has no image
    predicted = one_hot[[0, 0, 0, 1, 1, 3]]
    assert macro_accuracy(predicted, torch.tensor([0, 0, 0, 0, 1, 2])) == pytest.approx(100 * (3 / 4 + 1 + 0) / 3)


# Probabilities


def log_of(*probabilities: list[float]) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def test_temperature_by_hand():
    # Logits 3 and 0, three of four right: sigmoid(3 / T) = 3/4 where T = 3 / log 3; the weight on 1 counts little
    logits, labels = torch.tensor([3.0, 0.0]).expand(4000, 2), torch.tensor([0] * 3000 + [1] * 1000)
    assert confidence.fit_temperature(logits, labels) == pytest.approx(3 / math.log(3), rel=1e-2)
    # Ten images with a gap of 2: 10 log(1 + exp(-2 / T)) + (log T)^2 / (2 * 0.25), its minimum by a fine search
    grid = np.linspace(-3, 3, 60001)
    losses = 10 * np.log1p(np.exp(-2 * np.exp(-grid))) + grid**2 / (2 * 0.5**2)
    found = confidence.fit_temperature(torch.tensor([2.0, 0.0]).expand(10, 2), torch.zeros(10, dtype=torch.long))
    assert found == pytest.approx(math.exp(grid[losses.argmin()]), rel=1e-3) and 0.3 < found < 1


def test_confidence_is_matched_within_the_range():
    groups = [log_of([0.9, 0.1]), log_of([0.7, 0.2, 0.1], [0.1, 0.1, 0.8])]
    assert confidence.mean_confidence(groups, 1.0) == pytest.approx((0.9 + 0.7 + 0.8) / 3)
    assert confidence.mean_confidence(groups, confidence.match_confidence(groups, 0.6)) == pytest.approx(0.6)
    assert confidence.match_confidence([log_of([0.9, 0.1])], 0.75) == pytest.approx(2.0)  # sigmoid(log(9) / 2) = 3/4
    assert confidence.match_confidence([torch.zeros(2, 4)], 0.9) == pytest.approx(math.exp(confidence.LOG_RANGE[0]))
    highest = confidence.match_confidence([log_of([0.99999999, 0.00000001])], 0.5)
    assert highest == pytest.approx(math.exp(confidence.LOG_RANGE[1]))


def test_confidence_scores_by_hand():
    # two images of class 0 and one each of 1 and 2; the third is taken for class 0
    logits = log_of([0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.2, 0.2, 0.6])
    scores = confidence.confidence_scores(logits, torch.tensor([0, 0, 1, 2]))
    assert scores["nll"] == pytest.approx(-math.log(0.8 * 0.6 * 0.4 * 0.6) / 4)
    brier = (0.04 + 0.01 + 0.01) + (0.16 + 0.09 + 0.01) + (0.25 + 0.36 + 0.01) + (0.04 + 0.04 + 0.16)
    assert scores["brier"] == pytest.approx(brier / 4)
    # bins of width 1/15: 0.5 alone (8th, 0 right), 0.6 twice (9th, both right), 0.8 alone (12th, right)
    assert scores["ece"] == pytest.approx(100 * (0.5 + 2 * 0.4 + 0.2) / 4)
    assert scores["bins"]["count"] == [0] * 7 + [1, 2, 0, 0, 1] + [0] * 3
    assert scores["bins"]["confidence"][7:12] == [50, 60, 0, 0, 80]
    assert scores["bins"]["accuracy"][7:12] == [0, 100, 0, 0, 100]
    on_borders = confidence.reliability(np.array([1 / 15, 1.0]), np.array([True, False]))  # belong to the lower bin
    assert on_borders["count"] == [1] + [0] * 13 + [1]


def test_scores_at_a_temperature_divide_the_logits(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    logits, labels = 4 * torch.randn(300, 7, generator=generator), torch.randint(7, (300,), generator=generator)
    divided = confidence.confidence_scores(logits / 2, labels)
    monkeypatch.setattr("trainers.hegraph.method.training.confidence.SCORED_AT_ONCE", 7)
    at_temperature = confidence.confidence_scores(logits, labels, 2.0)
    assert (divided.pop("bins"), at_temperature) == (at_temperature.pop("bins"), pytest.approx(divided))
    # Of two classes the Brier score is (1 - 0.9)^2 + 0.1^2, not one half of it
    assert confidence.confidence_scores(log_of([0.9, 0.1]), torch.tensor([0]))["brier"] == pytest.approx(0.02)


def test_probability_and_energy_by_hand():
    logits = torch.tensor([[0.0, math.log(3)], [math.log(6), math.log(2)]])
    assert_close(confidence.known_score(logits, 1.0, "probability"), torch.tensor([0.75, 0.75]))
    assert_close(confidence.known_score(logits, 1.0, "energy"), torch.tensor([math.log(4), math.log(8)]))
    assert_close(confidence.known_score(2 * logits, 2.0, "energy"), torch.tensor([math.log(4), math.log(8)]))


def test_threshold_accepts_the_rate_of_known_images():
    known = confidence.KnownScores.of(torch.arange(1001).flip(0) / 10, "val")  # 100 down to 0
    assert (len(known.quantiles), known.num_images, known.fitted_on) == (101, 1001, "val")
    assert known.quantiles[0] == 0.0 and known.quantiles[-1] == 100.0
    for share, score_at in ((0.95, 5.0), (0.5, 50.0), (0.905, 9.5)):
        assert known.threshold(share) == pytest.approx(score_at)
        assert known.share_below(score_at) == pytest.approx(1 - share)
    assert [known.share_below(score) for score in (-1.0, 101.0)] == [0.0, 1.0]
