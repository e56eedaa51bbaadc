"""Messages in closed form, against the equations solved in another way: explicit refits, explicit inverses."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from benchmarks.tasks import unit_features
from trainers.hegraph.method.head import closed_form
from trainers.hegraph.method.head.closed_form import ClosedForm, TextPrior

K, WIDTH = 7, 6
LABELS = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 4, 5, 6, 6, 1])


TEXT = unit_features(K, WIDTH, seed=3)


def keys_near(text: Tensor, noise: float = 0.2) -> Tensor:
    """Images that lie near a linear map of their text, so that the ridge regression has something to find."""
    turn = torch.linalg.qr(unit_features(WIDTH, WIDTH, seed=4))[0]
    moved = text[LABELS] + text[LABELS] @ turn
    return F.normalize(moved + noise * unit_features(len(LABELS), WIDTH, seed=5), dim=-1)


KEYS = keys_near(TEXT)


def means_of(keys: Tensor) -> Tensor:
    return torch.stack([keys[LABELS == k].mean(dim=0) for k in range(K)]).double()


def ridge(texts: Tensor, rest: Tensor, constant: Tensor, strength: Tensor, new: Tensor) -> Tensor:
    """The ridge regression with its intercept, solved for its primal weights."""
    design = torch.cat([texts, constant.sqrt().expand(len(texts), 1)], dim=1)
    penalty = strength * torch.eye(design.shape[1]).double()
    weights = torch.linalg.solve(design.t() @ design + penalty, design.t() @ rest)
    return torch.cat([new, constant.sqrt().expand(len(new), 1)], dim=1) @ weights


@pytest.mark.parametrize(("seed", "noise", "strength"), [
    (3, 0.02, 0.01), (3, 0.2, 0.03), (3, 0.6, 0.1), (31, 0.2, 0.3), (8, 1.0, 1.0),
])  # fmt: skip
def test_text_prior_is_leave_one_out_ridge(seed, noise, strength):
    text = unit_features(K, WIDTH, seed=seed)
    means = means_of(keys_near(text, noise))
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

    errors = {factor: (rest - left_out(factor)).square().sum() for factor in (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)}
    best = min(errors, key=errors.__getitem__)
    assert best == strength and errors[best] < rest.square().sum()
    prior = TextPrior.fit(text, means)
    assert_close(prior.left_out, means.mean(0) + slope * texts + left_out(best))
    new = F.normalize(text[:2] + text[2:4], dim=-1)
    shifted = new.double() - text.double().mean(0)
    predicted = ridge(texts, rest, constant, best * mean_eigenvalue, shifted)
    assert_close(prior.predict(new), means.mean(0) + slope * shifted + predicted)


def test_text_prior_without_regression_scales_text():
    prior = TextPrior.fit(TEXT, unit_features(K, WIDTH, seed=9))  # means that have nothing to do with the text
    assert prior.dual is None and prior.slope >= 0
    assert_close(prior.left_out, prior.predict(TEXT))
    opposite = TextPrior.fit(TEXT, -TEXT)
    assert opposite.slope == 0  # never below


def test_messages_are_whitened_differences_to_the_mean(monkeypatch):
    kappa, rho = 3.0, 0.5
    found = ClosedForm.fit(KEYS, LABELS, TEXT, kappa, rho)
    prior, counts = TextPrior.fit(TEXT, means_of(KEYS)).left_out, LABELS.bincount().double()
    nodes = torch.stack([(counts[k] * means_of(KEYS)[k] + kappa * prior[k]) / (counts[k] + kappa) for k in range(K)])
    residuals = KEYS.double() - nodes[LABELS]
    sigma, r = residuals.t() @ residuals / len(KEYS), rho * WIDTH / len(KEYS)
    inverse = ((sigma / (sigma.trace() / WIDTH) + r * torch.eye(WIDTH).double()) / (1 + r)).inverse()

    def length(rows: Tensor) -> Tensor:
        return (rows @ inverse * rows).sum(dim=-1).sqrt()

    mean = KEYS.double().mean(0)
    scale = length(KEYS - mean).mean()
    expected = (nodes - mean) @ inverse / (length(nodes - mean)[:, None] * scale)
    assert_close(found.to_text.weights.double(), expected, rtol=1e-5, atol=1e-6)
    assert_close(found.to_text.bias.double(), -(expected @ mean), rtol=1e-5, atol=1e-6)
    whitened = (KEYS[0].double() - mean) @ found.to_text.whitening / scale  # distances by the inverse
    expected = length(KEYS[0] - nodes) / scale
    assert_close((whitened - found.to_text.nodes).norm(dim=1), expected, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(closed_form, "CHUNK_ROWS", 4)  # blocks change nothing
    in_blocks = ClosedForm.fit(KEYS, LABELS, TEXT, kappa, rho)
    assert_close(in_blocks.to_text.weights, found.to_text.weights)
    assert_close(in_blocks.noise, found.noise)


def test_noise_is_the_leave_one_out_deviation():
    kappa = 3.0
    found = ClosedForm.fit(KEYS, LABELS, TEXT, kappa=kappa, rho=0.3)
    for j, label in enumerate(LABELS.tolist()):
        others = [i for i in range(len(KEYS)) if LABELS[i] == label and i != j]
        total = KEYS[others].double().sum(dim=0) + kappa * found.prior.left_out[label]
        node = total / (len(others) + kappa)
        assert_close(found.noise[j].double(), KEYS[j].double() - node, rtol=1e-5, atol=1e-6)


def test_text_prior_of_many_classes_equals_full_decomposition(monkeypatch):
    many = 3 * WIDTH
    text = unit_features(many, WIDTH, seed=11)
    means = text @ unit_features(WIDTH, WIDTH, seed=12) + 0.1 * unit_features(many, WIDTH, seed=13)
    few = TextPrior.fit(text, means)

    def all_eigenvectors(texts: Tensor, constant: Tensor) -> tuple[Tensor, Tensor]:
        eigenvalues, vectors = torch.linalg.eigh(texts @ texts.t() + constant)
        return eigenvalues.clamp_min(0), vectors

    monkeypatch.setattr(closed_form, "kernel_eigenvectors", all_eigenvectors)
    every, new = TextPrior.fit(text, means), unit_features(4, WIDTH, seed=14)
    assert few.dual is not None
    assert_close(few.left_out, every.left_out)
    assert_close(few.predict(new), every.predict(new))


def test_new_classes_take_the_text_prior_as_mean():
    found = ClosedForm.fit(KEYS, LABELS, TEXT, kappa=4.0, rho=0.3)
    new, queries = unit_features(3, WIDTH, seed=21), unit_features(5, WIDTH, seed=22)
    logits, of_text = found.for_new_classes().logits(queries, new), found.to_text
    for k, prior in enumerate(found.prior.predict(new)):
        direction = (prior - of_text.mean) @ of_text.whitening
        message = direction / direction.norm() @ of_text.whitening / of_text.scale
        assert_close(logits[:, k].double(), (queries.double() - of_text.mean) @ message, rtol=1e-4, atol=1e-5)
