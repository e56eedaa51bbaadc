"""Means and intervals by hand, and one small table in every format."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pandas as pd
import pytest

from trainers.hegraph.results.table import Cell, Row, Table, as_csv, latex, markdown


def over(by_seed: dict[int, float]) -> Cell:
    rows = [{"seed": seed, "value": value, "test": (None,)} for seed, value in by_seed.items()]
    return Cell.of(pd.DataFrame(rows, dtype=object))


@pytest.fixture
def table() -> Table:
    rows = [
        Row(("A_b", "one"), [over({1: 80.0, 2: 82.0}), Cell(50.0)]),
        Row(("A_b", "two"), [over({1: 90.0}), None]),
        Row(("A_b", "two (quoted)"), [Cell(99.0), None], quoted=True),
        Row(("C", "one"), [Cell(1.0), None]),
    ]
    return Table("50% & more", ("set", "method"), ["x|y", "z"], rows, [2, 0])


def test_the_interval_is_students():
    # mean 3, deviation sqrt(2.5); t of 4 degrees of freedom at 97.5 % is 2.776445 (any table of t)
    cell = over(dict(enumerate([1, 2, 3, 4, 5])))
    assert cell.mean == 3
    assert cell.interval == pytest.approx(2.776445 * 2.5**0.5 / 5**0.5, rel=1e-6)


def test_the_deviation_is_that_of_a_sample():
    # squared distances from 3: 4 + 1 + 0 + 1 + 4 = 10; 10 / (5 - 1) = 2.5
    cell = over(dict(enumerate([1, 2, 3, 4, 5])))
    assert cell.deviation == pytest.approx(2.5**0.5)


def test_one_value_has_no_deviation():
    assert (over({1: 7.0}).mean, over({1: 7.0}).deviation) == (7.0, None)


def test_one_seed_and_a_number_without_seeds_have_no_interval():
    assert over({7: 80.0}).interval is None
    assert Cell(80.0).interval is None


def test_markdown(table):
    assert markdown(table).splitlines() == [
        "50% & more",
        "",
        r"| set | method | x\|y | z |",
        "| --- | --- | ---: | ---: |",
        "| A_b | one | 81.00 ± 12.71 | **50** |",
        "| A_b | two | **90.00** |  |",
        "| A_b | two (quoted) | 99.00 |  |",
        "| C | one | **1.00** |  |",
    ]


def test_latex_escapes_and_rules_off_groups(table):
    lines = latex(table).splitlines()
    assert r"\caption{50\% \& more}" in lines
    assert r"A\_b & one & 81.00 $\pm$ 12.71 & \textbf{50} \\" in lines
    assert r"A\_b & two & \textbf{90.00} &  \\" in lines
    assert lines[lines.index(r"C & one & \textbf{1.00} &  \\") - 1] == r"\hline"


def test_csv_has_numbers_as_they_are_with_interval_and_seeds(table):
    header, one, two, quoted, _ = csv.reader(io.StringIO(as_csv(table)))
    assert header == ["set", "method", "x|y", "x|y ±", "x|y n", "z", "z ±", "z n"]
    assert one[:3] == ["A_b", "one", "81.0"]
    assert float(one[3]) == pytest.approx(12.7062, rel=1e-5)  # t of 1 degree of freedom, deviation sqrt(2), n 2
    assert one[4:] == ["2", "50.0", "", ""]
    assert two[2:] == ["90.0", "", "1", "", "", ""]
    assert quoted[2:5] == ["99.0", "", ""]


def test_equal_as_shown_are_both_the_best():
    rows = [Row(("a",), [Cell(80.001)]), Row(("b",), [Cell(80.002)]), Row(("c",), [Cell(79.9)])]
    table = Table("", ("method",), ["x"], rows, [2])
    assert [table.is_best(row, 0) for row in rows] == [True, True, False]


# Means alone


def test_without_intervals_markdown_shows_means_alone(table):
    lines = markdown(replace(table, intervals=False)).splitlines()
    assert lines[4:6] == ["| A_b | one | 81.00 | **50** |", "| A_b | two | **90.00** |  |"]


def test_without_intervals_csv_has_no_column_of_them(table):
    header, one, two, *_ = csv.reader(io.StringIO(as_csv(replace(table, intervals=False))))
    assert header == ["set", "method", "x|y", "x|y n", "z", "z n"]
    assert one == ["A_b", "one", "81.0", "2", "50.0", ""]
    assert two == ["A_b", "two", "90.0", "1", "", ""]
