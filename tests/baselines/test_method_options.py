"""Options: rows by data set and by shots, the ends of ranges, and what lies beyond them."""

from __future__ import annotations

import pytest
from by_hand import AXES, IMAGES, LABELS, TEXT, bank_of, tensor
from yacs.config import CfgNode

from trainers.hegraph.baselines.base import check_numbers, value_for_task
from trainers.hegraph.utils.errors import UserError


def value(rows: object, *shots: int, dataset: str = "Tiny") -> object:
    """The value for a task with so many images of each class."""
    labels = [label for label, count in enumerate(shots) for _ in range(count)]
    bank = bank_of([AXES[0]] * len(labels), labels, AXES, dataset=dataset)
    return value_for_task(CfgNode({"KEY": rows}), "KEY", bank)


@pytest.mark.parametrize(("shots", "expected"), [((1, 1), 10), ((3, 2), 10), ((2, 4), 20), ((16, 0), 30)])
def test_of_rows_by_shots_the_one_counts_that_the_largest_class_reaches_whatever_their_order(shots, expected):
    assert value([[16, 30], [1, 10], [4, 20]], *shots) == expected


@pytest.mark.parametrize("row", ["OxfordPets", "oxford_pets"])
@pytest.mark.parametrize(("dataset", "expected"), [("OxfordPets", 2.0), ("oxford_pets", 2.0), ("Tiny", 1.0)])
def test_rows_know_a_data_set_by_any_of_its_names_and_the_empty_row_is_for_all_others(row, dataset, expected):
    assert value([["", 1.0], [row, 2.0]], 1, 1, dataset=dataset) == expected


def test_a_value_without_rows_is_itself_and_a_row_may_hold_a_list():
    assert value(7, 1, 1) == 7
    assert value([["Tiny", [0.5, 2]]], 1, 1) == [0.5, 2]


@pytest.mark.parametrize("rows", [[[4, 20]], [["OxfordPets", 3.0]], [["", 20], [1, 20]], [["", [1, "x"]]], []], ids=str)
def test_rows_that_do_not_fit_are_refused_with_the_task(rows):
    with pytest.raises(UserError, match="KEY must have rows .* for 'Tiny' or 2 shots, got"):
        value(rows, 2, 1)


LIMITS = [
    *((values, {}) for values in ([], "12", [1.0, "two"], [0.0])),
    ([1.0], {"count": 2}),
    ([1.0, 2.0], {"whole": True}),
    ([0], {"least": 1}),
    ([1.1], {"most": 1}),
]


@pytest.mark.parametrize(("values", "limits"), LIMITS, ids=str)
def test_numbers_of_another_form_or_out_of_range_are_refused_in_one_line(values, limits):
    check_numbers("X", (1,), 1, 1, count=1, whole=True)
    check_numbers("X", [3, 0.5])
    with pytest.raises(UserError, match=r"^X must be .*numbers from .* to .*, got [^\n]*$"):
        check_numbers("X", values, **limits)


def fit_quickly(fit, name: str, changed: dict):
    quick = {"CLIPAdapter": {"EPOCHS": [[1, 1]]}, "GraphAdapter": {"EPOCHS": 1}, "ProtoCLIP": {"EPOCHS": 1}}
    return fit(name, bank_of(IMAGES, LABELS, TEXT, val=(IMAGES[:1], [0])), **quick.get(name, {}) | changed)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("CLIPAdapter", {"RATIO": 0.0, "REDUCTION": 1}),
        ("CLIPAdapter", {"RATIO": 1.0, "REDUCTION": 4}),
        ("GraphAdapter", {"ALPHA": 0.0, "BETA": 1.0, "GROUPS": 1}),
        ("APE", {"CHANNELS": [["", 1.0]]}),
        ("LPPlusPlus", {"STEPS": 4, "BLOCK": 4}),
        ("GDA", {"CANDIDATES": [0.0]}),
        ("CLAP", {"BATCH_SIZE": 1, "EPOCHS": 1}),
        ("ProtoCLIP", {"ALPHA": 1.0, "ASK_EVERY": 1}),
    ],
    ids=str,
)
def test_the_ends_of_a_range_are_taken(fit, name, changed):
    logits = fit_quickly(fit, name, changed).logits(tensor(IMAGES))
    assert logits.shape == (5, 3) and logits.isfinite().all()


@pytest.mark.parametrize(
    ("name", "key", "beyond", "token"),
    [
        ("CLIPAdapter", "RATIO", (-0.1, 1.1), "RATIO"),
        ("CLIPAdapter", "REDUCTION", (0, 5), "REDUCTION"),
        ("TaskRes", "EPOCHS", ([[1, 0]], [[1, 1.5]]), "EPOCHS"),
        ("TaskRes", "LR", ([["", float("inf")]],), "lower LR"),
        ("TaskRes", "BATCH_SIZE", (0,), "BATCH_SIZE"),
        ("GraphAdapter", "GROUPS", (0,), "GROUPS"),
        ("TipAdapter", "SEARCH_SCALE", ([["", [1.0, 0.0]]], [["", [1.0]]]), "SEARCH_SCALE"),
        ("TipAdapter", "SEARCH_STEP", ([0, 1], [1]), "SEARCH_STEP"),
        ("APE", "CHANNELS", ([["", 0.0]], [["", 1.01]]), "CHANNELS"),
        ("APE", "WEIGHTS", ([["", [0.5]]],), "WEIGHTS"),
        ("LPPlusPlus", "BLOCK", (0, 301), "BLOCK|STEPS"),
        ("LPPlusPlus", "MOMENTUM", (9.0,), "lower MOMENTUM"),
        ("LinearProbe", "CANDIDATES", ([], [1.0, 0.0]), "CANDIDATES"),
        ("GDA", "CANDIDATES", ([],), "CANDIDATES"),
        ("TIMOS", "BETAS", ([1, 1.5], []), "BETAS"),
        ("ProKeR", "SEARCH_RANGE", ([["", [0.0, 3.0, 0.1, 1.0]]], [["", [1.0, 2.0]]]), "SEARCH_RANGE"),
        ("ProKeR", "SEARCH_STEP", ([0, 1],), "SEARCH_STEP"),
        ("ProtoCLIP", "ALPHA", (-0.1, 1.1), "ALPHA"),
        ("ProtoCLIP", "ASK_EVERY", (0,), "ASK_EVERY"),
    ],
    ids=str,
)
def test_just_beyond_a_range_is_refused(fit, name, key, beyond, token):
    for value_beyond in beyond:
        with pytest.raises(UserError, match=token):
            fit_quickly(fit, name, {key: value_beyond})
