"""Labels that seem wrong: scores by hand, and exact leave-one-out of "free" against a fit without the image."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.hegraph import HeGraphClassifier, LabelIssue, UserError
from trainers.hegraph.labels.issues import (
    find_label_issues,
    free_options,
    left_out_logits,
    left_out_offsets,
    suspicions,
)
from trainers.hegraph.method.cache import FoldedClassifier
from trainers.hegraph.method.closed_form import ClosedForm, TextGuess, class_offsets
from trainers.hegraph.method.options import FreeOptions
from trainers.hegraph.training.confidence import fit_temperature

SCALE = 30.0
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
    found = find_label_issues(features, labels, text, SCALE, NAMES)
    assert sorted(issue.index for issue in found) == list(range(32))
    assert found == sorted(found, key=lambda issue: -issue.score)
    doubted = {(issue.index, issue.label, issue.suggested) for issue in found if issue.score > 0}
    assert doubted == {(3, "cat", "ant"), (12, "ant", "bee"), (30, "bee", "dog")}
    assert isinstance(found[0], LabelIssue)
    with pytest.raises(UserError, match="two classes"):
        find_label_issues(features, 0 * labels, text, SCALE, NAMES)


def test_scores_compare_the_calibrated_probabilities_of_the_other_classes_with_that_of_the_label(wrong):
    features, labels, _, text = wrong
    logits = left_out_logits(features, labels, text, SCALE, free_options(10))
    probabilities = (logits / fit_temperature(logits, labels)).softmax(dim=1)
    for issue in find_label_issues(features, labels, text, SCALE, range(4))[::7]:
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


def test_the_classifier_speaks_of_its_own_labels(wrong):
    features, labels, right, text = wrong
    X, names = features.numpy(), [NAMES[c] for c in labels.tolist()]
    classifier = HeGraphClassifier(variant="free", text_features=text, logit_scale=SCALE)
    classifier.fit(X, [NAMES[c] for c in right.tolist()])
    assert classifier.label_issues(X, names) == find_label_issues(features, labels, text, SCALE, NAMES)
    with pytest.raises(UserError, match="elk"):
        classifier.label_issues(X, ["elk", *names[1:]])
    with pytest.raises(ValueError, match="inconsistent"):
        classifier.label_issues(X, names[1:])


# Leaving one out


def images_of(counts: list[int], width: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Unit features of images around class centres, their labels, and text off the centres; float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    labels = torch.tensor([c for c, count in enumerate(counts) for _ in range(count)])
    labels = labels[torch.randperm(len(labels), generator=generator)]
    centres, common = normal(len(counts), width), 3 * normal(width)
    features = F.normalize(centres[labels] + normal(len(labels), width) + common, dim=1)
    text = F.normalize(0.5 * centres + centres @ normal(width, width) / width**0.5 + 1.5 * common, dim=1)
    return features, labels, text


def fit_to(features: Tensor, labels: Tensor, text: Tensor, shots: int) -> FoldedClassifier:
    options = free_options(shots)
    zero_shot = FoldedClassifier(SCALE * text, class_offsets(SCALE * features @ text.t(), labels))
    messages = ClosedForm(features, labels, text, options.kappa, options.rho).to_text
    return zero_shot.plus(options.omega * SCALE * messages.weights, options.omega * SCALE * messages.bias)


def left_out(features: Tensor, labels: Tensor, text: Tensor, options: FreeOptions) -> Tensor:
    zero_shot = SCALE * features @ text.t()
    return left_out_logits(features, labels, text, SCALE, options) + left_out_offsets(zero_shot, labels)


# Also of more classes than features
@pytest.mark.parametrize(("counts", "width"), [([3, 2, 5, 4, 2], 8), ([16, 9, 12], 24), ([2] * 12, 6)])
def test_an_image_is_judged_as_by_a_fit_to_all_others(counts, width):
    features, labels, text = images_of(counts, width, seed=len(counts))
    found = left_out(features, labels, text, free_options(max(counts)))
    for j in range(len(labels)):
        others = torch.arange(len(labels)) != j
        expected = fit_to(features[others], labels[others], text, max(counts)).logits(features[j : j + 1])[0]
        torch.testing.assert_close(found[j] - found[j].mean(), expected - expected.mean(), atol=1e-5, rtol=1e-5)


def test_an_image_alone_in_its_class_leaves_what_text_says_of_it():
    features, labels, text = images_of([1, 4, 3, 5, 4, 4], 10, seed=2)
    j = int((labels == 0).nonzero()[0])
    options = free_options(5)
    found = left_out(features, labels, text, options)[j]
    others = labels != 0
    known, means = features[others], torch.stack([features[labels == c].mean(dim=0) for c in range(1, 6)])
    guess = TextGuess(text[1:], means)
    counts = torch.bincount(labels)[1:, None]
    nodes = torch.cat(
        [guess.of(text[:1]), (counts * means + options.kappa * guess.left_out) / (counts + options.kappa)]
    )
    deviations, mean = known - nodes[labels[others]], known.mean(dim=0)
    covariance = deviations.t() @ deviations / len(known)
    ridge = options.rho * covariance.trace() / len(known)
    inverse = torch.linalg.inv(covariance + ridge * torch.eye(10, dtype=torch.float64))

    def length(vectors: Tensor) -> Tensor:
        return ((vectors @ inverse) * vectors).sum(dim=1).sqrt()

    towards = (nodes - mean) @ inverse @ (features[j] - mean) / length(nodes - mean) / length(known - mean).mean()
    offsets = class_offsets(SCALE * known @ text.t(), labels[others])
    expected = SCALE * text @ features[j] + offsets + options.omega * SCALE * towards
    # Without its class, the ridge regression has another centre: 1 of 6 classes
    assert (found.softmax(0) - expected.softmax(0)).abs().max() < 0.02


def test_a_class_without_images_is_one_that_text_alone_describes():
    features, labels, text = images_of([4, 5, 0, 6, 3], 10, seed=4)
    found = left_out(features, labels, text, free_options(6))
    assert found.isfinite().all()
    kept = torch.tensor([0, 1, 3, 4])
    alone = left_out(features, torch.searchsorted(kept, labels), text[kept], free_options(6))
    assert found.shape == (18, 5)
    nearest = found[:, kept].argmax(dim=1)
    assert (nearest == alone.argmax(dim=1)).all()


def test_images_that_are_all_alike_have_finite_logits():
    features = F.normalize(torch.ones(6, 4, dtype=torch.float64), dim=1)
    labels, text = torch.tensor([0, 0, 0, 1, 1, 1]), torch.eye(4, dtype=torch.float64)[:2]
    assert left_out(features, labels, text, free_options(3)).isfinite().all()


@pytest.mark.parametrize(("shots", "constants"), [(1, (4.0, 0.3, 0.15)), (2, (2.0, 0.3, 0.15)), (9, (2.0, 0.3, 0.3))])
def test_the_constants_are_those_of_the_variant_free(shots, constants):
    options = free_options(shots)
    assert (options.kappa, options.rho, options.omega) == constants
