"""The cache with moving keys against the heads, which form every key and let autograd do the rest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from trainers.hegraph.method import cache as module
from trainers.hegraph.method.cache import cache_affinities, cache_logits, cache_sums, moved_keys, shifted_cache_logits

LABELS = torch.tensor([3, 0, 2, 1, 0, 2, 2, 3, 1, 0, 2])  # unequal classes in no order; class 4 has no image
K, B = 5, 6
OWN = torch.tensor([5, 0, 10, 4, 1, 6])


def reference(features: Tensor, keys: Tensor, shift: Tensor, beta: float, own: Tensor | None) -> Tensor:
    affinities = cache_affinities(features, keys + shift[LABELS], beta)
    if own is not None:
        affinities = affinities.scatter(1, own.unsqueeze(1), 0.0)
    return cache_logits(affinities, LABELS, K)


@pytest.fixture(params=[1, 2, 3, 100], ids=lambda rows: f"chunks of {rows}")
def chunk_rows(request, monkeypatch) -> None:
    size = request.param
    monkeypatch.setattr(
        module, "chunks", lambda m, _: [slice(i, min(i + size, len(m))) for i in range(0, len(m), size)]
    )


@pytest.mark.parametrize("own", [OWN, None], ids=["own left out", "all keys"])
@pytest.mark.parametrize("known", [True, False], ids=["products known", "products not known"])
@pytest.mark.parametrize("beta", [0.0, 1.0, 5.5, 50.0])
@pytest.mark.parametrize("width", [2, K, 8])  # K above, at and below d
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-5)], ids=str)
def test_logits_and_gradient_equal_the_heads(unit_features, chunk_rows, own, known, beta, width, dtype, tolerance):
    features, keys, shift, factors = (
        unit_features(rows, columns, seed=i).to(dtype)
        for i, (rows, columns) in enumerate([(B, width), (len(LABELS), width), (K, width), (B, K)])
    )
    shift = (0.5 * shift).requires_grad_()
    products = features @ keys.t() if known else None
    fast = shifted_cache_logits(features, keys, shift, LABELS, beta, own, products)
    slow = reference(features, keys, shift, beta, own)
    assert_close(fast, slow, rtol=tolerance, atol=tolerance)
    (ours,) = torch.autograd.grad((factors * fast).sum(), shift)
    (theirs,) = torch.autograd.grad((factors * slow).sum(), shift)
    scale = max(1.0, theirs.abs().max().item())
    assert_close(ours / scale, theirs / scale, rtol=tolerance, atol=tolerance)


def test_the_gradient_is_that_of_finite_differences(unit_features):
    features, keys = unit_features(B, 3, seed=1).double(), unit_features(len(LABELS), 3, seed=2).double()
    shift = (0.5 * unit_features(K, 3, seed=3)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: shifted_cache_logits(features, keys, s, LABELS, 2.0, OWN), (shift,))


def test_the_gradient_can_be_asked_for_twice(unit_features):
    features, keys = unit_features(B, 3, seed=1), unit_features(len(LABELS), 3, seed=2)
    shift = unit_features(K, 3, seed=3).requires_grad_()
    total = shifted_cache_logits(features, keys, shift, LABELS, 2.0).sum()
    first, second = (torch.autograd.grad(total, shift, retain_graph=True)[0] for _ in range(2))
    assert first.equal(second) and first.any()


def test_a_key_that_its_shift_cancels_gives_finite_logits_and_gradient():
    keys = torch.eye(2)
    shift = torch.tensor([[-1.0, 0.0], [0.5, 0.0]], requires_grad=True)
    logits = shifted_cache_logits(keys, keys, shift, torch.tensor([0, 1]), 1.0)
    logits.sum().backward()
    assert logits.isfinite().all() and shift.grad.isfinite().all()


@pytest.mark.parametrize("beta", [0.0, 1.0, 50.0])
def test_sums_of_moved_keys_are_the_heads(unit_features, chunk_rows, beta):
    features, keys = unit_features(B, 8, seed=1), unit_features(len(LABELS), 8, seed=2)
    expected = cache_logits(cache_affinities(features, keys, beta), LABELS, K)
    assert_close(cache_sums(features, keys, LABELS, beta, K), expected)


def test_moved_keys_leave_their_sources_alone(unit_features):
    keys, shift = unit_features(len(LABELS), 8, seed=2), unit_features(K, 8, seed=3)
    before = keys.clone(), shift.clone()
    assert_close(moved_keys(keys, shift, LABELS), keys + shift[LABELS])
    assert keys.equal(before[0]) and shift.equal(before[1])


@pytest.mark.parametrize(("rows", "width", "sizes"), [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 100, [1, 1, 1])])
def test_chunks_are_as_large_as_they_may_be_and_hold_every_row_once(monkeypatch, rows, width, sizes):
    monkeypatch.setitem(module.CHUNK, "cpu", 16)
    matrix = torch.arange(rows).unsqueeze(1)
    parts = [matrix[part] for part in module.chunks(matrix, width)]
    assert [len(part) for part in parts] == sizes
    assert torch.cat(parts).equal(matrix)
