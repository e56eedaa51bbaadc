"""The search of the cache methods: its grid, its order among equals, and what it counts, worked out by hand."""

from __future__ import annotations

import pytest
import torch
from by_hand import bank_of
from yacs.config import CfgNode

from trainers.hegraph.baselines import cache_search
from trainers.hegraph.features.bank import FeatureBank
from trainers.hegraph.utils.errors import UserError

AXES = [[1.0, 0.0], [0.0, 1.0]]


def options(scale: list[float], step: list, search: bool = True) -> CfgNode:
    return CfgNode({"SEARCH": search, "SEARCH_SCALE": [["", scale]], "SEARCH_STEP": step})


def one_val_image(label: int = 1) -> FeatureBank:
    """Two classes and one val image; the test images, which no search may see, have the other label."""
    return bank_of(AXES, [0, 1], AXES, val=([[0.0, 1.0]], [label]), test=([[0.0, 1.0]], [1 - label]))


def no_text(features: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(features), 2)


def no_cache(features: torch.Tensor, *numbers: float) -> torch.Tensor:
    return torch.zeros(len(features), 2)


def test_the_grid_starts_at_a_tenth_stops_a_step_before_its_end_and_is_listed_by_distance_from_the_start():
    # BETA ends at 2.1 in two steps of (2.1 - 0.1) / 2 = 1, ALPHA at 1.1 in four of (1.1 - 0.1) / 4 = 0.25.
    # The distance from (1, 5) is |alpha - 1| / 1.1 + |beta - 5| / 2.1.
    start = {"ALPHA": 1.0, "BETA": 5.0}
    best, selected = cache_search.search(
        one_val_image(), options([2.1, 1.1], [2, 4]), start, no_text, no_cache, ("BETA", "ALPHA")
    )
    assert list(selected) == ["ALPHA, BETA"]
    assert [value for value, _ in selected["ALPHA, BETA"]["candidates"]] == [
        (1.0, 5.0),  # 0
        (0.85, 5.0),  # 0.136: at the start's beta, the alphas of the grid are tried as well
        (0.6, 5.0),  # 0.364
        (0.35, 5.0),  # 0.591
        (0.1, 5.0),  # 0.818
        (0.85, 1.1),  # 0.136 + 1.857 = 1.993
        (0.6, 1.1),  # 0.364 + 1.857 = 2.221
        (0.35, 1.1),  # 0.591 + 1.857 = 2.448
        (0.85, 0.1),  # 0.136 + 2.333 = 2.470
        (0.1, 1.1),  # 0.818 + 1.857 = 2.675
        (0.6, 0.1),  # 0.364 + 2.333 = 2.697
        (0.35, 0.1),  # 0.591 + 2.333 = 2.924
        (0.1, 0.1),  # 0.818 + 2.333 = 3.152
    ]
    assert best == (1.0, 5.0)  # of equals, the start


def test_without_an_order_the_scale_names_alpha_beta_and_gamma_and_gamma_starts_at_zero():
    start = {"ALPHA": 1.0, "BETA": 1.0, "GAMMA": 0.1}
    _, selected = cache_search.search(one_val_image(), options([0.3, 0.5, 0.4], [1, 2, 2]), start, no_text, no_cache)
    found = {value for value, _ in selected["ALPHA, BETA, GAMMA"]["candidates"]}
    grid = {(0.1, 0.1, 0.0), (0.1, 0.3, 0.0), (0.1, 0.1, 0.2), (0.1, 0.3, 0.2)}
    assert found == {(1.0, 1.0, 0.1), (0.1, 1.0, 0.1), *grid}


def test_a_candidate_is_right_where_alpha_times_the_cache_outweighs_the_text():
    # The text says class 0 by 1, the cache says class 1 by beta: right where alpha * beta > 1, with alpha in 0.1, 0.6,
    # 1.1 and beta in 0.1, 1.1, 2.1 or the start's 0.8. The start (0.5, 0.8) is wrong. Of the three that are right,
    # (1.1, 1.1) is 0.6 / 1.6 + 0.3 / 3.1 = 0.472 from the start, (0.6, 2.1) is 0.1 / 1.6 + 1.3 / 3.1 = 0.482, and (1.1,
    # 2.1) is further.
    def text_of(features):
        assert torch.equal(features, torch.tensor([[0.0, 1.0]]))
        return torch.tensor([[1.0, 0.0]])

    def cache_of(features, beta):
        return torch.tensor([[0.0, beta]])

    start = {"ALPHA": 0.5, "BETA": 0.8}
    best, selected = cache_search.search(one_val_image(), options([1.6, 3.1], [3, 3]), start, text_of, cache_of)
    table = dict(selected["ALPHA, BETA"]["candidates"])
    assert {value for value, accuracy in table.items() if accuracy == 100} == {(0.6, 2.1), (1.1, 1.1), (1.1, 2.1)}
    assert {value for value, accuracy in table.items() if accuracy == 0} == {
        (0.5, 0.8), (0.1, 0.8), (0.6, 0.8), (1.1, 0.8), (0.1, 0.1), (0.1, 1.1), (0.1, 2.1), (0.6, 0.1), (0.6, 1.1),
        (1.1, 0.1),
    }  # fmt: skip
    assert best == selected["ALPHA, BETA"]["value"] == (1.1, 1.1)


def test_a_start_that_shares_its_beta_with_the_grid_is_a_candidate_beside_the_grid():
    start = {"ALPHA": 0.3, "BETA": 1.1}
    _, selected = cache_search.search(one_val_image(), options([0.5, 2.1], [2, 2]), start, no_text, no_cache)
    found = [value for value, _ in selected["ALPHA, BETA"]["candidates"]]
    assert set(found) == {(0.1, 0.1), (0.3, 0.1), (0.1, 1.1), (0.3, 1.1)}  # 0.3 is both the start's and the grid's
    start = {"ALPHA": 0.2, "BETA": 1.1}
    _, selected = cache_search.search(one_val_image(), options([0.5, 2.1], [2, 2]), start, no_text, no_cache)
    found = [value for value, _ in selected["ALPHA, BETA"]["candidates"]]
    assert set(found) == {(0.2, 1.1), (0.1, 0.1), (0.3, 0.1), (0.1, 1.1), (0.3, 1.1)}


def test_no_gradient_is_kept_while_searching():
    seen = []

    def text_of(features):
        seen.append(torch.is_grad_enabled())
        return no_text(features)

    start = {"ALPHA": 1.0, "BETA": 1.0}
    cache_search.search(one_val_image(), options([1.0, 1.0], [1, 1]), start, text_of, no_cache)
    assert seen == [False]


@pytest.mark.parametrize("why", ["not asked for", "no val"])
def test_without_a_search_the_start_values_stay(why):
    bank = one_val_image() if why == "not asked for" else bank_of(AXES, [0, 1], AXES)
    start = {"ALPHA": 0.7, "BETA": 2.0}
    asked = options([1.0, 1.0], [1, 1], search=why == "no val")
    assert cache_search.search(bank, asked, start, no_text, no_cache) == ((0.7, 2.0), {})


def test_numbers_are_given_by_name():
    assert cache_search.numbers("X", [3, 0.5], ("A", "B")) == {"A": 3, "B": 0.5}
    assert cache_search.numbers("X", (3, 0.5), ("A", "B")) == {"A": 3, "B": 0.5}


@pytest.mark.parametrize("values", [[1.0], [1.0, 2.0, 3.0], [1.0, "two"], "12", None], ids=str)
def test_numbers_of_another_form_are_refused(values):
    with pytest.raises(UserError, match=r"^X must be 2 numbers, got .*; they are for A, B$"):
        cache_search.numbers("X", values, ("A", "B"))


@pytest.mark.parametrize("steps", [[0, 1], [1, 0], [1, 1.0]], ids=str)
def test_a_grid_needs_a_whole_number_of_values_from_1(steps):
    with pytest.raises(UserError, match="SEARCH_STEP must be whole numbers from 1"):
        cache_search.search(one_val_image(), options([1.0, 1.0], steps), {"ALPHA": 1.0, "BETA": 1.0}, no_text, no_cache)
