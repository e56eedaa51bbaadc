"""Prediction sets: thresholds by hand, refusals, and coverage in a simulation."""

import math

import pytest
import torch
from pydantic import ValidationError

from trainers.hegraph import UserError
from trainers.hegraph.method.training.confidence import calibration_by_zero_shot, calibration_on, fit_temperature
from trainers.hegraph.method.training.prediction_sets import FewScores, SetScores, evenly_weighted, prediction_sets


def scores_of(*values: float) -> SetScores:
    return SetScores(scores=values, temperature=1.0)


@pytest.mark.parametrize(("number", "coverage", "rank"), [
    (9, 0.9, 1), (18, 0.9, 1), (19, 0.9, 2), (99, 0.99, 1), (4, 0.8, 1), (99, 0.9, 10), (2, 2 / 3, 1),
])  # fmt: skip
def test_threshold_is_an_order_statistic(number, coverage, rank):
    values = [position / 100 for position in range(1, number + 1)]
    assert scores_of(*values).threshold(coverage) == values[rank - 1]


@pytest.mark.parametrize(("number", "coverage", "needed"), [(8, 0.9, 9), (98, 0.99, 99), (1, 0.8, 4)])
def test_coverage_that_needs_more_images_is_refused(number, coverage, needed):
    with pytest.raises(UserError, match=f"needs at least {needed} held-out images, and the model has {number};"):
        scores_of(*[0.5] * number).threshold(coverage)


@pytest.mark.parametrize("coverage", [0, 1, -0.1, float("nan"), "x"])
def test_coverage_is_a_share(coverage):
    with pytest.raises(UserError, match="coverage"):
        scores_of(0.5).threshold(coverage)


def test_scores_are_sorted_probabilities_of_true_classes():
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 4.0]])
    found = SetScores.of(logits, torch.tensor([0, 1, 0]), temperature=2.0)
    expected = [1 / (1 + math.exp(2)), 0.5, 1 / (1 + math.exp(-1))]
    assert found.scores == pytest.approx(expected) and found.temperature == 2.0
    with pytest.raises(ValidationError, match="ascending"):
        scores_of(0.5, 0.4)


def test_sets_have_probable_classes_and_the_predicted_one():
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.4, 0.35, 0.25]])
    sets = prediction_sets(probabilities, 0.3, torch.tensor([0, 2]))
    assert sets.tolist() == [[True, True, False], [True, True, True]]
    assert prediction_sets(probabilities, 0.9, torch.tensor([0, 0])).tolist() == [[True, False, False]] * 2


def test_calibration_has_scores_of_its_images():
    logits = 3 * torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(20) % 4
    calibration = calibration_on(logits, labels, "val")
    assert calibration.sets == SetScores.of(logits, labels, calibration.temperature)


def test_one_shot_has_scores_of_zero_shot_clip():
    generator = torch.Generator().manual_seed(1)
    clip = 3 * torch.randn(8, 8, generator=generator)
    held_out = [torch.randn(4, 4, generator=generator) for _ in range(2)]
    calibration = calibration_by_zero_shot(held_out, held_out, clip, torch.arange(8))
    assert calibration.sets.of_zero_shot and len(calibration.sets.scores) == 8


@pytest.mark.slow
@pytest.mark.parametrize("number", [19, 99])
def test_sets_cover_the_promised_share(number):
    generator = torch.Generator().manual_seed(number)
    covered = []
    for _ in range(2000):
        logits = 2 * torch.randn(number + 1, 5, generator=generator)
        labels = logits.softmax(dim=1).multinomial(1, generator=generator)[:, 0]
        scores = SetScores.of(logits[1:], labels[1:], 1.0)
        probabilities = logits[:1].double().softmax(dim=1)
        covered.append(float(probabilities[0, labels[0]] >= scores.threshold(0.9)))
    assert sum(covered) / 2000 == pytest.approx(0.9, abs=0.02)


def test_classes_of_one_image_have_their_own_threshold():
    scores = tuple(position / 100 for position in range(1, 100))
    few = FewScores(classes=(0, 2), scores=scores, stand_ins=30)
    sets = SetScores(scores=(0.5,) * 99, temperature=1.0, few=few)
    # Of 10 % that may be missed, a class that the 30 do not have takes 0.9 / 30 = 3 %
    assert sets.thresholds(0.9, 4).tolist() == [0.07, 0.5, 0.07, 0.5]
    assert sets.of_classes([3, 2, 1]).few.classes == (1,) and sets.of_classes([1, 3]).few is None
    scarce = few.model_copy(update={"stand_ins": 2})
    assert sets.model_copy(update={"few": scarce}).thresholds(0.9, 3).tolist() == [0.06, 0.5, 0.06]  # a third at most
    own = few.model_copy(update={"stand_ins": None})
    assert sets.model_copy(update={"few": own}).thresholds(0.9, 3).tolist() == [0.1, 0.5, 0.1]
    assert sets.thresholds(0.99, 3).tolist() == [0.01, 0.5, 0.01]
    assert SetScores.model_validate(sets.model_dump(mode="json")) == sets
    assert "few" not in scores_of(0.5).model_dump(mode="json")


def test_few_images_of_a_part_take_the_smallest_score():
    few = FewScores(classes=(0,), scores=(0.2, 0.4), stand_ins=2)
    sets = SetScores(scores=(0.3,) * 6 + (0.9,), temperature=1.0, few=few)
    assert sets.thresholds(0.9, 2).tolist() == [0.2, 0.2]
    with pytest.raises(UserError, match="at least 19 held-out images, and the model has 9"):
        sets.threshold(0.95)


def test_weighted_scores_are_those_of_repeated_images():
    logits = torch.tensor([[0.2, 0.0], [0.0, 1.0], [2.0, 0.0]])
    labels = torch.tensor([0, 1, 0])
    weights = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)
    repeated = torch.tensor([0, 1, 1, 2])
    assert fit_temperature(logits.repeat(200, 1), labels.repeat(200), weights.repeat(200)) == pytest.approx(
        fit_temperature(logits[repeated].repeat(133, 1), labels[repeated].repeat(133)), rel=1e-2
    )
    assert evenly_weighted(torch.tensor([3.0, 1.0, 2.0]), torch.ones(3)).tolist() == [1.0, 2.0, 3.0]
    assert evenly_weighted(torch.arange(4.0), torch.tensor([1.0, 1.0, 4.0, 4.0])).tolist() == [1.0, 2.0, 3.0]
