"""Options given as rows."""

from __future__ import annotations

import math

import pytest

from trainers.hegraph.utils.errors import UserError
from trainers.hegraph.utils.rows import check_rows, is_list, is_list_of_pairs, values_up_to


@pytest.mark.parametrize("row", [[1, 2], (1, 2), [1, None]])
def test_a_pair_whose_first_entry_is_of_the_wanted_type_is_a_row(row):
    check_rows("EPOCHS", [row], int, "[shots, value]")


@pytest.mark.parametrize("row", [["1", 2], [1], [1, 2, 3], 1, "12"])
def test_anything_else_is_shown_with_the_form_it_should_have(row):
    with pytest.raises(UserError) as caught:
        check_rows("EPOCHS", [[1, 2], row], int, "[shots, value]")
    assert str(caught.value) == f"a row of EPOCHS must be [shots, value], got {row!r}"


def test_the_second_entry_may_be_checked_as_well():
    check_rows("BY", [[1, ["A", 2]]], int, "[shots, [KEY, VALUE, ...]]", is_list_of_pairs)
    with pytest.raises(UserError, match="a row of BY must be"):
        check_rows("BY", [[1, ["A"]]], int, "[shots, [KEY, VALUE, ...]]", is_list_of_pairs)


@pytest.mark.parametrize(
    ("value", "listed", "paired"),
    [([1, 2], True, True), ((1, 2), True, True), ([1], True, False), ([], False, False), ("ab", False, False)],
)
def test_lists_and_lists_of_pairs_are_told_apart(value, listed, paired):
    assert (is_list(value), is_list_of_pairs(value)) == (listed, paired)


@pytest.mark.parametrize(
    ("shots", "values"),
    [(0, []), (1, ["one"]), (3, ["one", "two"]), (16, ["one", "two", "eight"]), (math.inf, ["one", "two", "eight"])],
)
def test_the_rows_that_the_shots_reach_come_in_order(shots, values):
    assert values_up_to([[8, "eight"], [1, "one"], [2, "two"]], shots) == values
