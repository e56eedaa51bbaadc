"""TransCLIP, ZLaP and StatA, by their equations in float64 on a few images."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from benchmarks.tasks import unit_features
from trainers.hegraph.baselines import load_method
from trainers.hegraph.baselines.base import FittedMethod
from trainers.hegraph.baselines.transductive import Neighbours
from trainers.hegraph.method.cache import FoldedClassifier

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
    assert_close(corrected("TransCLIP"), by_hand(anchored=False))


@pytest.mark.parametrize("determinant", [True, False])
def test_stat_a_is_its_equations(determinant):
    found = corrected("StatA", DETERMINANT=determinant)
    assert_close(found, by_hand(anchored=True, determinant=determinant))


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
    assert_close(found, scores / scores.sum(dim=1, keepdim=True), rtol=1e-6, atol=1e-9)


def test_an_image_has_no_edge_to_itself_and_edges_count_both_ways():
    found = Neighbours.among(IMAGES, 3)
    edges = nearest(3)
    labels = torch.eye(M).double()
    assert_close(found.both_ways(labels), edges + edges.t())
    assert Neighbours.among(IMAGES[:2], 3).to.tolist() == [[1], [0]]
