"""Leave-one-group-out scores of the multi-label head, against separate fits in double precision."""

import numpy as np
import pytest
import torch
from test_multilabel_head import example, ridge_fit

from trainers.hegraph import load_bank
from trainers.hegraph.method.head.multilabel import MultiLabelHead, best_thresholds, logistic_calibration


def fits_without_groups(head, features, labels, text, groups):
    """Scores of each image by a fit without its group, with the ridge and the prior of all images."""
    features = features.double().numpy()
    labels = labels.double().numpy()
    text = text.double().numpy()
    deviations = features - features.mean(axis=0)
    ridge = head.ridge * np.trace(deviations.T @ deviations) / features.shape[1]
    prior = np.vstack([head.gain * (text - text.mean(axis=0)).T, np.zeros((1, len(text)))])
    scores = np.empty_like(labels)
    for group in np.unique(groups):
        inside = groups.numpy() == group
        weights = ridge_fit(features[~inside], labels[~inside], prior, ridge)
        scores[inside] = np.hstack([features[inside], np.ones((inside.sum(), 1))]) @ weights
    return scores


@pytest.mark.parametrize("num_groups", [2, 7, 25])
def test_group_scores_equal_separate_fits(num_groups):
    features, labels, text = example()
    groups = torch.arange(30) % num_groups
    head = MultiLabelHead.fit(features, labels, text, groups)
    expected = fits_without_groups(head, features, labels, text, groups)
    np.testing.assert_allclose(head.left_out.numpy(), expected, atol=1e-5)


def test_groups_of_one_image_equal_leave_one_out():
    features, labels, text = example()
    alone = MultiLabelHead.fit(features, labels, text, torch.arange(30))
    without = MultiLabelHead.fit(features, labels, text)
    assert torch.equal(alone.left_out, without.left_out)
    assert torch.equal(alone.thresholds, without.thresholds) and alone.slope == without.slope


def test_thresholds_and_calibration_leave_out_groups():
    features, labels, text = example()
    groups = torch.arange(30) // 3
    head = MultiLabelHead.fit(features, labels, text, groups)
    without = MultiLabelHead.fit(features, labels, text)
    assert torch.equal(head.weights, without.weights) and (head.ridge, head.gain) == (without.ridge, without.gain)
    assert torch.equal(head.thresholds, best_thresholds(head.left_out, labels, head.varied))
    assert (head.slope, head.intercept) == pytest.approx(logistic_calibration(head.left_out, labels))


def test_class_without_positive_images_has_score_of_text():
    features, labels, text = example()
    labels[:, 2] = False
    found = MultiLabelHead.fit(features, labels, text, torch.arange(30) // 2).left_out
    expected = MultiLabelHead.fit(features, labels, text).left_out
    torch.testing.assert_close(found[:, 2], expected[:, 2], atol=0.02, rtol=0)  # text has most of the weight


def test_single_group_is_refused(refused):
    features, labels, text = example()
    with refused("", "expected images of at least two groups, got one"):
        MultiLabelHead.fit(features, labels, text, torch.zeros(30))


@pytest.mark.slow
def test_group_scores_equal_separate_fits_on_real_features(shared):
    bank = load_bank(shared / "banks" / "caltech55.safetensors")
    rows = torch.arange(0, len(bank.train_labels), 4)
    features = bank.cache_keys()[rows]
    labels = torch.nn.functional.one_hot(bank.train_labels[rows], len(bank.classnames)).bool()
    groups = torch.arange(len(rows)) // 5
    head = MultiLabelHead.fit(features, labels, bank.text_positive, groups)
    expected = fits_without_groups(head, features, labels, bank.text_positive, groups)
    np.testing.assert_allclose(head.left_out.numpy(), expected, atol=1e-5)
