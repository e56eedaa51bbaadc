"""The two classifiers against Eq. 7 and 8; moving keys against keys that are formed."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from benchmarks.tasks import unit_features
from trainers.hegraph.method import cache as module
from trainers.hegraph.method.cache import (
    FoldedClassifier,
    cache_affinities,
    cache_logits,
    moved_keys,
    shifted_cache_logits,
    text_logits,
)

LABELS = torch.tensor([3, 0, 2, 1, 0, 2, 2, 3, 1, 0, 2])  # unequal classes in no order; class 4 has no image
K, B = 5, 6
OWN = torch.tensor([5, 0, 10, 4, 1, 6])


# --- plain functions


def test_text_logits_are_scaled_cosines_and_the_cache_sums_the_affinities_of_each_classs_images():
    queries, keys = unit_features(B, 8, seed=1), 3 * unit_features(len(LABELS), 8, seed=2)
    cosines = queries @ (keys / 3).t()
    assert_close(text_logits(queries, keys, 100.0), 100 * cosines, rtol=0, atol=1e-4)
    expected = (-5.5 * (1 - cosines)).exp() @ torch.eye(K)[LABELS]
    assert_close(cache_logits(cache_affinities(queries, keys, 5.5), LABELS, K), expected, rtol=0, atol=1e-5)


# --- keys that training moves


@pytest.mark.parametrize("chunk", [1, 20, 10**6])  # every row alone, a few, all
@pytest.mark.parametrize(
    ("own", "known", "beta", "width", "dtype", "tolerance"),
    [
        (OWN, True, 5.5, 8, torch.float32, 1e-5),
        (OWN, False, 1.0, 2, torch.float64, 1e-8),
        (None, True, 50.0, K, torch.float64, 1e-8),
        (None, False, 0.0, 8, torch.float32, 1e-5),
    ],
)
def test_logits_and_gradient_equal_those_of_every_key_formed(
    monkeypatch, chunk, own, known, beta, width, dtype, tolerance
):
    monkeypatch.setitem(module.CHUNK, "cpu", chunk)
    features, keys, shift, factors = (
        unit_features(rows, columns, seed=i).to(dtype)
        for i, (rows, columns) in enumerate([(B, width), (len(LABELS), width), (K, width), (B, K)])
    )
    shift = (0.5 * shift).requires_grad_()
    fast = shifted_cache_logits(features, keys, shift, LABELS, beta, own, features @ keys.t() if known else None)
    affinities = cache_affinities(features, keys + shift[LABELS], beta)
    if own is not None:
        affinities = affinities.scatter(1, own.unsqueeze(1), 0.0)
    slow = cache_logits(affinities, LABELS, K)
    assert_close(fast, slow, rtol=tolerance, atol=tolerance)
    total = (factors * fast).sum()
    ours, again = (torch.autograd.grad(total, shift, retain_graph=True)[0] for _ in range(2))
    (theirs,) = torch.autograd.grad((factors * slow).sum(), shift)
    scale = max(1.0, theirs.abs().max().item())
    assert_close(ours / scale, theirs / scale, rtol=tolerance, atol=tolerance)
    assert again.equal(ours)
    assert_close(moved_keys(keys, shift, LABELS), keys + shift[LABELS])
    folded = FoldedClassifier(torch.zeros(K, width).to(dtype), None, keys, LABELS, beta=beta)
    assert_close(folded.parts(features).visual, cache_logits(cache_affinities(features, keys, beta), LABELS, K))


def test_a_key_that_its_shift_cancels_gives_finite_logits_and_gradient():
    keys = torch.eye(2)
    shift = torch.tensor([[-1.0, 0.0], [0.5, 0.0]], requires_grad=True)
    logits = shifted_cache_logits(keys, keys, shift, torch.tensor([0, 1]), 1.0)
    logits.sum().backward()
    assert logits.isfinite().all() and shift.grad.isfinite().all()


@pytest.mark.parametrize(("rows", "width", "sizes"), [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 100, [1, 1, 1])])
def test_chunks_are_as_large_as_they_may_be_and_hold_every_row_once(monkeypatch, rows, width, sizes):
    monkeypatch.setitem(module.CHUNK, "cpu", 16)
    matrix = torch.arange(rows).unsqueeze(1)
    parts = [matrix[part] for part in module.chunks(matrix, width)]
    assert [len(part) for part in parts] == sizes
    assert torch.cat(parts).equal(matrix)
    assert len(list(module.chunks(matrix, 0))) == 1


# --- the folded classifier


def test_a_folded_classifier_by_hand():
    weights, keys, queries = unit_features(3, 8, seed=1), unit_features(4, 8, seed=2), unit_features(5, 8, seed=3)
    labels, values, bias = torch.tensor([2, 0, 2, 1]), torch.tensor([1.0, 2.0, 0.5, 1.0]), torch.tensor([0.1, 0.2, 0.3])
    folded = FoldedClassifier(weights, bias, keys, labels, values, alpha=3.0, beta=2.0)
    visual = (values * (-2.0 * (1 - queries @ keys.t())).exp()) @ torch.eye(3)[labels]
    text = queries @ weights.t() + bias
    assert (folded.num_classes, folded.width) == (3, 8)
    assert_close(folded.parts(queries, batch_size=2).visual, visual)
    assert_close(folded.logits(queries), text + 3.0 * visual)
    assert_close(folded.text_only().logits(queries), text)
    assert folded.text_only().keys is None and folded.text_only().key_weights is None
    moved = folded.to("cpu", torch.float64)
    assert {moved.weights.dtype, moved.bias.dtype, moved.keys.dtype, moved.key_weights.dtype} == {torch.float64}
    assert moved.labels.dtype == torch.int64 and moved.alpha == 3.0
    assert FoldedClassifier(weights).to("meta").weights.device.type == "meta"
