"""Means and intervals by hand, and one small table in every format."""

from __future__ import annotations

import csv
import io

import pandas as pd
import pytest

from trainers.hegraph.results.comparison import compare
from trainers.hegraph.results.table import Table, as_csv, as_text, latex, markdown

COLUMNS = {"x": "x|y", "z": "z"}


def numbers(place: str, method: str, column: str, values: dict, quoted: bool = False) -> list[dict]:
    """The rows of a cell: seed -> value."""
    cell = {"dataset": place, "method": method, "column": column, "quoted": quoted, "num_test": 9}
    return [cell | {"seed": seed, "value": value} for seed, value in values.items()]


def tabulated(*rows: list[dict], **options) -> Table:
    frame = pd.DataFrame([row for cell in rows for row in cell], dtype=object)
    return Table("50% & more", ["dataset"], frame, COLUMNS, **options)


def table(**options) -> Table:
    return tabulated(
        numbers("A_b", "two", "x", {1: 90.0}),
        numbers("A_b", "one", "x", {1: 80.0, 2: 82.0}),
        numbers("A_b", "two", "x", {None: 99.0}, quoted=True),
        numbers("A_b", "one", "z", {None: 50.0}),
        numbers("C", "one", "x", {None: 1.0}),
        **options,
    )


def test_the_deviation_is_that_of_a_sample_and_the_interval_students():
    # squared distances from 3: 4 + 1 + 0 + 1 + 4 = 10; 10 / (5 - 1) = 2.5
    # t of 4 degrees of freedom at 97.5 % is 2.776445 (any table of t)
    of_five, of_one = numbers("A", "one", "x", dict(enumerate([1, 2, 3, 4, 5]))), numbers("A", "one", "z", {7: 80.0})
    five, one = tabulated(of_five, of_one).cells.to_dict("records")
    assert (five["mean"], five["n"]) == (3, 5)
    assert five["deviation"] == pytest.approx(2.5**0.5)
    assert five["interval"] == pytest.approx(2.776445 * 2.5**0.5 / 5**0.5, rel=1e-6)
    assert (one["mean"], one["n"]) == (80.0, 1) and pd.isna([one["deviation"], one["interval"]]).all()


def test_markdown():
    lines = [
        r"| data set | method | x\|y | z |",
        "| --- | --- | ---: | ---: |",
        "| A_b | one | 81.00 ± 12.71 | **50.00** |",
        "| A_b | two | **90.00** |  |",
        "| A_b | two (quoted) | 99.00 |  |",
        "| C | one | **1.00** |  |",
    ]
    assert markdown(table()).splitlines()[2:] == lines
    assert markdown(table(intervals=False)).splitlines()[4] == "| A_b | one | 81.00 | **50.00** |"
    assert markdown(table(decimals={"x": 1, "z": 0})).splitlines()[4:6] == [
        "| A_b | one | 81.0 | 50 |", "| A_b | two | 90.0 |  |",
    ]  # fmt: skip


def test_latex_escapes_and_rules_off_groups():
    assert latex(table()).splitlines() == [
        r"\begin{table}",
        r"\caption{50\% \& more, (quoted): from the paper; mean $\pm$ half-width of its 95\% interval (Student's t) "
        r"over n = 1 to 2 seeds}",
        r"\begin{tabular}{llrr}",
        r"\hline",
        r"data set & method & x|y & z \\",
        r"\hline",
        r"A\_b & one & 81.00 $\pm$ 12.71 & \textbf{50.00} \\",
        r"A\_b & two & \textbf{90.00} &  \\",
        r"A\_b & two (quoted) & 99.00 &  \\",
        r"\hline",
        r"C & one & \textbf{1.00} &  \\",
        r"\hline",
        r"\end{tabular}",
        r"\end{table}",
    ]
    odd = tabulated(numbers("A", r"\ ~ ^", "x", {1: 1.0}))
    assert latex(odd).splitlines()[6] == r"\textbackslash  \textasciitilde  \textasciicircum  & \textbf{1.00} &  \\"


def test_csv_has_numbers_as_they_are_with_interval_and_seeds():
    header, one, two, quoted, _ = csv.reader(io.StringIO(as_csv(table())))
    assert header == ["data set", "method", "x|y", "x|y ±", "x|y n", "z", "z ±", "z n"]
    assert one[:3] == ["A_b", "one", "81.0"]
    assert float(one[3]) == pytest.approx(12.7062, rel=1e-5)  # t of 1 degree of freedom, deviation sqrt(2), n 2
    assert one[4:] == ["2", "50.0", "", ""]
    assert two[2:] == ["90.0", "", "1", "", "", ""]
    assert quoted[2:5] == ["99.0", "", ""]
    header, *_ = csv.reader(io.StringIO(as_csv(table(intervals=False))))
    assert header == ["data set", "method", "x|y", "x|y n", "z", "z n"]


def test_equal_as_shown_are_both_the_best():
    values = {"a": 80.001, "b": 80.002, "c": 79.9}
    rows = tabulated(*(numbers("A", name, "x", {1: value}) for name, value in values.items())).shown("**{}**".format)
    assert [row[1] for row in rows] == ["**80.00**", "**80.00**", "79.90"]


def test_plain_text_is_laid_out_to_the_letter(run):
    tip = run(2, 61.0, trainer="TipAdapter", variant="")
    assert as_text(compare([run(2, 84.0), run(1, 80.0), run(3, 85.0), tip])) == (
        "Toy, mini/mini, 4 shots, accuracy on 123 test images (%)\n"
        "                        mean    std  seeds 1, 2, 3\n"
        "  zero-shot            50.00   0.00  50.00  50.00  50.00\n"
        "  TipAdapter           61.00      -         61.00\n"
        "  HeGraphAdapter(T)    82.00   2.65  79.00  83.00  84.00\n"
        "  HeGraphAdapter       83.00   2.65  80.00  84.00  85.00\n"
    )
    *_, last = as_text(compare([run(1, 80.0), run(1, 60.0, dataset="Zoo")])).split("\n\n")
    assert last.startswith("mean of 2, mini/mini, 4 shots, accuracy on test (%)\n")
    assert last.splitlines()[-1].split() == ["HeGraphAdapter", "70.00", "-", "70.00"]
    shown = as_text(compare([run(1, 80 + a, {"TRAINER.X.ALPHA": a}) for a in (0.0, 0.5)], "setting"))
    assert [block.splitlines()[0] for block in shown.split("\n\n")] == [
        "Toy, mini/mini, 4 shots, ALPHA=0, accuracy on 123 test images (%)",
        "Toy, mini/mini, 4 shots, ALPHA=0.5, accuracy on 123 test images (%)",
    ]
