"""The methods in closed form, the cache methods and the linear probe, against numbers worked out by hand and against
scikit-learn.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from by_hand import AXES, SLANTED, bank_of, close, tensor
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression
from yacs.config import CfgNode

from trainers.hegraph.baselines import caches, linear_probes
from trainers.hegraph.baselines.caches import Cache, search
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
    # Class 1 has one image, and a class without images the mean of all as its mean, (1.6, 1) / 3. The scatter is
    # (0, .72) on the diagonal, the trace over M - 1 = 2 is .36, so P = 2 / (.36, 1.08)
    weight, bias = gaussian_classifier(tensor([[0.8, 0.6], [0.8, -0.6], [0.0, 1.0]]), torch.tensor([0, 0, 1]), 3)
    close(weight, [[1.6 / 0.36, 0.0], [0.0, 2 / 1.08], [3.2 / 3 / 0.36, 2 / 3 / 1.08]])
    close(bias, [-0.8 * 0.8 / 0.36, -1 / 1.08, -1.6 * 1.6 / 9 / 0.36 - 1 / 9 / 1.08])


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


def test_proker_is_lambda_times_scikit_learns_kernel_ridge_of_the_residuals(make_bank, fit):
    bank = make_bank(shots=(1, 3, 2), width=12)
    keys, text, images = (x.double() for x in (bank.cache_keys(), bank.text_positive, bank.test_features))
    residuals = F.one_hot(bank.train_labels, 3) - keys @ text.t()
    # With beta 2; of rows of norm 1, twice 1 - cos is the square of their distance
    ridge = KernelRidge(kernel="rbf", gamma=2.0 / 2, alpha=0.3).fit(keys.numpy(), residuals.numpy())
    expected = bank.logit_scale * (images @ text.t() + 0.3 * torch.tensor(ridge.predict(images.numpy())))
    rows = {"BETA": [[1, 1.0], [2, 2.0], [4, 9.0]], "LAMBDA": [[1, 0.5], [3, 0.3]]}  # those of the shots, 3
    close(fit("ProKeR", bank, **rows, SEARCH=False).logits(bank.test_features), expected, atol=1e-3)


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


# Caches and their search, on features whose cosines can be read off


def options(scale: list[float], step: list[int]) -> CfgNode:
    return CfgNode({"SEARCH": True, "SEARCH_SCALE": [["", scale]], "SEARCH_STEP": step})


def one_val_image() -> FeatureBank:
    """Two classes and one val image; the test images, which no search may see, have the other label."""
    return bank_of(AXES, [0, 1], AXES, val=([[0.0, 1.0]], [1]), test=([[0.0, 1.0]], [0]))


def nothing(features: torch.Tensor, *numbers: float) -> torch.Tensor:
    assert not torch.is_grad_enabled()
    return torch.zeros(len(features), 2)


def candidates(scale, step, start, order=("ALPHA", "BETA", "GAMMA")) -> list[tuple]:
    best, selected = search(one_val_image(), options(scale, step), start, Cache(nothing, nothing), order)
    [(names, entry)] = selected.items()
    assert names == ", ".join(start)
    assert best == entry["value"] == tuple(start.values())  # of equals, the start
    return [value for value, _ in entry["candidates"]]


def test_the_grid_starts_at_a_tenth_stops_a_step_before_its_end_and_is_listed_by_distance_from_the_start():
    # BETA ends at 2.1 in two steps of (2.1 - 0.1) / 2 = 1, ALPHA at 1.1 in four of (1.1 - 0.1) / 4 = 0.25.
    # The distance from (1, 5) is |alpha - 1| / 1.1 + |beta - 5| / 2.1; at the start's beta, all alphas are tried.
    found = candidates([2.1, 1.1], [2, 4], {"ALPHA": 1.0, "BETA": 5.0}, ("BETA", "ALPHA"))
    assert found[:5] == [(1.0, 5.0), (0.85, 5.0), (0.6, 5.0), (0.35, 5.0), (0.1, 5.0)]
    assert found[5:8] == [(0.85, 1.1), (0.6, 1.1), (0.35, 1.1)]  # 0.136, 0.364 and 0.591, and 1.857
    assert found[8:10] == [(0.85, 0.1), (0.1, 1.1)]  # 0.136 + 2.333 and 0.818 + 1.857
    assert found[10:] == [(0.6, 0.1), (0.35, 0.1), (0.1, 0.1)]  # 0.364, 0.591 and 0.818, and 2.333


def test_gamma_starts_at_zero_and_values_have_four_digits():
    found = candidates([0.3, 0.5, 0.4], [1, 2, 3], {"ALPHA": 1.0, "BETA": 1.0, "GAMMA": 0.1})
    grid = {(0.1, beta, gamma) for beta in (0.1, 0.3) for gamma in (0.0, 0.1333, 0.2667)}
    assert set(found) == {(1.0, 1.0, 0.1), (0.1, 1.0, 0.1), *grid}


def test_a_candidate_is_right_where_alpha_times_the_cache_outweighs_the_text():
    # The text says class 0 by 1, the cache says class 1 by beta: right where alpha * beta > 1, with alpha in 0.1, 0.6,
    # 1.1 and beta in 0.1, 1.1, 2.1 or the start's 0.8. The start (0.5, 0.8) is wrong. Of the three that are right,
    # (1.1, 1.1) is 0.6 / 1.6 + 0.3 / 3.1 = 0.472 from the start, (0.6, 2.1) is 0.1 / 1.6 + 1.3 / 3.1 = 0.482, and (1.1,
    # 2.1) is further.
    def text(features):
        assert torch.equal(features, torch.tensor([[0.0, 1.0]]))
        return torch.tensor([[1.0, 0.0]])

    cache = Cache(text, lambda features, beta: torch.tensor([[0.0, beta]]))
    start = {"ALPHA": 0.5, "BETA": 0.8}
    best, selected = search(one_val_image(), options([1.6, 3.1], [3, 3]), start, cache, ("ALPHA", "BETA"))
    table = dict(selected["ALPHA, BETA"]["candidates"])
    assert {value for value, accuracy in table.items() if accuracy == 100} == {(0.6, 2.1), (1.1, 1.1), (1.1, 2.1)}
    assert set(table.values()) == {0, 100}
    assert len(table) == 13
    assert best == selected["ALPHA, BETA"]["value"] == (1.1, 1.1)


def test_tip_adapter_predicts_with_what_val_chose(fit):
    # The text votes by 2 for the wrong class of the val image, the cache by alpha * (1 - e^-beta) for the right one.
    # ALPHA is 0.1 or 5.1 and BETA 0.1 or 7.1: only 5.1 with 5.5 (the start's) and with 7.1 is right; 5.5 is nearer.
    bank = bank_of(AXES, [0, 1], SLANTED, val=([[1.0, 0.0]], [0]), test=([[1.0, 0.0]], [1]))
    scale = {"SEARCH_SCALE": [["", [14.1, 10.1]]], "SEARCH_STEP": [2, 2]}
    fitted = fit("TipAdapter", bank, ALPHA=1.0, BETA=5.5, **scale)
    assert fitted.selected["ALPHA, BETA"]["value"] == (5.1, 5.5)
    assert (fitted.classifier.alpha, fitted.classifier.beta) == (5.1, 5.5)
    close(fitted.logits(tensor([[1.0, 0.0]])), [[6 + 5.1, 8 + 5.1 * math.exp(-5.5)]])
    unsearched = fit("TipAdapter", bank, ALPHA=1.0, BETA=5.5, SEARCH=False, **scale)
    assert (unsearched.classifier.alpha, unsearched.selected) == (1.0, {})


def test_apes_logits_are_those_of_a_loop_over_the_images_on_the_kept_channels(make_bank, fit):
    bank = make_bank(shots=(1, 3, 2), width=12)
    kept = caches.refine(bank, CfgNode(dict(caches.APE.defaults)), True)
    f, keys, text = (
        F.normalize(x[:, kept], dim=-1) for x in (bank.test_features, bank.cache_keys(), bank.text_positive)
    )
    expected = bank.logit_scale * bank.test_features @ bank.text_positive.t()
    for key, label in zip(keys, bank.train_labels):
        divergence = -math.log2((key @ text.t()).softmax(dim=0)[label])
        expected[:, label] += 2.0 * (-3.0 * (1 - f @ key)).exp() * math.exp(0.5 * divergence)
    fitted = fit("APE", bank, ALPHA=[["", 2.0]], BETA=3.0, GAMMA=0.5, SEARCH=False)
    torch.testing.assert_close(fitted.logits(bank.test_features), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("images", [True, False])
def test_ape_keeps_the_channels_of_least_similarity_between_classes_and_most_variance(make_bank, images):
    bank = make_bank(shots=(1, 3, 2), width=12)
    groups = [[text] for text in bank.text_positive]
    if images:
        for key, label in zip(bank.cache_keys(), bank.train_labels):
            groups[label].append(key)
    products = [a * b for one, other in itertools.permutations(groups, 2) for a in one for b in other]
    similarity = torch.stack(products).mean(dim=0)
    criterion = -0.7 * similarity + 0.3 * bank.text_positive.var(dim=0)
    expected = criterion.argsort(descending=True)[: round(12 * 500 / 1024)]
    assert caches.refine(bank, CfgNode(dict(caches.APE.defaults)), images).tolist() == expected.tolist()


@pytest.mark.parametrize(("share", "kept"), [(0.01, 1), (0.6, 2), (0.7, 3), (1.0, 4)])
def test_ape_keeps_the_nearest_number_of_channels_and_at_least_one(share, kept):
    bank = bank_of([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, -1.0, 0.0]], [0, 1], [[0.5] * 4, [0.5, -0.5, 0.5, -0.5]])
    assert len(caches.refine(bank, CfgNode({"CHANNELS": [["", share]], "WEIGHTS": [["", [1, 0]]]}), True)) == kept


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
