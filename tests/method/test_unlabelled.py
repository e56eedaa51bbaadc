"""Adaptation to unlabelled images: rounds by hand, folding, the class prior, and odd pools."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from benchmarks.tasks import unit_features
from trainers.hegraph.method import unlabelled
from trainers.hegraph.method.cache import FoldedClassifier
from trainers.hegraph.method.head.closed_form import TextPrior


class Graph(NamedTuple):
    """Labelled images `[N, d]`, their classes `[N]`, and text `[K, d]`."""

    keys: Tensor
    labels: Tensor
    text: Tensor

    def adapt(
        self, classifier: FoldedClassifier, images: Tensor, scale: float, temperature: float
    ) -> unlabelled.UnlabelledAdaptation:
        sums = unlabelled.ClassSums.of(self.keys, self.labels, len(self.text))
        return unlabelled.adapt_to_unlabelled(classifier, sums, self.text, images, scale, temperature)


K, M, WIDTH, TAU, T = 3, 7, 5, 20.0, 1.7
LABELS = torch.tensor([0, 0, 1, 2])  # N = 4


# A classifier with a bias, its labelled images, and M unlabelled images
TEXT = unit_features(K, WIDTH, seed=1)
CLASSIFIER = FoldedClassifier(TAU / 4 * TEXT, torch.tensor([0.3, 0.0, -0.2]))
GRAPH = Graph(F.normalize(TEXT[LABELS] + unit_features(4, WIDTH, seed=2), dim=-1), LABELS, TEXT)
IMAGES = unit_features(M, WIDTH, seed=3)


def unlabelled_graph(text: Tensor) -> Graph:
    return Graph(text[:0], torch.zeros(0, dtype=torch.long), text)


def set_class_prior(monkeypatch, offsets: float, prior: float) -> None:
    monkeypatch.setattr(unlabelled.ClassPrior, "of", lambda *_: unlabelled.ClassPrior(0.9, 0.5, offsets, prior))


def by_hand(graph: Graph, rounds: int, lam: float, mu: float) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The equations of the module in float64, with explicit inverses.

    Returns `q` `[M, K]`, and a function from features `[B, d]` of other images to the change of their logits, `[B, K]`.
    """
    f, keys, hard = IMAGES.double(), graph.keys.double(), F.one_hot(graph.labels, K).double()
    n, a = len(keys), (CLASSIFIER.logits(IMAGES).double() / T).log_softmax(dim=1)
    q, o = a.exp(), torch.zeros(K).double()
    omega = 0.4 * M**2 / (M**2 + (6 * K) ** 2) * (1.0 if n else min(1.0, 2 * 0.9))

    def nodes(q: Tensor, f: Tensor) -> tuple:
        """Class means, covariance and discriminants with unlabelled images."""
        soft, every, edges = q.sum(dim=0), torch.cat([keys, f]), torch.cat([hard, q])
        if n:
            p = TextPrior.fit(graph.text, hard.t() @ keys / hard.sum(dim=0)[:, None]).left_out
        else:
            trust, means = (soft / (soft + 2))[:, None], q.t() @ f / soft[:, None]
            middle = (trust * means).sum(dim=0) / trust.sum()
            p = TextPrior.fit(graph.text, middle + trust * (means - middle)).left_out
        counts = edges.sum(dim=0) + 2
        u = (edges.t() @ every + 2 * p) / counts[:, None]
        apart = every[:, None] - u  # [N + M, K, d]
        sigma, r = torch.einsum("ic,icd,ice->de", edges, apart, apart) / len(every), 0.3 * WIDTH / len(every)
        metric = (sigma / (sigma.trace() / WIDTH) + r * torch.eye(WIDTH).double()) / (1 + r)
        inverse, m = metric.inverse(), u.mean(dim=0)
        s = ((every - m) @ inverse * (every - m)).sum(dim=1).mean().sqrt()
        lengths = ((u - m) @ inverse * (u - m)).sum(dim=1, keepdim=True).sqrt()
        return soft, counts, u, m, s, inverse, (u - m) @ inverse / (lengths * s)

    of_labelled = nodes(q[:0], f[:0]) if n else ()

    def discount(rows: Tensor) -> Tensor:
        """`delta h` of images."""
        return 0.3 * (rows - of_labelled[3]) @ of_labelled[-1].t() if n else torch.zeros(len(rows), K)

    for _ in range(rounds):
        soft, counts, u, m, s, inverse, x = nodes(q, f)
        o = o - ((soft + 3) / (M / K + 3)).log()
        sent = q[:, :, None] * (f - m)[:, None]
        without = (counts[:, None] * (u - m) - sent) / (counts - q)[:, :, None]
        g = torch.einsum("id,de,ice->ic", f - m, inverse, without)
        g = g / (torch.einsum("icd,de,ice->ic", without, inverse, without).sqrt() * s)
        prior = ((soft - q + 3) / (M / K + 3)).log()
        q = (a + omega * TAU / T * (g - discount(f)) + lam * o + (1 - lam) * mu / 2 * prior).softmax(dim=1)
    return q, lambda rows: omega * TAU * ((rows - m) @ x.t() - discount(rows)) + T * lam * o


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize(("lam", "mu"), [(0.3, 0.6), (1.0, 0.0)])
def test_rounds_equal_the_equations(rounds, labelled, lam, mu, monkeypatch):
    graph = GRAPH if labelled else unlabelled_graph(TEXT)
    monkeypatch.setattr(unlabelled, "ROUNDS", rounds)
    monkeypatch.setattr(unlabelled, "UNLABELLED_ROWS", 3)  # three blocks
    set_class_prior(monkeypatch, lam, mu)
    adapted = graph.adapt(CLASSIFIER, IMAGES, TAU, T)
    q, added = by_hand(graph, rounds, lam, mu)
    assert_close((adapted.logits / T).softmax(dim=1).double(), q, rtol=1e-4, atol=1e-6)
    outside = F.normalize(IMAGES[:4] + IMAGES[3:], dim=-1)
    expected = CLASSIFIER.logits(outside) + added(outside.double())
    assert_close(adapted.classifier.logits(outside).double(), expected, rtol=1e-4, atol=1e-5)


def test_adaptation_adds_a_bias_and_keeps_the_cache(monkeypatch):
    set_class_prior(monkeypatch, 1.0, 0.0)
    cache = {"keys": GRAPH.keys, "labels": GRAPH.labels, "alpha": 0.0, "beta": 5.5}
    plain, none = (replace(CLASSIFIER, bias=bias, **cache) for bias in (torch.zeros(K), None))
    plain, none = (GRAPH.adapt(classifier, IMAGES, TAU, T).classifier for classifier in (plain, none))
    assert_close(none.logits(IMAGES), plain.logits(IMAGES))
    assert none.keys is GRAPH.keys and (none.alpha, none.beta) == (0.0, 5.5)


def test_copies_of_an_image_count_once():
    copies = [3, 0, 1, 2, 3, 4, 5, 6]
    once, copied = (GRAPH.adapt(CLASSIFIER, rows, TAU, T) for rows in (IMAGES, IMAGES[copies]))
    assert torch.equal(copied.classifier.weights, once.classifier.weights)
    assert torch.equal(copied.logits, once.logits[copies])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distinct_rows_are_sorted_by_value(dtype):
    rows = torch.tensor([[0.5, -1], [-0.5, 2], [-2, 0], [0.5, -3], [-0.5, 2], [0, 1e-30], [3, 0]], dtype=dtype)
    found, places = unlabelled.distinct(rows)
    assert list(map(tuple, found.tolist())) == sorted(set(map(tuple, rows.tolist())))
    assert torch.equal(found[places], rows)


# Class prior


SCALE = 8.0  # logit scale of the text classifier: correct predictions of moderate confidence


def clouds(labels: Tensor, spread: float = 0.03) -> tuple[Graph, FoldedClassifier, Tensor]:
    """Ten classes with text near their images, two labelled images each, and images with the labels `labels`."""
    generator = torch.Generator().manual_seed(4)

    def near(points: Tensor) -> Tensor:
        return F.normalize(points + spread * torch.randn(points.shape, generator=generator), dim=-1)

    centres = F.normalize(torch.randn(10, 32, generator=generator), dim=-1)
    known, text = torch.arange(10).repeat_interleave(2), near(centres)
    return Graph(near(centres[known]), known, text), FoldedClassifier(SCALE * text), near(centres[labels])


EQUAL, FEW = torch.arange(10).repeat(20), torch.arange(2).repeat(100)


def adapt_clouds(images: Tensor, labelled: bool = True) -> unlabelled.UnlabelledAdaptation:
    graph, classifier, _ = clouds(EQUAL)
    return (graph if labelled else unlabelled_graph(graph.text)).adapt(classifier, images, SCALE, 1.0)


@pytest.mark.parametrize("labelled", [True, False])
def test_class_prior_of_equal_and_of_few_classes(labelled):
    equal = adapt_clouds(clouds(EQUAL, spread=0.15)[2], labelled).class_prior
    assert equal.offset_weight == 1 and equal.balance > 0.98 and equal.relative_balance > 0.8
    assert equal.prior_weight == 0
    few = adapt_clouds(clouds(FEW, spread=0.15)[2], labelled).class_prior
    assert few.offset_weight == 0 and few.balance < 0.4 and few.relative_balance < 0
    assert few.prior_weight == (
        pytest.approx(200 / (200 + 6 * 10)) if labelled else 0
    )  # full weight, by images per class


def test_uniform_predictions_give_no_offsets():
    """Uncertain predictions are balanced whatever the class proportions are."""
    probabilities = torch.full((200, 10), 0.1)
    assert unlabelled.class_balance(probabilities.mean(dim=0)) == pytest.approx(1)
    assert unlabelled.relative_balance(probabilities) == pytest.approx(0, abs=1e-3)
    class_prior = unlabelled.ClassPrior.of(probabilities, labelled=True)
    assert (class_prior.offset_weight, class_prior.prior_weight) == (0, pytest.approx(0.5 * 200 / 260, rel=0.01))


@pytest.mark.parametrize("sure", [30.0, 60.0])
def test_confident_predictions_of_few_classes_are_imbalanced(sure):
    """Classes without predicted images are resampled from all images."""
    assert unlabelled.relative_balance((sure * torch.eye(10)[FEW]).softmax(dim=1)) == -1
    assert unlabelled.relative_balance((sure * torch.eye(10)[EQUAL]).softmax(dim=1)) == pytest.approx(1, abs=0.1)


def test_rounding_keeps_the_class_prior():
    """Encoders round by the number of images in a call; the resamples then draw the same images."""
    images = clouds(EQUAL[:40], spread=0.15)[2]
    rounded = torch.nextafter(images, torch.randn(images.shape))
    exact, near = (adapt_clouds(rows) for rows in (images, rounded))
    assert -1 < exact.class_prior.relative_balance < 1.5
    assert near.class_prior.relative_balance == pytest.approx(exact.class_prior.relative_balance, abs=1e-5)
    assert_close(near.logits, exact.logits, atol=1e-3, rtol=0)


def test_class_balance_by_hand():
    assert unlabelled.class_balance(torch.tensor([0.5, 0.5, 0, 0])) == pytest.approx(0.5)
    assert unlabelled.class_balance(torch.tensor([0.5, 0.25, 0.25, 0])) == pytest.approx(
        math.exp(1.5 * math.log(2)) / 4
    )


def test_relative_balance_samples_many_images(monkeypatch):
    probabilities = (10 * torch.eye(10)[EQUAL]).softmax(dim=1)
    whole = unlabelled.relative_balance(probabilities)
    monkeypatch.setattr(unlabelled, "MAX_RESAMPLED", 100)
    sampled = unlabelled.relative_balance(probabilities)
    assert sampled != whole and sampled > 0.8 and whole > 0.8


ODD = {
    "one": clouds(EQUAL)[2][:1],
    "one repeated": clouds(EQUAL)[2][:1].expand(50, -1),
    "noise": F.normalize(torch.randn(50, 32, generator=torch.Generator().manual_seed(9)), dim=-1),
    "the labelled ones": clouds(EQUAL)[0].keys,
}


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("images", ODD.values(), ids=ODD.keys())
def test_odd_pools_do_not_lower_accuracy(images, labelled):
    _, classifier, tested = clouds(EQUAL)
    state = torch.get_rng_state()
    adapted = adapt_clouds(images, labelled)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is unchanged
    assert adapted.logits.equal(adapt_clouds(images, labelled).logits) and adapted.logits.shape == (len(images), 10)
    for tensor in (adapted.logits, adapted.classifier.weights, adapted.classifier.bias):
        assert tensor.isfinite().all()
    right = [(c.logits(tested).argmax(dim=1) == EQUAL).double().mean() for c in (classifier, adapted.classifier)]
    assert right[1] >= right[0] - 0.005


@pytest.mark.parametrize(("has_labels", "balance", "expected"), [
    (True, 0.3, 0.2), (False, 0.3, 0.12), (False, 0.5, 0.2), (False, 0.9, 0.2),
])  # fmt: skip
def test_message_weight_by_hand(has_labels, balance, expected):
    """At six images per class the weight is half of 0.4; without labels times min(1, 2 balance)."""
    assert unlabelled.message_weight(60, 10, has_labels, balance) == pytest.approx(expected)


def test_order_of_classes_changes_nothing():
    generator = torch.Generator().manual_seed(2)
    order = torch.tensor([3, 0, 4, 1, 2])
    text = unit_features(5, WIDTH, seed=3)
    labels = torch.arange(10) % 5
    graph = Graph(unit_features(10, WIDTH, seed=4), labels, text)
    moved = Graph(graph.keys, order.argsort()[labels], text[order])
    images = F.normalize(text[torch.randint(5, (40,), generator=generator)] + unit_features(40, WIDTH, seed=5), dim=1)
    expected = graph.adapt(FoldedClassifier(TAU * text), images, TAU, T)
    adapted = moved.adapt(FoldedClassifier(TAU * text[order]), images, TAU, T)
    assert 0 < expected.class_prior.offset_weight < 1
    assert adapted.class_prior.relative_balance == pytest.approx(expected.class_prior.relative_balance, abs=1e-6)
    assert_close(adapted.logits, expected.logits[:, order])
