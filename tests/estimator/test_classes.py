"""Labels keep their values and types through all operations, or are refused."""

import warnings
from datetime import date
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from training_free import training_free

from trainers.hegraph import UserError
from trainers.hegraph.estimator.classes import check_label_values, label_indicators

X = np.array([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [0.1, 0.9]])
DAYS = np.array(["2024-01-01", "2024-01-02", "2024-01-01", "2024-01-02"], dtype="datetime64[D]")


@pytest.mark.parametrize("labels", [
    DAYS, DAYS - DAYS[0], pd.Series(DAYS.astype("datetime64[ns]")), [date(2024, 1, 1), date(2024, 1, 2)] * 2,
    [Decimal(1), Decimal(2)] * 2,
], ids=["days", "spans", "pandas", "dates", "decimals"])  # fmt: skip
def test_labels_of_other_types_are_refused(labels):
    with pytest.raises(UserError, match="as labels in y"):
        training_free().fit(X, labels)


@pytest.mark.parametrize("labels", [["a", 1, "a", 1], [True, 2, True, 2], ["a", True, "a", True]], ids=str)
def test_labels_of_two_kinds_are_refused(labels, refused):
    with refused("labels.type", "expected labels of one kind in y"):
        training_free().fit(X, labels)


@pytest.mark.parametrize("labels", [[2**60 + 1, 1.0], [2**63, -1], ["a", "a\0"], [2**64, 1]], ids=str)
def test_labels_that_an_array_changes_are_refused(labels, refused):
    with refused("labels.type", "cannot hold the label"):
        check_label_values(labels, "y")


@pytest.mark.parametrize("labels", [
    ["b", "a"], [2, 1], [2.0, 1.0], [2, 1.0], [True, False], [2**63 - 1, 0], [np.int8(3), 4], [np.str_("a"), "b"], [],
], ids=str)  # fmt: skip
def test_labels_of_one_kind_are_accepted(labels):
    check_label_values(labels, "y")


@pytest.mark.parametrize("labels", [
    np.array([30, -1, 30, -1], dtype=np.int16), np.array([2.0, 1.0] * 2), np.array(["b", "a"] * 2, dtype=object),
    np.array([True, False] * 2), [2**63 - 1, 2**63 - 2] * 2,
], ids=["int16", "float", "object", "bool", "large"])  # fmt: skip
def test_labels_are_the_same_after_every_operation(labels, tmp_path):
    expected = np.asarray(labels).tolist()
    fitted = training_free().fit(X, labels)
    assert fitted.predict(X).tolist() == expected
    grown = fitted.partial_fit(X[:1], [expected[0]])
    grown.save_pretrained(tmp_path)
    loaded = type(fitted).from_pretrained(tmp_path).partial_fit(X[1:2], [expected[1]])
    for value, original in zip(loaded.predict(X).tolist(), expected):
        assert value == original and type(value) is type(original)
    [*_, issue] = loaded.label_issues(X, labels)
    assert type(issue.label) is type(expected[0])


def test_new_class_has_a_plain_label():
    fitted = training_free(np.eye(2)).fit(X, ["a", "b", "a", "b"])
    with pytest.raises(UserError, match="as labels in label"):
        fitted.add_class(DAYS[0], text_features=[0.5, 0.5])


# Several labels per image


@pytest.mark.parametrize("sets", [
    [{1.0}, {float("nan")}, {1.0}, {2.0}], [{"a"}, {None}, {"a"}, {"b"}], [{"a", 1}, {"b"}, {"a"}, {"b"}],
    [{("a", "b")}, {("a", "c")}, {("a", "b")}, set()],
], ids=["nan", "none", "mixed", "tuples"])  # fmt: skip
def test_invalid_labels_in_sets_are_refused(sets, refused):
    with refused("labels.type", "in y"):
        training_free().fit(X, sets)


def test_indicators_of_zeros_only_are_refused(refused):
    with refused("labels.none", "got only zeros of shape [4, 2]"):
        training_free().fit(X, np.zeros((4, 2), dtype=int))


def test_further_images_may_have_no_label():
    fitted = training_free().fit(X, np.eye(4, 2, dtype=int))
    fitted.partial_fit(X[2:], np.zeros((2, 2), dtype=int))
    assert len(fitted.model_.support_set.labels) == 6 and fitted.model_.images == (1, 1)


def test_columns_of_one_class_are_refused():
    with pytest.raises(UserError, match=r"expected different classes .*\['a', 'a'\]"):
        label_indicators(np.eye(2, dtype=int), ["a", "a"])


def test_columns_are_sorted_by_class():
    matrix, classes = label_indicators(np.array([[1, 0, 0], [1, 1, 0]]), ["c", "a", "b"])
    assert classes.tolist() == ["a", "b", "c"]
    assert matrix.tolist() == [[False, False, True], [True, False, True]]


# One image per class


def test_one_image_per_class_gives_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        training_free().fit(np.eye(30), range(30))
