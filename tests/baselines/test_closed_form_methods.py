"""GDA, TIMO, ProKeR and CLAP against numbers worked out by hand, and against scikit-learn."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.kernel_ridge import KernelRidge
from torch import Tensor

from trainers.hegraph.baselines.clap import zero_shot_confidence
from trainers.hegraph.baselines.gda import gaussian_classifier
from trainers.hegraph.baselines.timo import text_guided_classifier
from trainers.hegraph.features.bank import FeatureBank


@pytest.fixture
def plane() -> FeatureBank:
    """Two classes in the plane, two images each, whose means lie along their text features, the axes."""
    return FeatureBank(
        train_features=torch.tensor([[[0.8, 0.6], [0.8, -0.6], [0.6, 0.8], [-0.6, 0.8]]]),
        train_labels=torch.tensor([0, 0, 1, 1]),
        text_positive=torch.eye(2),
        text_negative=-torch.eye(2),
        classnames=["right", "up"],
        dataset="Plane",
        backbone="none",
        logit_scale=100.0,
    )


QUERY = torch.tensor([[0.6, 0.8]])


# GDA


def test_gda_by_hand(plane, fit):
    """Deviations (0, .6), (0, -.6), (.6, 0), (-.6, 0): scatter .72 I, trace over M - 1 = 3 .48, so P = 2 / 1.2 I."""
    # m_1 = (.8, 0): w_1 = (4/3, 0), b_1 = -.8 * 4/3 / 2
    expected = torch.tensor([[60 + 0.5 * (0.6 * 4 / 3 - 1.6 / 3), 80 + 0.5 * (0.8 * 4 / 3 - 1.6 / 3)]])
    torch.testing.assert_close(fit("GDA", plane, ALPHA=0.5).logits(QUERY), expected)


def test_gdas_gaussians_are_scikit_learns_discriminant_analysis_with_the_same_shrinkage(make_bank):
    bank = make_bank(shots=(4, 4, 4, 4), width=12, views=2)
    images, labels = bank.train_features.flatten(0, 1), bank.train_labels.repeat(2)
    count, width = images.shape
    # (M - 1) Sigma + tr(Sigma) I has the shape of (1 - s) Sigma + s tr(Sigma) / d I where s / (1 - s) = d / (M - 1)
    shrinkage = width / (count - 1 + width)
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage, priors=[0.25] * 4)
    model.fit(images.double().numpy(), labels.numpy())
    weight, bias = gaussian_classifier(images, labels, 4)
    scale = width * (1 - shrinkage) / count
    expected = scale * torch.tensor(model.decision_function(bank.test_features.double().numpy())).float()
    found = F.linear(bank.test_features, weight, bias)
    # scikit-learn's scores hold the prior as well, which all classes have alike
    torch.testing.assert_close(found - found[:, :1], expected - expected[:, :1], rtol=1e-3, atol=1e-3)


def test_gda_of_one_image_a_class_is_zero_shot(make_bank, fit):
    bank = make_bank(shots=(1, 1, 1), views=1)
    expected = fit("ZeroShot", bank).logits(bank.test_features)
    torch.testing.assert_close(fit("GDA", bank).logits(bank.test_features), expected)


def test_a_class_without_images_has_the_mean_of_all_as_its_mean(plane):
    images, labels = plane.train_features[0], plane.train_labels
    weight, bias = gaussian_classifier(images, labels, 3)
    # P = 2 / 1.2 I as by hand above, and the mean of all is (.4, .4)
    torch.testing.assert_close(weight[2], torch.tensor([0.4, 0.4]) / 0.6)
    torch.testing.assert_close(bias[2], torch.tensor(-0.16 / 0.6))


def test_the_shrinkage_of_two_images_divides_the_trace_by_one():
    # Both of class 0. Deviations (0, .6) and (0, -.6): scatter diag(0, .72), trace .72, P = 2 diag(1 / .72, 1 / 1.44)
    weight, bias = gaussian_classifier(torch.tensor([[0.8, 0.6], [0.8, -0.6]]), torch.tensor([0, 0]), 2)
    torch.testing.assert_close(weight[0], torch.tensor([1.6 / 0.72, 0.0]))
    torch.testing.assert_close(bias[0], torch.tensor(-0.64 / 0.72))


# TIMO


def test_timo_by_hand(plane, fit):
    """Each text feature is an image of cosine 1 to its class mean: m_1 = (2.6 / 3, 0).

    The scatter is (2 * .72 + 4/75) / 2 = .746667 on the diagonal, the trace over M - 1 = 5 is .298667, P = 1.913265 I.
    """
    w, b = 1.913265 * 2.6 / 3, -1.913265 * (2.6 / 3) ** 2 / 2
    expected = torch.tensor([[60 + 0.6 * w + b, 80 + 0.8 * w + b]])
    torch.testing.assert_close(fit("TIMO", plane).logits(QUERY), expected)


@pytest.mark.parametrize("times", [1, 2])
def test_timos_gaussians_have_the_text_scaled_by_its_cosine_among_their_images(make_bank, times):
    bank = make_bank(shots=(1, 3, 2), width=12)
    rows, labels = [], []
    for k in range(3):
        own = bank.train_labels == k
        mean = F.normalize(bank.cache_keys()[own].mean(dim=0), dim=0)
        text = bank.text_positive[k]
        rows += [(text @ mean) * text] * times + list(bank.train_features[:, own].flatten(0, 1))
        labels += [k] * (times + 2 * int(own.sum()))
    expected = gaussian_classifier(torch.stack(rows), torch.tensor(labels), 3)
    for found, wanted in zip(text_guided_classifier(bank, times), expected):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_timo_s_is_timo_where_each_text_feature_counts_once(make_bank, fit):
    bank = make_bank(val=0)
    one, other = (fit(name, bank).logits(bank.test_features) for name in ("TIMO", "TIMOS"))
    assert torch.equal(one, other)
    twice = fit("TIMOS", bank, BETA=2).logits(bank.test_features)
    assert not torch.allclose(one, twice, atol=1e-3)


@pytest.mark.parametrize(("name", "first"), [("GDA", 1e-4), ("TIMO", 1e-4), ("TIMOS", (1, 1e-4))])
def test_of_equally_good_candidates_the_first_is_taken(plane, fit, name, first):
    bank = replace(plane, val_features=torch.eye(2), val_labels=torch.arange(2))  # which any candidate gets right
    [entry] = fit(name, bank).selected.values()
    assert {percent for _, percent in entry["candidates"]} == {100.0}
    assert entry["value"] == first


# ProKeR


def kernel(one: Tensor, other: Tensor, beta: float) -> Tensor:
    return (-beta * (1 - one.double() @ other.double().t())).exp()


def test_proker_is_lambda_times_scikit_learns_kernel_ridge_of_the_residuals(make_bank, fit):
    bank = make_bank(shots=(1, 3, 2), width=12)
    beta, strength, keys = 2.0, 0.3, bank.cache_keys()
    residuals = F.one_hot(bank.train_labels, 3).double() - (keys @ bank.text_positive.t()).double()
    ridge = KernelRidge(kernel="precomputed", alpha=strength).fit(kernel(keys, keys, beta).numpy(), residuals.numpy())
    correction = torch.tensor(ridge.predict(kernel(bank.test_features, keys, beta).numpy()))
    cosines = (bank.test_features @ bank.text_positive.t()).double()
    expected = (bank.logit_scale * (cosines + strength * correction)).float()
    fitted = fit("ProKeR", bank, BETA=[[1, beta]], LAMBDA=[[1, strength]], SEARCH=False)
    torch.testing.assert_close(fitted.logits(bank.test_features), expected, rtol=1e-4, atol=1e-3)


def test_proker_by_hand(plane, fit):
    """One image a class, at right angles to each other, and beta so large that the kernel between them is nearly 0."""
    bank = replace(plane, train_features=torch.eye(2)[None], train_labels=torch.tensor([1, 0]))
    # K = I, Y - T = [[-1, 1], [1, -1]], and A = (1 / .5 + 1)^-1 of it: the first image gives (1 - 1/3, 1/3)
    fitted = fit("ProKeR", bank, BETA=[[1, 50.0]], LAMBDA=[[1, 0.5]])
    torch.testing.assert_close(fitted.logits(torch.eye(2)), torch.tensor([[200.0, 100.0], [100.0, 200.0]]) / 3)


# CLAP


def test_clap_takes_the_steps_of_gradient_descent_with_momentum_and_a_penalty(make_bank, fit):
    bank = make_bank(shots=(2, 2, 2), views=1, val=0)
    bank = replace(bank, text_norms=torch.tensor([3.0, 4.0, 5.0]))
    text, x = bank.text_norms[:, None] * bank.text_positive, bank.train_features[0]
    probabilities = (bank.logit_scale * x @ bank.text_positive.t()).softmax(dim=1)
    weights = torch.stack([probabilities[bank.train_labels == k, k].mean() for k in range(3)])
    prototypes, velocity = text.clone(), torch.zeros_like(text)
    for rate in (0.1, 0.05):  # the cosine over two epochs
        moved = prototypes.clone().requires_grad_()
        loss = F.cross_entropy(bank.logit_scale * x @ F.normalize(moved, dim=1).t(), bank.train_labels)
        (loss + (weights * (moved - text).square().sum(dim=1)).mean()).backward()
        velocity = 0.9 * velocity + moved.grad
        prototypes = prototypes - rate * velocity
    expected = bank.logit_scale * bank.test_features @ F.normalize(prototypes, dim=1).t()
    fitted = fit("CLAP", bank, EPOCHS=2, WARMUP_EPOCHS=0)
    torch.testing.assert_close(fitted.logits(bank.test_features), expected, rtol=1e-4, atol=1e-3)
    assert fitted.steps == 2


def test_claps_multipliers_are_the_mean_probabilities_that_zero_shot_clip_gives_a_classs_own_images(plane):
    # Texts (1, 0), (0, 1), (-1, 0) at the scale 1. Of (1, 0) class 0 has e / (e + 1 + 1/e) = .665241, of (.6, .8) it
    # has e^.6 / (e^.6 + e^.8 + e^-.6) = .396417: .530829 on average. Of (0, 1) class 1 has e / (e + 2) = .576117. Class
    # 2 has no images, and so the mean of the two.
    bank = replace(
        plane,
        train_features=torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]]),
        train_labels=torch.tensor([0, 1, 0]),
        text_positive=torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]),
        logit_scale=1.0,
    )
    expected = torch.tensor([0.530829, 0.576117, 0.553473])
    torch.testing.assert_close(zero_shot_confidence(bank), expected, rtol=0, atol=1e-5)


# The norm of the text


@pytest.mark.parametrize("name", ["TaskRes", "GraphAdapter", "CLAP"])
def test_the_longer_the_text_the_less_the_same_training_turns_it(make_bank, fit, name):
    bank = make_bank(val=0)

    def turned(norm: float) -> float:
        at_norm = replace(bank, text_norms=torch.full((5,), norm))
        weights = F.normalize(fit(name, at_norm).classifier.weights, dim=1)
        return (1 - (weights * bank.text_positive).sum(dim=1)).mean().item()

    assert turned(10.0) < turned(1.0)
    assert turned(1.0) == turned_without_norms(bank, fit, name)


def turned_without_norms(bank: FeatureBank, fit, name: str) -> float:
    weights = F.normalize(fit(name, bank).classifier.weights, dim=1)
    return (1 - (weights * bank.text_positive).sum(dim=1)).mean().item()
