"""Options: rows by data set and by shots, the ends of ranges, and what lies beyond them."""

from __future__ import annotations

import pytest
from by_hand import bank_of, random_unit, tensor
from yacs.config import CfgNode

from trainers.hegraph.baselines.base import named_numbers, value_for_task
from trainers.hegraph.utils.errors import UserError

AXES = [[1.0, 0.0], [0.0, 1.0]]
IMAGES, TEXT = random_unit(5, 4, seed=1), random_unit(3, 4, seed=2)  # features are 4 wide


def value(rows: object, *shots: int, dataset: str = "Tiny") -> object:
    """The value for a task with so many images of each class."""
    labels = [label for label, count in enumerate(shots) for _ in range(count)]
    bank = bank_of([AXES[0]] * len(labels), labels, AXES, dataset=dataset)
    return value_for_task(CfgNode({"KEY": rows}), "KEY", bank)


@pytest.mark.parametrize(
    ("shots", "expected"), [((1, 1), 10), ((3, 2), 10), ((2, 4), 20), ((15, 1), 20), ((16, 0), 30)]
)
def test_of_rows_by_shots_the_one_counts_that_the_largest_class_reaches_whatever_their_order(shots, expected):
    assert value([[16, 30], [1, 10], [4, 20]], *shots) == expected


@pytest.mark.parametrize("row", ["OxfordPets", "oxford_pets"])
@pytest.mark.parametrize(("dataset", "expected"), [("OxfordPets", 2.0), ("oxford_pets", 2.0), ("Tiny", 1.0)])
def test_rows_know_a_data_set_by_any_of_its_names_and_the_empty_row_is_for_all_others(row, dataset, expected):
    assert value([["", 1.0], [row, 2.0]], 1, 1, dataset=dataset) == expected


def test_a_value_without_rows_is_itself_and_a_row_may_hold_a_list():
    assert value(7, 1, 1) == 7
    assert value([["Tiny", [0.5, 2]]], 1, 1) == [0.5, 2]


@pytest.mark.parametrize(
    ("rows", "token"),
    [
        ([[4, 20]], "KEY has no row for 2 shots"),
        ([["OxfordPets", 3.0]], "KEY has no row for 'Tiny'"),
        ([["", 20], [1, 20]], "must have rows"),
        ([["", 20, 3]], "must have rows"),
        ([["", "much"]], "must have rows"),
        ([1.5], "must have rows"),
        ([], "KEY has no row"),
    ],
    ids=str,
)
def test_rows_that_do_not_fit_are_refused(rows, token):
    with pytest.raises(UserError, match=token):
        value(rows, 2, 1)


def test_numbers_are_given_by_name():
    assert named_numbers("X", [3, 0.5], ("A", "B")) == {"A": 3, "B": 0.5}
    assert named_numbers("X", (3, 1), ("A", "B"), counts=True) == {"A": 3, "B": 1}


@pytest.mark.parametrize(
    ("values", "counts"),
    [([1.0], False), ([1.0, "two"], False), ("12", False), ([0, 1], True), ([1, 1.0], True), ([1], True)],
    ids=str,
)
def test_numbers_of_another_form_are_refused(values, counts):
    with pytest.raises(UserError, match=r"^X must be 2 (whole )?numbers.* for A, B, got"):
        named_numbers("X", values, ("A", "B"), counts=counts)


QUICK = {
    "CLIPAdapter": {"EPOCHS": [[1, 1]]},
    "GraphAdapter": {"EPOCHS": 1},
    "ProtoCLIP": {"EPOCHS_WITHOUT_VAL": [[1, 1]]},
    "ProKeR": {"SEARCH": False},
}


def fit_quickly(fit, name: str, changed: dict):
    return fit(name, bank_of(IMAGES, [0, 1, 2, 0, 1], TEXT), **{**QUICK.get(name, {}), **changed})


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("CLIPAdapter", {"RATIO": 0.0, "REDUCTION": 1}),
        ("CLIPAdapter", {"RATIO": 1.0, "REDUCTION": 4}),
        ("GraphAdapter", {"ALPHA": 0.0, "BETA": 1.0, "GROUPS": 1}),
        ("GraphAdapter", {"ALPHA": 1.0, "BETA": 0.0}),
        ("APE", {"CHANNELS": [["", 1.0]]}),
        ("LPPlusPlus", {"STEPS": 1, "BLOCK": 1}),
        ("LPPlusPlus", {"STEPS": 4, "BLOCK": 4}),
        ("LinearProbe", {"C": 0.01}),
        ("GDA", {"CANDIDATES": [0.5]}),
        ("ProtoCLIP", {"RATIO": 1.0, "REDUCTION": 4, "ALPHA": 0.0, "BETA": 0.5, "TEMPERATURE": 0.5}),
        ("ProtoCLIP", {"RATIO": 0.0, "REDUCTION": 1, "ALPHA": 1.0, "ASK_EVERY": 1}),
    ],
    ids=str,
)
def test_the_ends_of_a_range_are_taken(fit, name, changed):
    logits = fit_quickly(fit, name, changed).logits(tensor(IMAGES))
    assert logits.shape == (5, 3)
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("name", "key", "values", "token"),
    [
        ("CLIPAdapter", "RATIO", (-0.1, 1.1), "RATIO in 0 ... 1"),
        ("CLIPAdapter", "REDUCTION", (0, 5), "REDUCTION must lie in 1 ... 4"),
        ("CLIPAdapter", "BATCH_SIZE", (0,), "BATCH_SIZE must be at least 1, got 0"),
        ("TaskRes", "EPOCHS", ([[1, 0]],), "EPOCHS must be at least 1, got 0"),
        ("TaskRes", "LR", ([["", float("inf")]],), "lower LR"),
        ("GraphAdapter", "ALPHA", (-0.1, 1.1), "ALPHA and BETA must lie in 0 ... 1"),
        ("GraphAdapter", "BETA", (-0.1, 1.1), "ALPHA and BETA must lie in 0 ... 1"),
        ("GraphAdapter", "GROUPS", (0,), "GROUPS must be at least 1, got 0"),
        ("APE", "CHANNELS", ([["", 0.0]], [["", 1.01]]), "above 0 and at most 1, got"),
        ("APE", "WEIGHTS", ([["", [0.5]]],), "WEIGHTS must be 2 numbers"),
        ("LPPlusPlus", "BLOCK", (0, 301), "STEPS must be at least BLOCK"),
        ("LPPlusPlus", "MOMENTUM", (9.0,), "lower MOMENTUM"),
        ("LinearProbe", "C", (0.0,), "C and CANDIDATES must be above 0"),
        ("LinearProbe", "CANDIDATES", ([1.0, 0.0],), "C and CANDIDATES must be above 0"),
        ("LinearProbe", "CANDIDATES", ([], ["much"]), "CANDIDATES must be a list"),
        ("GDA", "CANDIDATES", ([],), "CANDIDATES must be a list"),
        ("TIMO", "CANDIDATES", ([],), "CANDIDATES must be a list"),
        ("TIMOS", "CANDIDATES", ([],), "CANDIDATES must be a list"),
        ("TIMOS", "BETA", (0,), "BETA and BETAS must be whole numbers from 1"),
        ("TIMOS", "BETAS", ([1, 1.5], []), "BETA and BETAS must be whole numbers from 1"),
        ("ProKeR", "BETA", ([[1, 0.0]],), "BETA and LAMBDA must be above 0, got 0.0 and"),
        ("ProKeR", "LAMBDA", ([[1, 0.0]],), "BETA and LAMBDA must be above 0"),
        ("ProtoCLIP", "ALPHA", (-0.1, 1.1), "ALPHA must lie in 0 ... 1"),
        ("ProtoCLIP", "BETA", (0.0,), "BETA must be above 0, got 0.0"),
        ("ProtoCLIP", "TEMPERATURE", (0.0,), "TEMPERATURE must be above 0"),
        ("ProtoCLIP", "ASK_EVERY", (0,), "ASK_EVERY must be above 0"),
        ("ProtoCLIP", "REDUCTION", (0, 5), "REDUCTION must lie in 1 ... 4"),
        ("ProtoCLIP", "RATIO", (-0.1, 1.1), "RATIO in 0 ... 1"),
    ],
    ids=str,
)
def test_just_beyond_a_range_is_refused_in_one_line(fit, name, key, values, token):
    for value_beyond in values:
        with pytest.raises(UserError) as caught:
            fit_quickly(fit, name, {key: value_beyond})
        assert token in str(caught.value)
        assert "\n" not in str(caught.value)
