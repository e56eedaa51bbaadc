"""The two classifiers against plain loops over Eq. 7 and 8."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from trainers.hegraph.method.cache import cache_affinities, cache_logits, text_logits

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


def test_affinities_do_not_depend_on_the_norm_of_the_keys(queries, keys):
    assert_close(cache_affinities(queries, 7 * keys, 5.5), cache_affinities(queries, keys, 5.5))


def test_an_image_has_affinity_1_to_itself_and_exp_minus_2_beta_to_its_opposite():
    query = torch.tensor([[0.6, 0.8]])
    affinities = cache_affinities(query, torch.cat([query, -query]), beta=1.5)
    assert_close(affinities, torch.tensor([[1.0, math.exp(-3.0)]]))


@pytest.mark.parametrize("absent", [0, 2, 3], ids=["first", "middle", "last"])
def test_a_class_without_a_cached_image_gets_0(queries, keys, absent):
    labels = torch.tensor([label for label in [0, 1, 2, 3] * 3 if label != absent])
    logits = cache_logits(cache_affinities(queries, keys, 5.5), labels, NUM_CLASSES)
    assert logits.shape == (len(queries), NUM_CLASSES)
    assert logits[:, absent].eq(0).all()
    assert logits.gt(0).sum(dim=1).eq(NUM_CLASSES - 1).all()


def test_both_heads_pass_gradients_to_the_class_features_and_keys(queries, keys):
    class_features, keys = keys[:4].clone().requires_grad_(), keys.requires_grad_()
    text_logits(queries, class_features, 100.0)[:, 0].sum().backward()
    cache_logits(cache_affinities(queries, keys, 5.5), torch.arange(9) % 4, NUM_CLASSES)[:, 0].sum().backward()
    assert class_features.grad.abs().sum(dim=1).gt(0).tolist() == [True, False, False, False]
    assert keys.grad.abs().sum(dim=1).gt(0).tolist() == [label % 4 == 0 for label in range(9)]
