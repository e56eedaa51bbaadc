"""The multi-label head, against separate fits and plain loops in double precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from trainers.hegraph.method.head import multilabel
from trainers.hegraph.method.head.closed_form import RIDGES
from trainers.hegraph.method.head.multilabel import LEAST_SLOPE, MultiLabelHead, best_thresholds, logistic_calibration


def example(num_images=30, num_classes=5, width=12, seed=0):
    """Features, labels and text: an image is the sum of its classes' directions and noise."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(num_classes, width, generator=generator)
    labels = torch.rand(num_images, num_classes, generator=generator) < 0.4
    labels[0], labels[1] = True, False
    noise = torch.randn(num_images, width, generator=generator)
    text = directions + torch.randn(num_classes, width, generator=generator)
    return F.normalize(labels.float() @ directions + noise, dim=1), labels, F.normalize(text, dim=1)


def ridge_fit(features, labels, prior, ridge):
    """Weights `[d + 1, K]` of `|Y - [F, 1] W|^2 + ridge |W - prior|^2`, whose constant has no penalty."""
    design = np.hstack([features, np.ones((len(features), 1))])
    penalty = ridge * np.eye(design.shape[1])
    penalty[-1, -1] = 0
    return np.linalg.solve(design.T @ design + penalty, design.T @ labels + penalty @ prior)


def separate_fits(features, labels, text, factor, gain):
    """Scores of each image by a fit without it, with the ridge of all images."""
    features, labels = features.double().numpy(), labels.double().numpy()
    text = text.double().numpy()
    deviations = features - features.mean(axis=0)
    ridge = factor * np.trace(deviations.T @ deviations) / features.shape[1]
    prior = np.vstack([gain * (text - text.mean(axis=0)).T, np.zeros((1, len(text)))])
    scores = np.empty_like(labels)
    for image in range(len(features)):
        rest = np.arange(len(features)) != image
        weights = ridge_fit(features[rest], labels[rest], prior, ridge)
        scores[image] = np.append(features[image], 1) @ weights
    return scores


@pytest.mark.parametrize("num_images", [7, 30])
def test_leave_one_out_equals_separate_fits(num_images):
    features, labels, text = example(num_images)
    head = MultiLabelHead.fit(features, labels, text)
    by_hand = separate_fits(features, labels, text, head.ridge, head.gain)
    np.testing.assert_allclose(head.left_out.numpy(), by_hand, atol=1e-5)


@pytest.mark.parametrize("with_text", [True, False])
def test_ridge_and_gain_have_the_least_leave_one_out_error(with_text):
    features, labels, text = example()
    head = MultiLabelHead.fit(features, labels, text if with_text else None)

    def error(ridge, gain):
        return ((separate_fits(features, labels, text, ridge, gain) - labels.numpy()) ** 2).sum()

    assert (head.gain > 0) is with_text
    others = [(ridge, head.gain) for ridge in RIDGES]
    others += [(ridge, head.gain * factor) for ridge in RIDGES for factor in (0.9, 1.1)] if with_text else []
    assert error(head.ridge, head.gain) == min(error(*other) for other in others)


def test_text_without_use_has_no_weight():
    features, labels, _ = example()
    head = MultiLabelHead.fit(features, labels, -MultiLabelHead.fit(features, labels).weights.float())
    assert head.gain == 0


def test_chunks_and_blocks_change_nothing(monkeypatch):
    features, labels, text = example()
    whole = MultiLabelHead.fit(features, labels, text)
    monkeypatch.setattr(multilabel, "CHUNK_ROWS", 7)
    monkeypatch.setattr(multilabel, "CLASS_BLOCK", 2)
    chunked = MultiLabelHead.fit(features, labels, text)
    for name in ("weights", "bias", "left_out", "thresholds"):
        torch.testing.assert_close(getattr(chunked, name), getattr(whole, name))


def test_thresholds_are_means_of_own_and_common_best():
    generator = torch.Generator().manual_seed(1)
    scores, labels = torch.randn(40, 3, generator=generator), torch.rand(40, 3, generator=generator) < 0.3
    scores += labels
    candidates = scores.flatten().sort().values

    def best(rows, flags):
        return max(candidates.tolist(), key=lambda t: f1_score(flags.flatten(), rows.flatten() >= t))

    common = best(scores, labels)
    thresholds = best_thresholds(scores, labels, torch.ones(3, dtype=torch.bool))
    for number in range(3):
        column, own = scores[:, number], 2 * thresholds[number] - common
        expected = f1_score(labels[:, number], column >= best(column, labels[:, number]))
        assert f1_score(labels[:, number], column >= own) == expected
        assert (column - own).abs().min() > 0  # halfway between two scores


def test_calibration_equals_logistic_regression():
    generator = torch.Generator().manual_seed(2)
    scores = torch.rand(4000, 2, generator=generator)
    labels = torch.rand(4000, 2, generator=generator) < (7 * scores - 3).sigmoid()
    slope, intercept = logistic_calibration(scores, labels)
    reference = LogisticRegression(C=1e6).fit(scores.reshape(-1, 1), labels.flatten())
    assert slope == pytest.approx(reference.coef_.item(), rel=0.01)
    assert intercept == pytest.approx(reference.intercept_.item(), rel=0.01)


def test_calibration_of_separable_scores_is_finite():
    slope, intercept = logistic_calibration(torch.tensor([[0.0], [1.0]]), torch.tensor([[False], [True]]))
    assert 0 < slope < 100 and abs(intercept) < 100


def test_calibration_converges_for_widely_spread_scores():
    generator = torch.Generator().manual_seed(2)
    scores = 2 * torch.randn(4000, 2, generator=generator)  # full Newton steps diverge
    labels = torch.rand(4000, 2, generator=generator) < (scores - 1).sigmoid()
    assert logistic_calibration(scores, labels) == pytest.approx((1, -1), abs=0.1)


def test_calibration_of_reversed_scores_keeps_their_order():
    labels = torch.tensor([[True, False, False, False]] * 100)
    slope, intercept = logistic_calibration((~labels).float(), labels)
    assert slope == LEAST_SLOPE
    assert intercept == pytest.approx(math.log(1 / 3), abs=0.1)  # log-odds of the labels


def test_logits_are_the_log_odds_of_probabilities():
    features, labels, text = example()
    head = MultiLabelHead.fit(features, labels, text)
    logits = head.classifier.logits(features)
    torch.testing.assert_close(logits.double().sigmoid(), head.probabilities(features), atol=1e-5, rtol=1e-5)
    accepted = logits >= head.log_odds(head.thresholds)
    assert torch.equal(accepted, head.predict(features))


def test_class_without_positives_has_the_text_prior():
    features, labels, text = example()
    labels[:, 2] = False
    head = MultiLabelHead.fit(features, labels, text)
    others = labels.double().mean(dim=0)[[0, 1, 3, 4]].mean()
    assumed = labels.double()
    assumed[:, 2] = others
    by_hand = separate_fits(features, assumed, text, head.ridge, head.gain)
    np.testing.assert_allclose(head.left_out.numpy(), by_hand, atol=1e-5)
    assert head.scores(features)[:, 2].std() > 0
    assert head.scores(features)[:, 2].mean() == pytest.approx(float(others))


@pytest.mark.parametrize("constant", [True, False])
def test_class_with_equal_labels_is_constant_without_text(constant, caplog):
    features, labels, text = example()
    labels[:, 2] = constant
    MultiLabelHead.fit(features, labels, text)
    head = MultiLabelHead.fit(features, labels)
    numbers = f"of 5 classes, {1 - constant} have no positive image and {0 + constant} no negative one"
    assert caplog.messages == [f"{numbers}: text alone predicts them", f"{numbers}: their scores are constant"]
    torch.testing.assert_close(head.scores(features)[:, 2], torch.full((30,), float(constant)).double())
    assert bool(head.predict(features)[:, 2].all()) is constant


def test_equal_labels_of_all_classes_are_fitted():
    features, _, text = example()
    head = MultiLabelHead.fit(features, torch.zeros(30, 5, dtype=torch.bool), text)
    assert not head.predict(features).any()


def test_choice_on_some_images_has_the_least_error_of_them(monkeypatch):
    features, labels, text = example()
    monkeypatch.setattr(multilabel, "MAX_ROWS", 10)  # every third of 30 images
    head = MultiLabelHead.fit(features, labels, text)

    def error(ridge, gain):
        return ((separate_fits(features, labels, text, ridge, gain) - labels.numpy())[::3] ** 2).sum()

    others = [(ridge, head.gain * factor) for ridge in RIDGES for factor in (0.9, 1.0, 1.1)]
    assert error(head.ridge, head.gain) == min(error(*other) for other in others)


def test_calibration_leaves_out_classes_with_equal_labels():
    features, labels, text = example()
    labels[:, 2] = False
    head = MultiLabelHead.fit(features, labels, text)
    varied = [0, 1, 3, 4]
    expected = logistic_calibration(head.left_out[:, varied], labels[:, varied])
    assert (head.slope, head.intercept) == expected
    assert head.slope != pytest.approx(logistic_calibration(head.left_out, labels)[0], rel=1e-3)
