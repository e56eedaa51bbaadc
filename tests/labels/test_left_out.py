"""Exact leave-one-out of the variant "free", against a fit without the image."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.hegraph.labels.issues import free_options, left_out_logits
from trainers.hegraph.method.cache import FoldedClassifier
from trainers.hegraph.method.closed_form import ClosedForm, TextGuess, class_offsets

SCALE = 30.0


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


@pytest.mark.parametrize(
    ("counts", "width"),
    [
        ([3, 2, 5, 4, 2], 8),
        ([16, 9, 12], 24),
        ([2] * 12, 6),  # more classes than features
    ],
)
def test_an_image_is_judged_as_by_a_fit_to_all_others(counts, width):
    features, labels, text = images_of(counts, width, seed=len(counts))
    found = left_out_logits(features, labels, text, SCALE, free_options(max(counts)))
    for j in range(len(labels)):
        others = torch.arange(len(labels)) != j
        expected = fit_to(features[others], labels[others], text, max(counts)).logits(features[j : j + 1])[0]
        torch.testing.assert_close(found[j].softmax(0), expected.softmax(0), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found[j] - found[j].mean(), expected - expected.mean(), atol=1e-5, rtol=1e-5)


def test_an_image_alone_in_its_class_leaves_what_text_says_of_it():
    features, labels, text = images_of([1, 4, 3, 5, 4, 4], 10, seed=2)
    j = int((labels == 0).nonzero()[0])
    options = free_options(5)
    found = left_out_logits(features, labels, text, SCALE, options)[j]
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
    found = left_out_logits(features, labels, text, SCALE, free_options(6))
    assert found.isfinite().all()
    kept = torch.tensor([0, 1, 3, 4])
    alone = left_out_logits(features, torch.searchsorted(kept, labels), text[kept], SCALE, free_options(6))
    assert found.shape == (18, 5)
    nearest = found[:, kept].argmax(dim=1)
    assert (nearest == alone.argmax(dim=1)).all()


def test_images_that_are_all_alike_have_finite_logits():
    features = F.normalize(torch.ones(6, 4, dtype=torch.float64), dim=1)
    labels, text = torch.tensor([0, 0, 0, 1, 1, 1]), torch.eye(4, dtype=torch.float64)[:2]
    assert left_out_logits(features, labels, text, SCALE, free_options(3)).isfinite().all()


@pytest.mark.parametrize(("shots", "constants"), [(1, (4.0, 0.3, 0.15)), (2, (2.0, 0.3, 0.15)), (9, (2.0, 0.3, 0.3))])
def test_the_constants_are_those_of_the_variant_free(shots, constants):
    options = free_options(shots)
    assert (options.kappa, options.rho, options.omega) == constants
