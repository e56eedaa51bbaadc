"""Labels that seem wrong."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from trainers.hegraph import HeGraphClassifier, LabelIssue, UserError
from trainers.hegraph.labels.issues import find_label_issues, free_options, left_out_logits, suspicions
from trainers.hegraph.training.confidence import fit_temperature

NAMES = ("ant", "bee", "cat", "dog")


@pytest.fixture(scope="module")
def wrong():
    """Features of 8 images of each of 4 classes, labels of which three are wrong, the right ones, and text."""
    generator = torch.Generator().manual_seed(5)
    centres = torch.randn(4, 24, generator=generator)
    right = torch.arange(4).repeat_interleave(8)
    features = F.normalize(centres[right] + 0.6 * torch.randn(32, 24, generator=generator), dim=1)
    labels = right.clone()
    labels[[3, 12, 30]] = torch.tensor([2, 0, 1])
    return features, labels, right, F.normalize(centres + 0.8 * torch.randn(4, 24, generator=generator), dim=1)


def test_the_wrong_labels_come_first_and_the_right_classes_are_suggested(wrong):
    features, labels, _, text = wrong
    found = find_label_issues(features, labels, text, 30.0, NAMES)
    assert sorted(issue.index for issue in found) == list(range(32))
    scores = [issue.score for issue in found]
    assert scores == sorted(scores, reverse=True)
    assert {(i.index, i.label, i.suggested) for i in found if i.score > 0} == {
        (3, "cat", "ant"), (12, "ant", "bee"), (30, "bee", "dog"),
    }  # fmt: skip
    assert isinstance(found[0], LabelIssue)


def test_scores_compare_the_calibrated_probabilities_of_the_other_classes_with_that_of_the_label(wrong):
    features, labels, _, text = wrong
    logits = left_out_logits(features, labels, text, 30.0, free_options(10), offsets=False)
    probabilities = (logits / fit_temperature(logits, labels)).softmax(dim=1)
    for issue in find_label_issues(features, labels, text, 30.0, range(4))[::7]:
        of_image = probabilities[issue.index]
        others = [of_image[c].item() for c in range(4) if c != issue.label]
        expected = math.log(math.hypot(*others) / of_image[issue.label].item())
        assert issue.score == pytest.approx(expected, rel=1e-4)
        assert of_image[issue.suggested].item() == max(others)


def test_the_best_other_class_counts_most():
    logits = torch.tensor([[0.25, 0.25, 0.5], [0.6, 0.0, 0.4], [0.1, 0.45, 0.45]]).log()
    values, others = suspicions(logits, torch.tensor([2, 2, 0]))
    assert values.exp().tolist() == pytest.approx([0.125**0.5 / 0.5, 1.5, 0.45 * 2**0.5 / 0.1])
    assert others[:2].tolist() == [0, 0]


def test_images_of_one_class_are_refused(wrong):
    features, _, _, text = wrong
    with pytest.raises(UserError, match="two classes"):
        find_label_issues(features, torch.zeros(32, dtype=torch.long), text, 30.0, NAMES)


def test_the_classifier_speaks_of_its_own_labels(wrong):
    features, labels, right, text = wrong
    X, names = features.numpy(), [NAMES[c] for c in labels.tolist()]
    classifier = HeGraphClassifier(variant="free", text_features=text, logit_scale=30.0)
    classifier.fit(X, [NAMES[c] for c in right.tolist()])
    assert classifier.label_issues(X, names) == find_label_issues(features, labels, text, 30.0, NAMES)
    with pytest.raises(UserError, match="elk"):
        classifier.label_issues(X, ["elk", *names[1:]])
    with pytest.raises(ValueError, match="inconsistent"):
        classifier.label_issues(X, names[1:])
