"""Means and intervals by hand, and one small table in every format."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pandas as pd
import pytest

from trainers.hegraph.results.comparison import compare
from trainers.hegraph.results.table import Cell, Row, Table, as_csv, as_text, latex, markdown


def over(by_seed: dict[int, float]) -> Cell:
    return Cell.of(pd.DataFrame([{"seed": seed, "value": value, "num_test": 9} for seed, value in by_seed.items()]))


@pytest.fixture
def table() -> Table:
    rows = [
        Row(("A_b", "one"), [over({1: 80.0, 2: 82.0}), Cell(50.0)]),
        Row(("A_b", "two"), [over({1: 90.0}), None]),
        Row(("A_b", "two (quoted)"), [Cell(99.0), None], quoted=True),
        Row(("C", "one"), [Cell(1.0), None]),
    ]
    return Table("50% & more", ("set", "method"), ["x|y", "z"], rows, [2, 0])


def test_the_deviation_is_that_of_a_sample_and_the_interval_students():
    # squared distances from 3: 4 + 1 + 0 + 1 + 4 = 10; 10 / (5 - 1) = 2.5
    # t of 4 degrees of freedom at 97.5 % is 2.776445 (any table of t)
    cell = over(dict(enumerate([1, 2, 3, 4, 5])))
    assert (cell.mean, cell.num_test) == (3, 9)
    assert cell.deviation == pytest.approx(2.5**0.5)
    assert cell.interval == pytest.approx(2.776445 * 2.5**0.5 / 5**0.5, rel=1e-6)


@pytest.mark.parametrize("cell", [over({7: 80.0}), Cell(80.0)], ids=["one seed", "no seeds"])
def test_one_value_has_neither_deviation_nor_interval(cell):
    assert (cell.mean, cell.deviation, cell.interval) == (80.0, None, None)


def test_markdown(table):
    lines = [
        "50% & more",
        "",
        r"| set | method | x\|y | z |",
        "| --- | --- | ---: | ---: |",
        "| A_b | one | 81.00 ± 12.71 | **50** |",
        "| A_b | two | **90.00** |  |",
        "| A_b | two (quoted) | 99.00 |  |",
        "| C | one | **1.00** |  |",
    ]
    assert markdown(table).splitlines() == lines
    assert markdown(replace(table, intervals=False)).splitlines()[4] == "| A_b | one | 81.00 | **50** |"
    assert "**" not in markdown(replace(table, bold=False))


def test_latex_escapes_and_rules_off_groups(table):
    lines = latex(replace(table, caption=r"50% & more \ ~ ^")).splitlines()
    assert lines == [
        r"\begin{table}",
        r"\caption{50\% \& more \textbackslash  \textasciitilde  \textasciicircum }",
        r"\begin{tabular}{llrr}",
        r"\hline",
        r"set & method & x|y & z \\",
        r"\hline",
        r"A\_b & one & 81.00 $\pm$ 12.71 & \textbf{50} \\",
        r"A\_b & two & \textbf{90.00} &  \\",
        r"A\_b & two (quoted) & 99.00 &  \\",
        r"\hline",
        r"C & one & \textbf{1.00} &  \\",
        r"\hline",
        r"\end{tabular}",
        r"\end{table}",
    ]


def test_csv_has_numbers_as_they_are_with_interval_and_seeds(table):
    header, one, two, quoted, _ = csv.reader(io.StringIO(as_csv(table)))
    assert header == ["set", "method", "x|y", "x|y ±", "x|y n", "z", "z ±", "z n"]
    assert one[:3] == ["A_b", "one", "81.0"]
    assert float(one[3]) == pytest.approx(12.7062, rel=1e-5)  # t of 1 degree of freedom, deviation sqrt(2), n 2
    assert one[4:] == ["2", "50.0", "", ""]
    assert two[2:] == ["90.0", "", "1", "", "", ""]
    assert quoted[2:5] == ["99.0", "", ""]
    header, one, *_ = csv.reader(io.StringIO(as_csv(replace(table, intervals=False))))
    assert header == ["set", "method", "x|y", "x|y n", "z", "z n"]
    assert one == ["A_b", "one", "81.0", "2", "50.0", ""]


def test_equal_as_shown_are_both_the_best():
    rows = [Row(("a",), [Cell(80.001)]), Row(("b",), [Cell(80.002)]), Row(("c",), [Cell(79.9)])]
    table = Table("", ("method",), ["x"], rows, [2])
    assert [table.is_best(row, 0) for row in rows] == [True, True, False]


# Plain text


def test_an_experiment_is_laid_out_to_the_letter(run):
    tip = run(2, 61.0, trainer="TipAdapter", variant="")
    assert as_text(compare([run(2, 84.0), run(1, 80.0), run(3, 85.0), tip])) == (
        "Toy, mini/mini, 4 shots, accuracy on 123 test images (%)\n"
        "                        mean    std  seeds 1, 2, 3\n"
        "  zero-shot            50.00   0.00  50.00  50.00  50.00\n"
        "  TipAdapter           61.00      -         61.00\n"
        "  HeGraphAdapter(T)    82.00   2.65  79.00  83.00  84.00\n"
        "  HeGraphAdapter       83.00   2.65  80.00  84.00  85.00\n"
    )


def test_data_sets_have_their_mean_below_them_and_any_columns_are_blocks(run):
    *_, last = as_text(compare([run(1, 80.0), run(1, 60.0, dataset="Zoo")])).split("\n\n")
    assert last.startswith("mean of 2, mini/mini, 4 shots, accuracy on test (%)\n")
    assert last.splitlines()[-1].split() == ["HeGraphAdapter", "70.00", "-", "70.00"]
    shown = as_text(compare([run(1, 80 + a, {"TRAINER.X.ALPHA": a}) for a in (0.0, 0.5)], "setting"))
    assert [block.splitlines()[0] for block in shown.split("\n\n")] == [
        "Toy, mini/mini, 4 shots, ALPHA=0, accuracy on 123 test images (%)",
        "Toy, mini/mini, 4 shots, ALPHA=0.5, accuracy on 123 test images (%)",
    ]
