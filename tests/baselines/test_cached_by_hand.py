"""The cache methods and their search on features whose cosines can be read off, with numbers worked out by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from by_hand import AXES, SLANTED, bank_of, close, tensor
from yacs.config import CfgNode

from trainers.hegraph.baselines import caches
from trainers.hegraph.baselines.caches import Cache, search
from trainers.hegraph.features.bank import FeatureBank

PAIR, TRIPLE = ("ALPHA", "BETA"), ("ALPHA", "BETA", "GAMMA")


def options(scale: list[float], step: list[int], search: bool = True) -> CfgNode:
    return CfgNode({"SEARCH": search, "SEARCH_SCALE": [["", scale]], "SEARCH_STEP": step})


def one_val_image() -> FeatureBank:
    """Two classes and one val image; the test images, which no search may see, have the other label."""
    return bank_of(AXES, [0, 1], AXES, val=([[0.0, 1.0]], [1]), test=([[0.0, 1.0]], [0]))


def nothing(features: torch.Tensor, *numbers: float) -> torch.Tensor:
    assert not torch.is_grad_enabled()
    return torch.zeros(len(features), 2)


def candidates(scale, step, start, order) -> list[tuple]:
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


def test_gamma_starts_at_zero():
    found = candidates([0.3, 0.5, 0.4], [1, 2, 2], {"ALPHA": 1.0, "BETA": 1.0, "GAMMA": 0.1}, TRIPLE)
    grid = {(0.1, 0.1, 0.0), (0.1, 0.3, 0.0), (0.1, 0.1, 0.2), (0.1, 0.3, 0.2)}
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
    best, selected = search(one_val_image(), options([1.6, 3.1], [3, 3]), start, cache, PAIR)
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
