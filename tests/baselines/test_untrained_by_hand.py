"""The methods in closed form, the cache methods, the linear probe and the transductive methods, against numbers worked
out by hand, their equations in float64, and scikit-learn.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from by_hand import AXES, SLANTED, bank_of, close, tensor
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from yacs.config import CfgNode

from benchmarks.tasks import unit_features
from trainers.hegraph.baselines import caches, linear_probes, load_method
from trainers.hegraph.baselines.base import FittedMethod
from trainers.hegraph.baselines.caches import Cache, search
from trainers.hegraph.baselines.closed_form import gaussian_classifier, text_guided_classifier
from trainers.hegraph.baselines.transductive import Neighbours
from trainers.hegraph.features.bank import FeatureBank
from trainers.hegraph.method.cache import FoldedClassifier

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


def nothing(features: Tensor, *numbers: float) -> Tensor:
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
    kept = caches.select_channels(bank, CfgNode(dict(caches.APE.defaults)), True)
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
    assert caches.select_channels(bank, CfgNode(dict(caches.APE.defaults)), images).tolist() == expected.tolist()


@pytest.mark.parametrize(("share", "kept"), [(0.01, 1), (0.6, 2), (0.7, 3), (1.0, 4)])
def test_ape_keeps_the_nearest_number_of_channels_and_at_least_one(share, kept):
    bank = bank_of([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, -1.0, 0.0]], [0, 1], [[0.5] * 4, [0.5, -0.5, 0.5, -0.5]])
    options = CfgNode({"CHANNELS": [["", share]], "WEIGHTS": [["", [1, 0]]]})
    assert len(caches.select_channels(bank, options, True)) == kept


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


# TransCLIP, ZLaP and StatA


M, K, WIDTH, TAU = 12, 3, 6, 8.0
IMAGES, TEXT = unit_features(M, WIDTH, seed=1).double(), unit_features(K, WIDTH, seed=2).double()


def corrected(name: str, text: Tensor = TEXT, weights: Tensor = TEXT, **options: object) -> Tensor:
    """Probabilities of a method, shape `[M, K]`, on those of class weights, by default zero-shot CLIP's."""
    method, bank = load_method(name), SimpleNamespace(text_positive=text)
    classifier = FoldedClassifier(TAU * weights)
    base = FittedMethod(classifier.logits, classifier=classifier)
    fitted = method.fit(bank, SimpleNamespace(**{**method.defaults, **options}), 1, base=base)
    assert method.needs_base and fitted.together and fitted.classifier is None
    return fitted.logits(IMAGES).softmax(dim=1)


def nearest(count: int) -> Tensor:
    """`W`: row i has the cosines of the `count` nearest others, not negative."""
    found = (IMAGES @ IMAGES.t()).fill_diagonal_(-2).topk(count)
    return torch.zeros(M, M).double().scatter(1, found.indices, found.values.clamp_min(0))


def by_hand(anchored: bool, determinant: bool = False) -> Tensor:
    """TransCLIP, or StatA if `anchored`, with every difference of an image and a class formed, `[M, K, d]`."""

    def squares(q: Tensor, mu: Tensor) -> Tensor:
        return q[:, :, None] * (IMAGES[:, None] - mu) ** 2

    predicted = q = (TAU * IMAGES @ TEXT.t()).softmax(dim=1)
    edges, mu = nearest(3), TEXT
    if anchored:
        var = first = (squares(q, mu).sum(dim=(0, 1)) / M).repeat(K, 1)
    else:
        kept = q >= q.sort(dim=0, descending=True).values[7]  # the eight surest of each class
        mu, var = F.normalize((q * kept).t() @ IMAGES, dim=1), torch.full((K, WIDTH), 1 / WIDTH).double()
    for outer in range(11):
        likelihood = -((IMAGES[:, None] - mu) ** 2 / var).sum(dim=2) / 2
        likelihood -= var.log().sum(dim=1) / 2 if determinant else 0
        for _ in range(5):
            q = (predicted.log() + likelihood / 50 + (edges + edges.t()) @ q / 6).softmax(dim=1)
        if outer == 10:
            break
        count = q.argmax(dim=1).bincount(minlength=K)[:, None]
        trust = count / (count + 1) if anchored else torch.ones(K, 1)
        mu = F.normalize(trust * F.normalize(q.t() @ IMAGES, dim=1) + (1 - trust) * TEXT, dim=1)
        around = squares(q, mu).sum(dim=0)
        if anchored:
            var = trust * around / q.sum(dim=0)[:, None] + (1 - trust) * (first + (TEXT - mu) ** 2)
        else:
            var = (around.sum(dim=0) / M).repeat(K, 1)
    return q


def test_trans_clip_is_its_equations():
    torch.testing.assert_close(corrected("TransCLIP"), by_hand(anchored=False))


@pytest.mark.parametrize("determinant", [True, False])
def test_stat_a_is_its_equations(determinant):
    found = corrected("StatA", DETERMINANT=determinant)
    torch.testing.assert_close(found, by_hand(anchored=True, determinant=determinant))


@pytest.mark.parametrize("classes", [1, 3])
def test_zlap_is_the_solution_of_its_system(classes):
    """An image has edges to 3 others and, of K = 3 classes, to all, or to the nearest one."""
    count = 4 if classes == 3 else 1
    edges = torch.zeros(K + M, K + M).double()
    edges[K:, K:] = nearest(count - 1)
    for i, cosines in enumerate(IMAGES @ TEXT.t()):
        for c in cosines.topk(classes).indices:
            edges[K + i, c] = cosines[c].clamp_min(0) ** 5
    both = edges + edges.t()
    root = both.sum(dim=1).clamp_min(1e-12).rsqrt()
    system = torch.eye(K + M).double() - 0.3 * root[:, None] * both * root
    scores = torch.linalg.solve(system, torch.eye(K + M).double()[:, :K])[K:].clamp_min(1e-12)
    found = corrected("ZLaP", text=TEXT.flip(0), NEIGHBOURS=count)
    torch.testing.assert_close(found, scores / scores.sum(dim=1, keepdim=True), rtol=1e-6, atol=1e-9)


def test_an_image_has_no_edge_to_itself_and_edges_count_both_ways():
    found = Neighbours.nearest(IMAGES, 3)
    edges = nearest(3)
    labels = torch.eye(M).double()
    torch.testing.assert_close(found.propagate(labels), edges + edges.t())
    assert Neighbours.nearest(IMAGES[:2], 3).indices.tolist() == [[1], [0]]
