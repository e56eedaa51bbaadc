"""Methods in closed form and the linear probe, against numbers worked out by hand and against scikit-learn."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from by_hand import AXES, SLANTED, bank_of, close, tensor
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from yacs.config import CfgNode

from trainers.hegraph.baselines import linear_probes
from trainers.hegraph.baselines.closed_form import gaussian_classifier, text_guided_classifier
from trainers.hegraph.features.bank import FeatureBank

QUERY = torch.tensor([[0.6, 0.8]])


@pytest.fixture
def plane() -> FeatureBank:
    """Two classes in the plane, two images each, whose means lie along their text features, the axes."""
    return bank_of([[0.8, 0.6], [0.8, -0.6], [0.6, 0.8], [-0.6, 0.8]], [0, 0, 1, 1], AXES, scale=100.0)


def test_zero_shot_is_the_cosine_times_the_scale(fit):
    fitted = fit("ZeroShot", bank_of(AXES, [0, 1], SLANTED, scale=50.0))
    close(fitted.logits(tensor([[1.0, 0.0]])), [[30.0, 40.0]])
    other = bank_of(AXES, [0, 1], AXES, test=(SLANTED, [0, 1]), scale=10.0)  # other classes, and another scale
    close(fitted.transfer(other), [[6.0, 8.0], [8.0, 6.0]])


# GDA and TIMO


def test_gda_by_hand(plane, fit):
    """Deviations (0, .6), (0, -.6), (.6, 0), (-.6, 0): scatter .72 I, trace over M - 1 = 3 .48, so P = 2 / 1.2 I."""
    # m_1 = (.8, 0): w_1 = (4/3, 0), b_1 = -.8 * 4/3 / 2
    expected = torch.tensor([[60 + 0.5 * (0.6 * 4 / 3 - 1.6 / 3), 80 + 0.5 * (0.8 * 4 / 3 - 1.6 / 3)]])
    torch.testing.assert_close(fit("GDA", plane, ALPHA=0.5).logits(QUERY), expected)
    # A class without images has the mean of all as its mean, (.4, .4)
    weight, bias = gaussian_classifier(plane.train_features[0], plane.train_labels, 3)
    torch.testing.assert_close(weight[2], torch.tensor([0.4, 0.4]) / 0.6)
    torch.testing.assert_close(bias[2], torch.tensor(-0.16 / 0.6))


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


@pytest.mark.parametrize(("name", "first"), [("GDA", 1e-4), ("TIMO", 1e-4), ("TIMOS", (1, 1e-4))])
def test_of_equally_good_candidates_the_first_is_taken(plane, fit, name, first):
    bank = replace(plane, val_features=torch.eye(2), val_labels=torch.arange(2))  # which any candidate gets right
    [entry] = fit(name, bank).selected.values()
    assert {percent for _, percent in entry["candidates"]} == {100.0}
    assert entry["value"] == first


def test_timo_s_predicts_with_what_val_chose(plane, fit):
    # The text has the labels the wrong way round, the images the right way: the less the text weighs, the better
    bank = replace(plane, text_positive=tensor(AXES[::-1]), val_features=tensor(AXES), val_labels=torch.arange(2))
    fitted = fit("TIMOS", bank, BETAS=[2, 1], CANDIDATES=[100.0, 0.01])
    [entry] = fitted.selected.values()
    assert [value for value, _ in entry["candidates"]] == [(2, 100.0), (2, 0.01), (1, 100.0), (1, 0.01)]
    assert entry["value"] == (2, 0.01)
    fixed = fit("TIMOS", bank, BETA=2, ALPHA=0.01, SEARCH=False)
    assert torch.equal(fitted.logits(QUERY), fixed.logits(QUERY))


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
    rows = {"BETA": [[1, 1.0], [2, beta], [4, 9.0]], "LAMBDA": [[1, 0.5], [3, strength]]}  # those of the shots, 3
    fitted = fit("ProKeR", bank, **rows, SEARCH=False)
    torch.testing.assert_close(fitted.logits(bank.test_features), expected, rtol=1e-4, atol=1e-3)


def test_a_candidate_counts_by_text_and_kernel_together_and_of_equals_the_smallest_is_taken(fit):
    # One image of class 0, which the text takes for class 1: cosines (0.6, 0.8). Y - T = (0.4, -0.8). The val image is
    # the same, so the kernel is 1 and the correction is (0.4, -0.8) * lambda / (1 + lambda): with 0.4 it is 2/7 of
    # that, (0.714, 0.571); with 0.1 an eleventh, (0.636, 0.727): only lambda 0.4 is right, whatever beta is.
    bank = bank_of(AXES[:1], [0], SLANTED, val=(AXES[:1], [0]), test=(AXES[:1], [1]))
    ranges = [["", [5.0, 6.0, 7.0, 8.0]], ["Tiny", [1.0, 3.0, 0.1, 0.4]]]  # the grid is that of the data set
    fitted = fit("ProKeR", bank, SEARCH_RANGE=ranges, SEARCH_STEP=[3, 2])
    table = fitted.selected["BETA, LAMBDA"]["candidates"]  # both ends of the range, and even steps between them
    assert [value for value, _ in table] == [(1.0, 0.1), (1.0, 0.4), (2.0, 0.1), (2.0, 0.4), (3.0, 0.1), (3.0, 0.4)]
    assert [accuracy for _, accuracy in table] == [0.0, 100.0] * 3
    assert fitted.selected["BETA, LAMBDA"]["value"] == (1.0, 0.4)
    close(fitted.logits(tensor(AXES[:1])), [[10 * (0.6 + 0.8 / 7), 10 * (0.8 - 1.6 / 7)]])


# Linear probe


@pytest.mark.parametrize("c", [0.1, 10.0])
def test_the_linear_probe_without_val_is_scikit_learns_at_its_c(make_bank, fit, c):
    bank = make_bank(shots=(3, 5, 4, 4), val=0)
    fitted = fit("LinearProbe", bank, C=c)
    assert fitted.epochs == fitted.steps > 0
    model = LogisticRegression(C=c, max_iter=1000, tol=1e-6).fit(bank.cache_keys().numpy(), bank.train_labels.numpy())
    expected = torch.tensor(model.predict_proba(bank.test_features.numpy()), dtype=torch.float32)
    for logits in (fitted.logits, fitted.classifier.logits):
        torch.testing.assert_close(logits(bank.test_features).softmax(dim=1), expected, rtol=0, atol=5e-3)


def probe_options(**changed: object) -> CfgNode:
    return CfgNode({"C": 1.0, "CANDIDATES": [100.0, 1.0, 0.01], "STEPS": 2, **changed})


@pytest.mark.parametrize(
    ("best", "steps", "asked", "found"),
    [
        # Of 2, 0 and -2 in powers of ten, 2 is nearest to 1.3, so the ends are 1 and 3, which are 0.3 and 1.7 off: the
        # right end moves to 2. The ends 1 and 2 are 0.3 and 0.7 off: it moves to 1.5, which is 0.2 off: the left end
        # moves to 1.25, which is not asked.
        (1.3, 3, [2, 0, -2, 1, 3, 1.5], 1.5),
        # The ends 1 and 3 are 1.6 and 0.4 off, then 2 and 3 are 0.6 and 0.4 off, then 2.5 and 3: 0.1 and 0.4
        (2.6, 4, [2, 0, -2, 1, 3, 2.5, 2.75], 2.5),
    ],
)
def test_the_linear_probe_halves_the_decades_around_the_best_power_of_ten(best, steps, asked, found):
    tried = []

    def accuracy(c: float) -> float:
        tried.append(round(math.log10(c), 4))
        return 100 - abs(math.log10(c) - best)

    c, entry = linear_probes.search(probe_options(STEPS=steps), accuracy)
    assert tried == asked
    assert c == entry["value"] == pytest.approx(10**found)
    distances = [round(abs(math.log10(value)), 4) for value, _ in entry["candidates"]]
    assert distances == sorted(distances)  # listed by the distance from the option C, which is 10^0
