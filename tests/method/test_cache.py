"""The two classifiers and their loss against loops over Eq. 7 to 9; moving keys against keys that are formed."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from trainers.hegraph.method import cache as module
from trainers.hegraph.method.cache import (
    FoldedClassifier,
    Logits,
    adapter_losses,
    cache_affinities,
    cache_logits,
    cache_sums,
    moved_keys,
    shifted_cache_logits,
    text_logits,
)

LABELS = torch.tensor([3, 0, 2, 1, 0, 2, 2, 3, 1, 0, 2])  # unequal classes in no order; class 4 has no image
K, B = 5, 6
OWN = torch.tensor([5, 0, 10, 4, 1, 6])


def reference(features: Tensor, keys: Tensor, shift: Tensor, beta: float, own: Tensor | None) -> Tensor:
    affinities = cache_affinities(features, keys + shift[LABELS], beta)
    if own is not None:
        affinities = affinities.scatter(1, own.unsqueeze(1), 0.0)
    return cache_logits(affinities, LABELS, K)


@pytest.fixture(params=[1, 3, 100], ids=lambda rows: f"chunks of {rows}")
def chunk_rows(request, monkeypatch) -> None:
    size = request.param
    monkeypatch.setattr(
        module, "chunks", lambda m, _: [slice(i, min(i + size, len(m))) for i in range(0, len(m), size)]
    )


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
    unit_features, chunk_rows, own, known, beta, width, dtype, tolerance
):
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


@pytest.mark.parametrize("beta", [0.0, 50.0])
def test_sums_of_moved_keys_are_the_same(unit_features, chunk_rows, beta):
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


# --- plain classifiers

NUM_CLASSES = 4


@pytest.fixture
def queries(unit_features):
    return unit_features(6, 8, seed=1)


@pytest.fixture
def keys(unit_features):
    return unit_features(9, 8, seed=2)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a * b).sum() / math.sqrt(float((a * a).sum() * (b * b).sum())))


def test_text_logits_are_scaled_cosines_whatever_the_norm_of_the_class_features(queries, unit_features):
    class_features = unit_features(NUM_CLASSES, 8, seed=3) * torch.tensor([[0.5], [1.0], [2.0], [30.0]])
    expected = [[100 * cosine(query, x) for x in class_features] for query in queries]
    assert_close(text_logits(queries, class_features, 100.0), torch.tensor(expected), rtol=0, atol=1e-4)


def test_the_cache_sums_the_affinities_of_each_classs_images(queries, keys):
    labels = torch.tensor([2, 0, 1, 1, 3, 2, 0, 2, 2])  # unequal classes in no order
    beta = 5.5
    expected = torch.zeros(len(queries), NUM_CLASSES)
    for b, query in enumerate(queries):
        for key, label in zip(keys, labels):
            expected[b, label] += math.exp(-beta * (1 - cosine(query, key)))
    logits = cache_logits(cache_affinities(queries, keys, beta), labels, NUM_CLASSES)
    assert_close(logits, expected, rtol=0, atol=1e-5)


def test_the_cache_is_tip_adapters_product_with_one_hot_values(queries, keys):
    # Tip-Adapter's main.py: ((-1) * (beta - beta * affinity)).exp() @ cache_values, affinity = features @ keys.T
    labels = torch.tensor([2, 0, 1, 1, 3, 2, 0, 2, 2])
    values = F.one_hot(labels, NUM_CLASSES).float()
    expected = ((-1) * (5.5 - 5.5 * (queries @ keys.t()))).exp() @ values
    assert_close(cache_logits(cache_affinities(queries, keys, 5.5), labels, NUM_CLASSES), expected)


def test_an_image_has_affinity_1_to_itself_and_exp_minus_2_beta_to_its_opposite_at_any_norm():
    query = torch.tensor([[0.6, 0.8]])
    affinities = cache_affinities(query, torch.cat([7 * query, -query]), beta=1.5)
    assert_close(affinities, torch.tensor([[1.0, math.exp(-3.0)]]))


def test_a_class_without_a_cached_image_gets_0(queries, keys):
    labels = torch.tensor([0, 1, 3] * 3)
    logits = cache_logits(cache_affinities(queries, keys, 5.5), labels, NUM_CLASSES)
    assert logits.shape == (len(queries), NUM_CLASSES)
    assert logits[:, 2].eq(0).all() and logits.gt(0).sum(dim=1).eq(3).all()


def test_a_folded_classifier_by_hand(unit_features):
    weights, keys, queries = unit_features(3, 8, seed=1), unit_features(4, 8, seed=2), unit_features(5, 8, seed=3)
    labels, values, bias = torch.tensor([2, 0, 2, 1]), torch.tensor([1.0, 2.0, 0.5, 1.0]), torch.tensor([0.1, 0.2, 0.3])
    folded = FoldedClassifier(weights, bias, keys, labels, values, alpha=3.0, beta=2.0)
    visual = torch.zeros(5, 3)
    for b in range(5):
        for k in range(4):
            visual[b, labels[k]] += values[k] * math.exp(-2.0 * (1 - float(queries[b] @ keys[k])))
    text = queries @ weights.t() + bias
    assert_close(folded.parts(queries, batch_size=2).visual, visual)
    assert_close(folded.logits(queries), text + 3.0 * visual)
    assert_close(folded.text_only().logits(queries), text)
    assert folded.text_only().keys is None and folded.text_only().key_weights is None
    moved = folded.to("cpu", torch.float64)
    assert {moved.weights.dtype, moved.bias.dtype, moved.keys.dtype, moved.key_weights.dtype} == {torch.float64}
    assert moved.labels.dtype == torch.int64
    assert FoldedClassifier(weights).to("meta").weights.device.type == "meta"


# --- the loss (Eq. 9)

TRUE = torch.tensor([1, 0, 2])


@pytest.fixture
def logits() -> Logits:
    generator = torch.Generator().manual_seed(0)
    return Logits(torch.randn(3, 4, generator=generator), torch.randn(3, 4, generator=generator))


def cross_entropy(logits: Tensor, scale: float = 1.0) -> float:
    """Mean of -log softmax at the label, written out."""
    rows = [[scale * value for value in row] for row in logits.tolist()]
    terms = [math.log(sum(math.exp(v) for v in row)) - row[y] for row, y in zip(rows, TRUE.tolist())]
    return sum(terms) / len(terms)


def test_the_terms_are_the_two_cross_entropies_weighted_and_scaled(logits):
    losses = adapter_losses(logits, TRUE, visual_weight=0.1, visual_scale=3.0)
    assert set(losses) == {"text_loss", "visual_loss"}
    assert losses["text_loss"].item() == pytest.approx(cross_entropy(logits.text), rel=1e-5)
    assert losses["visual_loss"].item() == pytest.approx(0.1 * cross_entropy(logits.visual, 3.0), rel=1e-5)


def test_without_a_visual_classifier_or_its_weight_the_text_term_is_the_loss(logits):
    for given, weight in ((logits._replace(visual=None), 0.1), (logits, 0.0)):
        losses = adapter_losses(given, TRUE, visual_weight=weight, visual_scale=3.0)
        assert set(losses) == {"text_loss"}


def test_each_term_trains_its_own_logits(logits):
    text, visual = (x.requires_grad_() for x in logits)
    losses = adapter_losses(Logits(text, visual), TRUE, visual_weight=0.5, visual_scale=2.0)
    losses["text_loss"].backward()
    assert text.grad is not None and visual.grad is None
    losses["visual_loss"].backward()
    # The gradient of cross-entropy is softmax minus one-hot, over the batch; times weight and scale
    expected = 0.5 * 2.0 * ((2.0 * visual.detach()).softmax(1) - torch.eye(4)[TRUE]) / 3
    torch.testing.assert_close(visual.grad, expected)
