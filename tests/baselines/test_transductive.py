"""TransCLIP, ZLaP and StatA, by loops in float64 on a few images."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from trainers.hegraph.baselines import load_method
from trainers.hegraph.baselines.base import FittedMethod
from trainers.hegraph.baselines.transductive import Neighbours
from trainers.hegraph.method.cache import FoldedClassifier

M, K, WIDTH, TAU = 12, 3, 6, 8.0


@pytest.fixture
def images(unit_features) -> Tensor:
    return unit_features(M, WIDTH, seed=1).double()


@pytest.fixture
def text(unit_features) -> Tensor:
    return unit_features(K, WIDTH, seed=2).double()


def corrected(name: str, images: Tensor, text: Tensor, weights: Tensor | None = None, **options: object) -> Tensor:
    """Probabilities of a method, shape `[M, K]`, on those of class weights, by default zero-shot CLIP's."""
    method, bank = load_method(name), SimpleNamespace(text_positive=text)
    classifier = FoldedClassifier(TAU * (text if weights is None else weights))
    base = FittedMethod(classifier.logits, classifier=classifier)
    fitted = method.fit(bank, SimpleNamespace(**{**method.defaults, **options}), 1, base=base)
    assert fitted.together and fitted.classifier is None
    return fitted.logits(images).softmax(dim=1)


def nearest(images: Tensor, count: int) -> Tensor:
    """`W`: row i has the cosines of the `count` nearest others, not negative."""
    edges, cosines = torch.zeros(M, M).double(), images @ images.t()
    for i in range(M):
        others = sorted((j for j in range(M) if j != i), key=lambda j: -cosines[i, j])[:count]
        for j in others:
            edges[i, j] = max(cosines[i, j], 0)
    return edges


def by_loops(images: Tensor, text: Tensor, anchored: bool, determinant: bool = False) -> Tensor:
    """TransCLIP, or StatA if `anchored`, an image, a class and a dimension at a time."""
    predicted = (TAU * images @ text.t()).softmax(dim=1)
    q, edges = predicted.clone(), nearest(images, 3)
    if anchored:
        mu = text.clone()
        first = sum(q[i, c] * (images[i] - mu[c]) ** 2 for i in range(M) for c in range(K)) / M
        var = first.repeat(K, 1)
    else:
        mu = torch.zeros(K, WIDTH).double()
        for c in range(K):
            surest = sorted(range(M), key=lambda i: -q[i, c])[:8]
            mu[c] = F.normalize(sum(q[i, c] * images[i] for i in surest), dim=0)
        var = torch.full((K, WIDTH), 1 / WIDTH).double()
    for outer in range(11):
        for _ in range(5):
            scores = torch.zeros(M, K).double()
            for i in range(M):
                for c in range(K):
                    likelihood = -((images[i] - mu[c]) ** 2 / var[c]).sum() / 2
                    likelihood -= var[c].log().sum() / 2 if determinant else 0
                    near = sum((edges[i, j] + edges[j, i]) * q[j, c] for j in range(M))
                    scores[i, c] = predicted[i, c].log() + likelihood / 50 + near / 6
            q = scores.softmax(dim=1)
        if outer == 10:
            return q
        for c in range(K):
            n = q[:, c].sum()
            own = F.normalize(sum(q[i, c] * images[i] for i in range(M)) / n, dim=0)
            count = int((q.argmax(dim=1) == c).sum())
            trust = count / (count + 1) if anchored else 1.0
            mu[c] = F.normalize(trust * own + (1 - trust) * text[c], dim=0)
            around = sum(q[i, c] * (images[i] - mu[c]) ** 2 for i in range(M))
            if anchored:
                var[c] = trust * around / n + (1 - trust) * (first + (text[c] - mu[c]) ** 2)
        if not anchored:
            shared = sum(q[i, c] * (images[i] - mu[c]) ** 2 for i in range(M) for c in range(K)) / M
            var = shared.repeat(K, 1)
    raise AssertionError


def test_trans_clip_is_its_equations(images, text):
    assert_close(corrected("TransCLIP", images, text), by_loops(images, text, anchored=False))


@pytest.mark.parametrize("determinant", [True, False])
def test_stat_a_is_its_equations(images, text, determinant):
    found = corrected("StatA", images, text, DETERMINANT=determinant)
    assert_close(found, by_loops(images, text, anchored=True, determinant=determinant))


@pytest.mark.parametrize("classes", [1, 3])
def test_zlap_is_the_solution_of_its_system(images, text, classes):
    """An image has edges to 3 others and, of K = 3 classes, to all, or to the nearest one."""
    count = 4 if classes == 3 else 1
    edges = torch.zeros(K + M, K + M).double()
    edges[K:, K:] = nearest(images, count - 1)
    for i, cosines in enumerate(images @ text.t()):
        for c in cosines.topk(classes).indices:
            edges[K + i, c] = cosines[c].clamp_min(0) ** 5
    both = edges + edges.t()
    root = both.sum(dim=1).clamp_min(1e-12).rsqrt()
    system = torch.eye(K + M).double() - 0.3 * root[:, None] * both * root
    scores = torch.linalg.solve(system, torch.eye(K + M).double()[:, :K])[K:].clamp_min(1e-12)
    found = corrected("ZLaP", images, text.flip(0), weights=text, NEIGHBOURS=count)
    assert_close(found, scores / scores.sum(dim=1, keepdim=True), rtol=1e-6, atol=1e-9)


def test_an_image_has_no_edge_to_itself_and_edges_count_both_ways(images):
    found = Neighbours.among(images, 3)
    edges = nearest(images, 3)
    labels = torch.eye(M).double()
    assert_close(found.both_ways(labels), edges + edges.t())
    assert Neighbours.among(images[:2], 3).to.tolist() == [[1], [0]]
