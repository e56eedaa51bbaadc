"""Messages in closed form, against the equations solved in another way: explicit refits, explicit inverses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from trainers.hegraph.method import closed_form
from trainers.hegraph.method.closed_form import (
    RIDGES,
    ClosedForm,
    class_offsets,
    guess_class_means,
    training_free_classifier,
)

K, WIDTH = 7, 6
LABELS = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 4, 5, 6, 6, 1])


@pytest.fixture
def text(unit_features) -> Tensor:
    return unit_features(K, WIDTH, seed=3)


@pytest.fixture
def keys(unit_features, text) -> Tensor:
    """Images that lie near a linear map of their text, so that the ridge regression has something to find."""
    turn = torch.linalg.qr(unit_features(WIDTH, WIDTH, seed=4))[0]
    return F.normalize(text[LABELS] + text[LABELS] @ turn + 0.2 * unit_features(len(LABELS), WIDTH, seed=5), dim=-1)


def means_of(keys: Tensor) -> Tensor:
    return torch.stack([keys[LABELS == k].mean(dim=0) for k in range(K)]).double()


def ridge(texts: Tensor, rest: Tensor, constant: Tensor, strength: Tensor, new: Tensor) -> Tensor:
    """The ridge regression with its intercept, solved for its primal weights."""
    design = torch.cat([texts, constant.sqrt().expand(len(texts), 1)], dim=1)
    weights = torch.linalg.solve(
        design.t() @ design + strength * torch.eye(design.shape[1]).double(), design.t() @ rest
    )
    return torch.cat([new, constant.sqrt().expand(len(new), 1)], dim=1) @ weights


def test_the_guess_of_a_class_is_that_of_a_regression_without_it(text, keys):
    means = means_of(keys)
    texts, images = text.double() - text.double().mean(0), means - means.mean(0)
    slope = (texts * images).sum() / texts.square().sum()
    assert slope > 0
    rest = images - slope * texts
    kernel = texts @ texts.t()
    constant = 10 * kernel.diagonal().mean()
    mean_eigenvalue = torch.linalg.eigvalsh(kernel + constant)[:-1].mean()

    def left_out(factor: float) -> Tensor:
        kept = [torch.arange(K) != k for k in range(K)]
        strength = factor * mean_eigenvalue
        return torch.cat([ridge(texts[k], rest[k], constant, strength, texts[~k]) for k in kept])

    errors = {factor: (rest - left_out(factor)).square().sum() for factor in RIDGES}
    best = min(errors, key=errors.__getitem__)
    assert errors[best] < rest.square().sum()
    guess = guess_class_means(text, means)
    assert_close(guess.left_out, means.mean(0) + slope * texts + left_out(best))
    new = F.normalize(text[:2] + text[2:4], dim=-1)
    shifted = new.double() - text.double().mean(0)
    predicted = ridge(texts, rest, constant, best * mean_eigenvalue, shifted)
    assert_close(guess.of(new), means.mean(0) + slope * shifted + predicted)


def test_where_no_regression_is_better_than_none_the_guess_is_a_multiple_of_the_text(text, unit_features):
    means = unit_features(K, WIDTH, seed=8)  # nothing to do with the text
    guess = guess_class_means(text, means)
    if guess.dual is None:
        assert_close(guess.left_out, guess.of(text))
    texts = text.double() - text.double().mean(0)
    assert guess.slope >= 0
    assert guess.left_out.shape == texts.shape


def test_the_messages_are_whitened_differences_to_the_mean(text, keys):
    kappa, rho = 3.0, 0.5
    found = ClosedForm(keys, LABELS, text, kappa, rho)
    guess, counts = guess_class_means(text, means_of(keys)).left_out, LABELS.bincount().double()
    nodes = torch.stack([(counts[k] * means_of(keys)[k] + kappa * guess[k]) / (counts[k] + kappa) for k in range(K)])
    residuals = keys.double() - nodes[LABELS]
    sigma = sum(torch.outer(row, row) for row in residuals) / len(keys)
    r = rho * WIDTH / len(keys)
    metric = (sigma / (sigma.trace() / WIDTH) + r * torch.eye(WIDTH).double()) / (1 + r)
    mean = keys.double().mean(0)
    scale = torch.stack([(row @ metric.inverse() @ row).sqrt() for row in keys.double() - mean]).mean()
    for k in range(K):
        difference = nodes[k] - mean
        expected = metric.inverse() @ difference / ((difference @ metric.inverse() @ difference).sqrt() * scale)
        assert_close(found.to_text.weights[k].double(), expected, rtol=1e-5, atol=1e-6)
        assert_close(found.to_text.bias[k].double(), -(expected @ mean), rtol=1e-5, atol=1e-6)
    for key in keys.double()[:3]:  # distances to the class nodes, by the inverse alone
        whitened = (key - mean) @ found.to_text.whitening / scale
        for k in range(K):
            expected = ((key - nodes[k]) @ metric.inverse() @ (key - nodes[k])).sqrt() / scale
            assert_close((whitened - found.to_text.nodes[k]).norm(), expected, rtol=1e-4, atol=1e-5)


def test_offsets_make_the_mean_probabilities_the_shares(unit_features):
    logits = 10 * unit_features(len(LABELS), K, seed=6)
    offsets = class_offsets(logits, LABELS, prior=1e-6)
    assert abs(offsets.mean()) < 1e-6
    # The factor at which they hold is not told: one of a grid, at which the offset logits have the right mass
    shares = LABELS.bincount().float()
    masses = [((logits + offsets) * t).softmax(dim=1).sum(dim=0) for t in (0.06, 0.09, 0.125, 0.18, 0.25, 0.35, 0.5)]
    assert min((mass - shares).abs().max() for mass in masses) < 0.05
    before = [(logits * t).softmax(dim=1).sum(dim=0) for t in (0.06, 0.09, 0.125, 0.18, 0.25, 0.35, 0.5)]
    assert min((mass - shares).abs().max() for mass in before) > 0.3


def test_a_strong_prior_leaves_no_offsets(text, keys):
    assert_close(class_offsets(100.0 * keys @ text.t(), LABELS, prior=1e9), torch.zeros(K), rtol=0, atol=1e-4)


def test_the_free_variant_adds_omega_times_the_messages_to_zero_shot_with_offsets(text, keys):
    closed = ClosedForm(keys, LABELS, text, kappa=4.0, rho=0.3)
    found = training_free_classifier(closed, text, 50.0, 0.2)
    offsets = class_offsets(50.0 * keys @ text.t(), LABELS, 4.0)
    queries = F.normalize(keys + 0.1, dim=-1)
    mean = closed.to_text.mean.float()
    expected = 50.0 * queries @ text.t() + offsets + 0.2 * 50.0 * (queries - mean) @ closed.to_text.weights.t()
    assert_close(found.logits(queries), expected, rtol=1e-4, atol=1e-3)
    assert found.keys is None


def test_the_noise_of_an_image_is_its_deviation_from_a_class_node_made_without_it(text, keys):
    kappa = 3.0
    found = ClosedForm(keys, LABELS, text, kappa=kappa, rho=0.3)
    for j, label in enumerate(LABELS.tolist()):
        others = [i for i in range(len(keys)) if LABELS[i] == label and i != j]
        total = keys[others].double().sum(dim=0) + kappa * found.guess.left_out[label]
        node = total / (len(others) + kappa)
        assert_close(found.noise[j].double(), keys[j].double() - node, rtol=1e-5, atol=1e-6)


def test_with_more_classes_than_features_the_guess_is_the_same_as_with_all_eigenvectors(unit_features, monkeypatch):
    many, width = 3 * WIDTH, WIDTH
    text = unit_features(many, width, seed=11)
    means = text @ unit_features(width, width, seed=12) + 0.1 * unit_features(many, width, seed=13)
    few = guess_class_means(text, means)

    def all_eigenvectors(texts: Tensor, constant: Tensor) -> tuple[Tensor, Tensor]:
        eigenvalues, vectors = torch.linalg.eigh(texts @ texts.t() + constant)
        return eigenvalues.clamp_min(0), vectors

    monkeypatch.setattr(closed_form, "kernel_eigenvectors", all_eigenvectors)
    every = guess_class_means(text, means)
    assert few.dual is not None
    assert_close(few.left_out, every.left_out)
    new = unit_features(4, width, seed=14)
    assert_close(few.of(new), every.of(new))


def test_a_new_class_receives_what_a_class_with_its_text_and_no_image_would(text, keys, unit_features):
    found = ClosedForm(keys, LABELS, text, kappa=4.0, rho=0.3)
    new = unit_features(3, WIDTH, seed=21)
    queries = unit_features(5, WIDTH, seed=22)
    logits = found.for_new_classes().logits(queries, new)
    for k, guess in enumerate(found.guess.of(new)):
        direction = (guess - found.to_text.mean) @ found.to_text.whitening
        message = direction / direction.norm() @ found.to_text.whitening / found.to_text.scale
        assert_close(logits[:, k].double(), (queries.double() - found.to_text.mean) @ message, rtol=1e-4, atol=1e-5)
