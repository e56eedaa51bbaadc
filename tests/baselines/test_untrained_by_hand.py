"""Closed-form, cache, linear and transductive methods, compared with hand-worked numbers, equations in float64, and
scikit-learn.
"""

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from by_hand import AXES, SLANTED, assert_close, bank_of, options_of, tensor
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from benchmarks.tasks import unit_features
from trainers.hegraph.baselines import TRANSDUCTIVE_METHODS, linear_probes, load_method, transductive
from trainers.hegraph.baselines.ape import APEOptions, select_channels
from trainers.hegraph.baselines.base import FittedMethod
from trainers.hegraph.baselines.caches import Cache, SearchOptions, TipAdapterOptions, search
from trainers.hegraph.baselines.closed_form import gaussian_classifier, text_guided_classifier
from trainers.hegraph.baselines.transductive import Neighbours
from trainers.hegraph.features.bank import FeatureBank
from trainers.hegraph.method.cache import FoldedClassifier
from trainers.hegraph.utils.errors import UserError

QUERY = torch.tensor([[0.6, 0.8]])


@pytest.fixture
def plane() -> FeatureBank:
    """Two classes in the plane, two images each, whose means lie along their text features, the axes."""
    return bank_of([[0.8, 0.6], [0.8, -0.6], [0.6, 0.8], [-0.6, 0.8]], [0, 0, 1, 1], AXES, scale=100.0)


def test_zero_shot_is_a_scaled_cosine(fit):
    fitted = fit("ZeroShot", bank_of(AXES, [0, 1], SLANTED, scale=50.0))
    assert_close(fitted.logits(tensor([[1.0, 0.0]])), [[30.0, 40.0]])
    other = bank_of(AXES, [0, 1], AXES, test=(SLANTED, [0, 1]), scale=10.0)  # with other classes and another scale
    assert_close(fitted.transfer(other), [[6.0, 8.0], [8.0, 6.0]])


# GDA and TIMO


def test_gda_by_hand(plane, fit):
    # Deviations (0, .6), (0, -.6), (.6, 0), (-.6, 0): scatter .72 I, trace over M - 1 = 3 .48, so P = 2 / 1.2 I.
    # m_1 = (.8, 0): w_1 = (4/3, 0), b_1 = -.8 * 4/3 / 2
    expected = torch.tensor([[60 + 0.5 * (0.6 * 4 / 3 - 1.6 / 3), 80 + 0.5 * (0.8 * 4 / 3 - 1.6 / 3)]])
    torch.testing.assert_close(fit("GDA", plane, ALPHA=0.5).logits(QUERY), expected)


def test_gaussian_classifier_with_a_class_without_images():
    # Class 1 has one image. Class 2 has none and gets the mean of all images, (1.6, 1) / 3. The scatter is (0, .72) on
    # the diagonal, the trace over M - 1 = 2 is .36, so P = 2 / (.36, 1.08)
    weight, bias = gaussian_classifier(tensor([[0.8, 0.6], [0.8, -0.6], [0.0, 1.0]]), torch.tensor([0, 0, 1]), 3)
    assert_close(weight, [[1.6 / 0.36, 0.0], [0.0, 2 / 1.08], [3.2 / 3 / 0.36, 2 / 3 / 1.08]])
    assert_close(bias, [-0.8 * 0.8 / 0.36, -1 / 1.08, -1.6 * 1.6 / 9 / 0.36 - 1 / 9 / 1.08])


def test_timo_by_hand(plane, fit):
    # Each text feature counts as an image with cosine 1 to its class mean: m_1 = (2.6 / 3, 0). The scatter is
    # (2 * .72 + 4/75) / 2 = .746667 on the diagonal, the trace over M - 1 = 5 is .298667, P = 1.913265 I.
    w, b = 1.913265 * 2.6 / 3, -1.913265 * (2.6 / 3) ** 2 / 2
    expected = torch.tensor([[60 + 0.6 * w + b, 80 + 0.8 * w + b]])
    torch.testing.assert_close(fit("TIMO", plane).logits(QUERY), expected)


@pytest.mark.parametrize("times", [1, 2])
def test_timo_counts_scaled_text_features_as_images(make_bank, times):
    bank = make_bank(shots=(1, 3, 2), width=12)
    rows, labels = [], []
    for k in range(3):
        members, text = bank.train_labels == k, bank.text_positive[k]
        mean = F.normalize(bank.cache_keys()[members].mean(dim=0), dim=0)
        rows += [(text @ mean) * text] * times + list(bank.train_features[:, members].flatten(0, 1))
        labels += [k] * (times + 2 * int(members.sum()))
    expected = gaussian_classifier(torch.stack(rows), torch.tensor(labels), 3)
    torch.testing.assert_close(text_guided_classifier(bank, times), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "first"), [("GDA", 1e-4), ("TIMO", 1e-4), ("TIMOS", (1, 1e-4))])
def test_first_of_equally_good_candidates_is_selected(plane, fit, name, first):
    bank = replace(plane, val_features=torch.eye(2), val_labels=torch.arange(2))  # easy for all candidates
    [entry] = fit(name, bank).selected.values()
    assert ({percent for _, percent in entry["candidates"]}, entry["value"]) == ({100.0}, first)


def test_timo_s_predicts_with_the_selected_values(plane, fit):
    # The text features are swapped, the images are not: a smaller weight of the text is better
    bank = replace(plane, text_positive=tensor(AXES[::-1]), val_features=tensor(AXES), val_labels=torch.arange(2))
    fitted = fit("TIMOS", bank, BETAS=[2, 1], CANDIDATES=[100.0, 0.01])
    [entry] = fitted.selected.values()
    assert [value for value, _ in entry["candidates"]] == [(2, 100.0), (2, 0.01), (1, 100.0), (1, 0.01)]
    assert entry["value"] == (2, 0.01)
    fixed = fit("TIMOS", bank, BETA=2, ALPHA=0.01, SEARCH=False)
    assert torch.equal(fitted.logits(QUERY), fixed.logits(QUERY))


# ProKeR


def test_proker_is_scikit_learns_kernel_ridge(make_bank, fit):
    bank = make_bank(shots=(1, 3, 2), width=12)
    keys, text, images = (x.double() for x in (bank.cache_keys(), bank.text_positive, bank.test_features))
    residuals = F.one_hot(bank.train_labels, 3) - keys @ text.t()
    # Beta is 2, and 2 (1 - cos) is the squared distance of unit-norm rows
    ridge = KernelRidge(kernel="rbf", gamma=2.0 / 2, alpha=0.3).fit(keys.numpy(), residuals.numpy())
    expected = bank.logit_scale * (images @ text.t() + 0.3 * torch.tensor(ridge.predict(images.numpy())))
    rows = {"BETA": [[1, 1.0], [2, 2.0], [3, 9.0]], "LAMBDA": [[1, 0.5], [2, 0.3], [3, 0.7]]}  # values for 2 shots
    assert_close(fit("ProKeR", bank, **rows, SEARCH=False).logits(bank.test_features), expected, atol=1e-3)


def test_proker_selects_the_smallest_of_equals(fit):
    # One image of class 0, which the text assigns to class 1: cosines (0.6, 0.8), Y - T = (0.4, -0.8). The val image is
    # the same, so the kernel is 1 and the correction is (0.4, -0.8) * lambda / (1 + lambda). With lambda 0.4 this is
    # 2/7 of (0.4, -0.8) and the sum (0.714, 0.571), which is correct for any beta; with 0.1 it is 1/11 and the sum
    # (0.636, 0.727), which is wrong.
    bank = bank_of(AXES[:1], [0], SLANTED, val=(AXES[:1], [0]), test=(AXES[:1], [1]))
    ranges = [["", [5.0, 6.0, 7.0, 8.0]], ["Tiny", [1.0, 3.0, 0.1, 0.4]]]
    fitted = fit("ProKeR", bank, SEARCH_RANGE=ranges, SEARCH_STEP=[3, 2])
    table = fitted.selected["BETA, LAMBDA"]["candidates"]  # even steps, with both ends
    assert [value for value, _ in table] == [(1.0, 0.1), (1.0, 0.4), (2.0, 0.1), (2.0, 0.4), (3.0, 0.1), (3.0, 0.4)]
    assert [accuracy for _, accuracy in table] == [0.0, 100.0] * 3
    assert fitted.selected["BETA, LAMBDA"]["value"] == (1.0, 0.4)
    assert_close(fitted.logits(tensor(AXES[:1])), [[10 * (0.6 + 0.8 / 7), 10 * (0.8 - 1.6 / 7)]])


def test_rehark_solves_for_images_and_shifted_images(make_bank, fit):
    bank = make_bank(shots=(1, 3, 2), width=12)

    def unit(features: Tensor) -> Tensor:
        return F.normalize(features, dim=-1)

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        squares = torch.cdist(x, y).square()
        return 0.3 * (-2.0 * squares).exp() + 0.7 * (-0.5 * squares).exp()

    keys, text, images = (
        unit(x.double().sign() * x.double().abs() ** 0.8)
        for x in (bank.cache_keys(), bank.text_positive, bank.test_features)
    )
    means = torch.stack([keys[bank.train_labels == k].mean(dim=0) for k in range(3)])
    prior = unit(0.6 * text + 0.4 * unit(means))
    support = torch.cat([keys, unit(keys + 0.5 * prior[bank.train_labels])])
    residuals = F.one_hot(bank.train_labels.repeat(2), 3) - 4.0 * support @ prior.t()
    coefficients = torch.linalg.solve(kernel(support, support) + 0.2 * torch.eye(12), residuals)
    expected = 4.0 * images @ prior.t() + kernel(images, support) @ coefficients
    rows = {"SHARPNESS": [[1, [2.0, 0.5]]], "PENALTY": [[1, 9.0], [2, 0.2]], "IMAGES": [[1, 0.4]]}
    rows |= {"SCALE": [[1, 4.0]]}
    fitted = fit("ReHARK", bank, **rows, MIX=0.3, SHIFT=0.5, EXPONENT=0.8)
    assert_close(fitted.logits(bank.test_features), expected, atol=1e-3)


# Caches and their search


def options(scale: list[float], step: list[int]) -> SearchOptions:
    holder = APEOptions if len(scale) == 3 else TipAdapterOptions
    return holder(search_scale=scale, search_step=step)


def one_val_image() -> FeatureBank:
    """Two classes, a val image of class 1, and the same test image of class 0, which no search may read."""
    return bank_of(AXES, [0, 1], AXES, val=([[0.0, 1.0]], [1]), test=([[0.0, 1.0]], [0]))


def zeros(features: Tensor, *values: float) -> Tensor:
    assert not torch.is_grad_enabled()
    return torch.zeros(len(features), 2)


def candidates(scale, step, initial, order=("ALPHA", "BETA", "GAMMA")) -> list[tuple]:
    """Candidates of a search in which all are equally good, so that the initial values are selected."""
    best, selected = search(one_val_image(), options(scale, step), initial, Cache(zeros, zeros), order)
    [(names, entry)] = selected.items()
    assert names == ", ".join(initial) and best == entry["value"] == tuple(initial.values())
    return [value for value, _ in entry["candidates"]]


def test_grid_is_ordered_by_distance_from_initial_values():
    # BETA has two steps of (2.1 - 0.1) / 2 = 1, ALPHA four of (1.1 - 0.1) / 4 = 0.25, both without the end.
    # The distance from (1, 5) is |alpha - 1| / 1.1 + |beta - 5| / 2.1. The initial beta has all alphas.
    values = candidates([2.1, 1.1], [2, 4], {"ALPHA": 1.0, "BETA": 5.0}, ("BETA", "ALPHA"))
    assert values[:5] == [(1.0, 5.0), (0.85, 5.0), (0.6, 5.0), (0.35, 5.0), (0.1, 5.0)]
    assert values[5:8] == [(0.85, 1.1), (0.6, 1.1), (0.35, 1.1)]  # 0.136, 0.364 and 0.591, plus 1.857
    assert values[8:10] == [(0.85, 0.1), (0.1, 1.1)]  # 0.136 + 2.333 and 0.818 + 1.857
    assert values[10:] == [(0.6, 0.1), (0.35, 0.1), (0.1, 0.1)]  # 0.364, 0.591 and 0.818, plus 2.333


def test_gamma_grid_starts_at_zero():
    values = candidates([0.3, 0.5, 0.4], [1, 2, 3], {"ALPHA": 1.0, "BETA": 1.0, "GAMMA": 0.1})
    grid = {(0.1, beta, gamma) for beta in (0.1, 0.3) for gamma in (0.0, 0.1333, 0.2667)}
    assert set(values) == {(1.0, 1.0, 0.1), (0.1, 1.0, 0.1), *grid}


def test_search_selects_the_best_on_val():
    # The text logits are (1, 0), the cache logits (0, beta): class 1 wins if alpha * beta > 1, for alpha in 0.1, 0.6,
    # 1.1 and beta in 0.1, 1.1, 2.1 or the initial 0.8. The initial values (0.5, 0.8) are wrong. Three candidates are
    # correct: (1.1, 1.1) at the distance 0.6 / 1.6 + 0.3 / 3.1 = 0.472 from the initial values, (0.6, 2.1) at
    # 0.1 / 1.6 + 1.3 / 3.1 = 0.482, and (1.1, 2.1), which is further away.
    def text(features):
        assert torch.equal(features, torch.tensor([[0.0, 1.0]]))
        return torch.tensor([[1.0, 0.0]])

    cache = Cache(text, lambda features, beta: torch.tensor([[0.0, beta]]))
    initial = {"ALPHA": 0.5, "BETA": 0.8}
    best, selected = search(one_val_image(), options([1.6, 3.1], [3, 3]), initial, cache, ("ALPHA", "BETA"))
    table = dict(selected["ALPHA, BETA"]["candidates"])
    assert {value for value, accuracy in table.items() if accuracy == 100} == {(0.6, 2.1), (1.1, 1.1), (1.1, 2.1)}
    assert (set(table.values()), len(table)) == ({0, 100}, 13)
    assert best == selected["ALPHA, BETA"]["value"] == (1.1, 1.1)


def test_tip_adapter_predicts_with_the_selected_values(fit):
    # The text logits favour the wrong class of the val image by 2, the cache the true class by alpha * (1 - e^-beta).
    # ALPHA is 0.1 or 5.1 and BETA 0.1 or 7.1: 5.1 is correct with 5.5 (the initial value) and with 7.1; 5.5 is nearer.
    bank = bank_of(AXES, [0, 1], SLANTED, val=([[1.0, 0.0]], [0]), test=([[1.0, 0.0]], [1]))
    scale = {"SEARCH_SCALE": [["", [14.1, 10.1]]], "SEARCH_STEP": [2, 2]}
    fitted = fit("TipAdapter", bank, ALPHA=1.0, BETA=5.5, **scale)
    assert fitted.selected["ALPHA, BETA"]["value"] == (5.1, 5.5)
    assert (fitted.classifier.alpha, fitted.classifier.beta) == (5.1, 5.5)
    assert_close(fitted.logits(tensor([[1.0, 0.0]])), [[6 + 5.1, 8 + 5.1 * math.exp(-5.5)]])
    unsearched = fit("TipAdapter", bank, ALPHA=1.0, BETA=5.5, SEARCH=False, **scale)
    assert (unsearched.classifier.alpha, unsearched.selected) == (1.0, {})


def test_ape_is_a_loop_over_cached_images(make_bank, fit):
    bank = make_bank(shots=(1, 3, 2), width=12)
    channels = select_channels(bank, APEOptions(), True)
    f, keys, text = (
        F.normalize(x[:, channels], dim=-1) for x in (bank.test_features, bank.cache_keys(), bank.text_positive)
    )
    expected = bank.logit_scale * bank.test_features @ bank.text_positive.t()
    for key, label in zip(keys, bank.train_labels):
        divergence = -math.log2((key @ text.t()).softmax(dim=0)[label])
        expected[:, label] += 2.0 * (-3.0 * (1 - f @ key)).exp() * math.exp(0.5 * divergence)
    fitted = fit("APE", bank, ALPHA=[["", 2.0]], BETA=3.0, GAMMA=0.5, SEARCH=False)
    torch.testing.assert_close(fitted.logits(bank.test_features), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("use_images", [True, False])
def test_ape_selects_discriminative_channels(make_bank, use_images):
    bank = make_bank(shots=(1, 3, 2), width=12)
    groups = [[text] for text in bank.text_positive]
    if use_images:
        for key, label in zip(bank.cache_keys(), bank.train_labels):
            groups[label].append(key)
    products = [a * b for one, other in itertools.permutations(groups, 2) for a in one for b in other]
    similarity = torch.stack(products).mean(dim=0)
    criterion = -0.7 * similarity + 0.3 * bank.text_positive.var(dim=0)
    expected = criterion.argsort(descending=True)[: round(12 * 500 / 1024)]
    assert select_channels(bank, APEOptions(), use_images).tolist() == expected.tolist()


@pytest.mark.parametrize(("share", "expected"), [(0.01, 1), (0.6, 2), (0.7, 3), (1.0, 4)])
def test_ape_rounds_the_number_of_channels(share, expected):
    bank = bank_of([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, -1.0, 0.0]], [0, 1], [[0.5] * 4, [0.5, -0.5, 0.5, -0.5]])
    assert len(select_channels(bank, APEOptions(channels=share, weights=[1, 0]), True)) == expected


# Linear probe


@pytest.mark.parametrize("c", [0.1, 10.0])
def test_linear_probe_is_scikit_learns_logistic_regression(make_bank, fit, c):
    bank = make_bank(shots=(3, 5, 4, 4), val=0)
    fitted = fit("LinearProbe", bank, C=c)
    assert fitted.epochs == fitted.steps > 0
    model = LogisticRegression(C=c, max_iter=1000, tol=1e-6).fit(bank.cache_keys().numpy(), bank.train_labels.numpy())
    expected = torch.tensor(model.predict_proba(bank.test_features.numpy()), dtype=torch.float32)
    for logits in (fitted.logits, fitted.classifier.logits):
        torch.testing.assert_close(logits(bank.test_features).softmax(dim=1), expected, rtol=0, atol=5e-3)


@pytest.mark.parametrize(("best", "steps", "evaluated", "selected"), [
    # Of the powers 2, 0 and -2, 2 is nearest to 1.3, so the interval is 1 to 3. Its ends have the distances 0.3 and
    # 1.7: the right end moves to 2. The ends 1 and 2 have 0.3 and 0.7: the right end moves to 1.5, with 0.2. The
    # left end moves to 1.25, which is not evaluated.
    (1.3, 3, [2, 0, -2, 1, 3, 1.5], 1.5),
    # The ends 1 and 3 have the distances 1.6 and 0.4, 2 and 3 have 0.6 and 0.4, 2.5 and 3 have 0.1 and 0.4
    (2.6, 4, [2, 0, -2, 1, 3, 2.5, 2.75], 2.5),
])  # fmt: skip
def test_linear_probe_searches_around_the_best_decade(best, steps, evaluated, selected):
    powers = []

    def accuracy(c: float) -> float:
        powers.append(round(math.log10(c), 4))
        return 100 - abs(math.log10(c) - best)

    options = linear_probes.LinearProbeOptions(1.0, candidates=[100.0, 1.0, 0.01], steps=steps)
    c, entry = linear_probes.search_penalty(options, accuracy)
    assert powers == evaluated and c == entry["value"] == pytest.approx(10**selected)
    distances = [round(abs(math.log10(value)), 4) for value, _ in entry["candidates"]]
    assert distances == sorted(distances)  # from the option C, 10^0


# TransCLIP, ZLaP, StatA, ECALP and ADAPT


M, K, WIDTH, TAU = 12, 3, 6, 8.0
IMAGES, TEXT = unit_features(M, WIDTH, seed=1).double(), unit_features(K, WIDTH, seed=2).double()
LABELLED, LABELS_OF_THEM = unit_features(5, WIDTH, seed=3).double(), torch.tensor([0, 2, 1, 1, 0])


def corrected(
    name: str, text: Tensor = TEXT, weights: Tensor = TEXT, images: Tensor = IMAGES, **options: object
) -> Tensor:
    """Probabilities of a method, shape `[M, K]`, based on a classifier with the class weights."""
    method = load_method(name)
    bank = SimpleNamespace(text_positive=text, cache_keys=lambda: LABELLED, train_labels=LABELS_OF_THEM, dataset="")
    classifier = FoldedClassifier(TAU * weights)
    base = FittedMethod(classifier.logits, classifier=classifier)
    fitted = method.fit(bank, options_of(name, bank, **options), 1, base=base)
    assert method.needs_base and fitted.transductive and fitted.classifier is None
    return fitted.logits(images).softmax(dim=1)


def nearest(count: int) -> Tensor:
    """`W`: row i has the cosines of image i with its `count` nearest other images, or 0 for negative ones."""
    top = (IMAGES @ IMAGES.t()).fill_diagonal_(-2).topk(count)
    return torch.zeros(M, M).double().scatter(1, top.indices, top.values.clamp_min(0))


def gaussians_by_hand(anchored: bool, determinant: bool = False) -> Tensor:
    """TransCLIP, or StatA if `anchored`, by all differences of images and class means, `[M, K, d]`."""

    def squares(q: Tensor, mu: Tensor) -> Tensor:
        return q[:, :, None] * (IMAGES[:, None] - mu) ** 2

    predicted = q = (TAU * IMAGES @ TEXT.t()).softmax(dim=1)
    edges, mu = nearest(3), TEXT
    if anchored:
        var = initial_var = (squares(q, mu).sum(dim=(0, 1)) / M).repeat(K, 1)
    else:
        confident = q >= q.sort(dim=0, descending=True).values[7]  # the eight most confident images of each class
        mu, var = F.normalize((q * confident).t() @ IMAGES, dim=1), torch.full((K, WIDTH), 1 / WIDTH).double()
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
        scatter = squares(q, mu).sum(dim=0)
        if anchored:
            var = trust * scatter / q.sum(dim=0)[:, None] + (1 - trust) * (initial_var + (TEXT - mu) ** 2)
        else:
            var = (scatter.sum(dim=0) / M).repeat(K, 1)
    return q


def test_transclip_matches_its_equations():
    torch.testing.assert_close(corrected("TransCLIP"), gaussians_by_hand(anchored=False))


@pytest.mark.parametrize("determinant", [True, False])
def test_stata_matches_its_equations(determinant):
    expected = gaussians_by_hand(anchored=True, determinant=determinant)
    torch.testing.assert_close(corrected("StatA", DETERMINANT=determinant), expected)


@pytest.mark.parametrize(("count", "classes"), [(1, 1), (4, 3)])
def test_zlap_solves_its_linear_system(count, classes):
    # An image has edges to itself, to `count - 1` other images, and to `classes` of 3 classes
    edges = torch.zeros(K + M, K + M).double()
    edges[K:, K:] = nearest(count - 1)
    for i, cosines in enumerate(IMAGES @ TEXT.t()):
        for c in cosines.topk(classes).indices:
            edges[K + i, c] = cosines[c].clamp_min(0) ** 5
    both = edges + edges.t()
    root = both.sum(dim=1).clamp_min(1e-12).rsqrt()
    system = torch.eye(K + M).double() - 0.3 * root[:, None] * both * root
    scores = torch.linalg.solve(system, torch.eye(K + M).double()[:, :K])[K:].clamp_min(1e-12)
    probabilities = corrected("ZLaP", text=TEXT.flip(0), NEIGHBOURS=count)
    torch.testing.assert_close(probabilities, scores / scores.sum(dim=1, keepdim=True), rtol=1e-6, atol=1e-9)


def test_ecalp_matches_its_equations():
    # Rows and columns of `W`: classes, labelled images, test images; only test images have outgoing edges
    def strongest(queries: Tensor, nodes: Tensor, count: int) -> Tensor:
        cosines = F.normalize(queries, dim=1) @ nodes.t()
        top = cosines.topk(count)
        return torch.zeros_like(cosines).scatter(1, top.indices, top.values.clamp_min(0) ** 10)

    edges, known = torch.zeros(K + 5 + M, K + 5 + M).double(), K + 5
    edges[known:, :K] = strongest(IMAGES, TEXT, 2)
    edges[known:, K:known] = strongest(IMAGES / LABELLED.var(dim=0), LABELLED, 3)
    edges[known:, known:] = strongest(IMAGES * TEXT.var(dim=0), IMAGES, 4)
    both = edges + edges.t()
    root = 1 / (both.sum(dim=1).sqrt() + 1e-6)
    labels = torch.cat([torch.eye(K), F.one_hot(LABELS_OF_THEM, K), torch.zeros(M, K)]).double()
    for _ in range(3):
        labels[known:] = ((root[:, None] * both * root) @ labels)[known:]
    expected = labels[known:].clamp_min(1e-12)
    probabilities = corrected("ECALP", CLASSES=2, LABELLED=3, IMAGES=4)
    torch.testing.assert_close(probabilities, expected / expected.sum(dim=1, keepdim=True))


def test_adapt_matches_its_equations():
    logits = TAU * IMAGES @ TEXT.t()
    predicted, y = logits.argmax(dim=1), logits.softmax(dim=1)
    entropy = -(y * y.log()).sum(dim=1)
    banks = [[i for i in entropy.argsort().tolist() if predicted[i] == c][:2] for c in range(K)]
    means = torch.stack([
        0.7 * (y[:, c] @ IMAGES + y[bank, c] @ IMAGES[bank]) / (y[:, c].sum() + y[bank, c].sum()) + 0.3 * TEXT[c]
        if bank else TEXT[c] for c, bank in enumerate(banks)
    ])  # fmt: skip
    deviations = torch.cat([IMAGES[bank] - means[c] for c, bank in enumerate(banks)])
    covariance, n = deviations.t().cov(), len(deviations)
    metric = WIDTH * ((n - 1) * covariance + covariance.trace() * torch.eye(WIDTH).double()).inverse()
    gaps = IMAGES[:, None] - means
    evidence = (-torch.einsum("mkd,de,mke->mk", gaps, metric, gaps) / 2).log_softmax(dim=1)
    for c, bank in enumerate(banks):
        evidence[:, c] += 30 / (2 * n) * (IMAGES @ IMAGES[bank].t()) @ y[bank, c]
    expected = logits * ((evidence - evidence.amax(dim=1, keepdim=True)) / 30).exp()
    probabilities = corrected("ADAPT", BANK_SIZE=2, ALPHA=0.7, SCALE=30.0)
    torch.testing.assert_close(probabilities, expected.softmax(dim=1))


@pytest.mark.parametrize("name", TRANSDUCTIVE_METHODS)
def test_transductive_method_predicts_a_single_image(name):
    assert corrected(name, images=IMAGES[:1]).sum().item() == pytest.approx(1)


@pytest.mark.parametrize(("name", "key", "accepted", "refused"), [
    ("StatA", "ANCHOR", [0.0], [-0.1]), ("ZLaP", "NEIGHBOURS", [1], [0]), ("ZLaP", "GAMMA", [0.0], [-0.1]),
    ("ZLaP", "ALPHA", [0.0, 1.0], [-0.1, 1.1]), ("ECALP", "IMAGES", [0], [-1]), ("ECALP", "CLASSES", [0], [-1]),
    ("ECALP", "LABELLED", [0], [-1]), ("ECALP", "GAMMA", [0.0], [-0.1]), ("ADAPT", "BANK_SIZE", [1], [0]),
    ("ADAPT", "SCALE", [1.0], [0.0, [["", [1.0]]]]),
])  # fmt: skip
def test_option_ranges_of_transductive_methods(name, key, accepted, refused):
    for value in accepted:
        assert corrected(name, **{key: value}).isfinite().all()
    for value in refused:
        with pytest.raises(UserError, match=key):
            corrected(name, **{key: value})


@pytest.mark.parametrize("chunk", [5, M])
def test_neighbours_propagate_labels_in_both_directions(monkeypatch, chunk):
    monkeypatch.setattr(transductive, "COMPARED_ROWS", chunk)
    edges, labels = nearest(3), torch.eye(M).double()
    torch.testing.assert_close(Neighbours.nearest(IMAGES, 3).propagate(labels), edges + edges.t())


def test_images_are_not_their_own_neighbours():
    assert Neighbours.nearest(IMAGES[:2], 3).indices.tolist() == [[1], [0]]
