"""Means and intervals by hand, a small table in every format, and the paper's numbers where they belong."""

from __future__ import annotations

import csv
import io
import re

import pandas as pd
import pytest

from trainers.hegraph.results.comparison import compare, complexity
from trainers.hegraph.results.scores import AVERAGE, QUOTED, paper_backbone, paper_name, read_quotes
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
    assert markdown(table(decimals={"x": 1, "z": 0})).splitlines()[4] == "| A_b | one | 81.0 | 50 |"


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
    interval = float(one.pop(3))
    assert interval == pytest.approx(12.7062, rel=1e-5)  # t of 1 degree of freedom, deviation sqrt(2), n 2
    assert one == ["A_b", "one", "81.0", "2", "50.0", "", ""]
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
    assert shown.split("\n\n")[1].startswith("Toy, mini/mini, 4 shots, ALPHA=0.5, accuracy on 123 test images (%)\n")


# The paper's numbers: typed as its text has them


RN50 = "RN50-quickgelu/openai"
TABLES = {"1": 4 * 6 * 6, "2": 11 * 12, "3": 41, "4": 28, "5": 3, "fig2": 7}  # how many numbers each has


@pytest.fixture
def there(run):
    """Function of changes: the record of a run on ImageNet, which stands beside the paper's numbers."""
    return lambda *args, **changes: run(*args, **{"dataset": "ImageNet", "backbone": RN50, "shots": 16} | changes)


def quoted(table, method: str) -> list[float | None]:
    """The numbers of a quoted row."""
    [row] = [row for row in table.shown(str) if f"{method} (quoted)" in row]
    return [float(text) if text else None for text in row[len(table.heads) :]]


def test_every_table_is_whole_and_its_numbers_are_in_the_papers_text(shared):
    text = (shared / "paper" / "hegraphadapter-paper.txt").read_text(encoding="utf-8")
    numbers = set(re.findall(r"\d+\.\d+", text))
    assert TABLES.keys() == set(QUOTED)
    for table, count in TABLES.items():
        quotes = read_quotes(table)
        assert len(quotes.drop_duplicates()) == count
        for metric, value in quotes[["metric", "value"]].to_numpy():
            value = value / 1e6 if metric == "trained parameters" else value
            assert {f"{value:.2f}", f"{value:.3f}"} & numbers, value


@pytest.mark.parametrize("table", ["1", "2"])
def test_averages_are_those_of_the_numbers_beside_them(table):
    """A slip in typing would show; the average of table 1 is over its source too."""
    for of, row in read_quotes(table).groupby(["method", "backbone"]):
        is_average = row["dataset"] == AVERAGE
        assert row[is_average]["value"].item() == pytest.approx(row[~is_average]["value"].mean(), abs=0.011), of


def test_names_of_data_sets_and_backbones_which_have_openais_weights():
    ours, names = ["OxfordPets", "DescribableTextures", "oxford_flowers"], ["oxfordpets", "dtd", "flowers102"]
    assert [paper_name(name) for name in ours] == names and set(names) <= set(read_quotes("2")["dataset"])
    assert (paper_backbone(RN50), paper_backbone("ViT-B-32-quickgelu/openai")) == ("rn50", "vitb32")
    assert paper_backbone("ViT-B-32/laion2b_s34b_b79k") is paper_backbone("hegraph-mini/hegraph-mini") is None


def test_by_data_set_the_papers_numbers_stand_below_ours_and_are_never_bold(there):
    table = compare([there(1, 10.0, dataset=name) for name in ("oxford_pets", "dtd")], "dataset", read_quotes("2"))
    assert list(table.columns.values()) == ["dtd", "oxford_pets", "mean of 2"]
    assert quoted(table, "HeGraphAdapter") == [69.15, 90.24, None]  # their average is over other data sets
    best = table.shown("best {}".format)
    assert best[0][:2] == ["zero-shot", "best 50.00"] and not any("best" in text for text in best[-1])
    assert "(quoted): from the paper" in table.caption and table.caption.endswith("1 seed")


@pytest.mark.parametrize("change", [{"shots": 4}, {"backbone": "RN50/yfcc15m"}, {"dataset": "Digits"}])
def test_nothing_is_quoted_beside_another_task(there, change):
    table = compare([there(**{"dataset": "dtd"} | change)], "dataset", read_quotes("2"))
    assert not table.values["quoted"].any()


def test_by_target_the_papers_source_and_targets_are_quoted_and_not_its_average_which_has_the_source_in_it(there):
    scores = {"accuracy": 1.0, "accuracy_zero_shot": 1.0, "num_test": 9, "num_classes": 3, "rule": "same classes"}
    names = ("ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR")
    table = compare([there(targets=dict.fromkeys(names, scores))], "target", read_quotes("1"))
    assert quoted(table, "HeGraphAdapter(T)") == [66.06, 56.99, 35.24, 23.59, 59.43, None]


def test_the_papers_average_is_quoted_over_its_eleven_data_sets(there):
    quotes = read_quotes("2")
    names = sorted(set(quotes["dataset"]) - {AVERAGE})
    records = [there(dataset=name) for name in names]
    assert quoted(compare(records, "dataset", quotes), "HeGraphAdapter")[-1] == 77.30
    assert quoted(compare(records[1:], "dataset", quotes), "HeGraphAdapter")[-1] is None
    by_shots = compare(records, "shots", quotes).shown(str)
    assert ["mean of 11", "HeGraphAdapter (quoted)", "77.30"] in by_shots


def test_by_setting_by_backbone_and_of_costs(there):
    sweep = [there(1, config={"TRAINER.HEGRAPHADAPTER.ALPHA_PP": a}) for a in (0.0, 0.06, 0.5)]
    assert quoted(compare(sweep, "setting", read_quotes("3")), "HeGraphAdapter(T)") == [65.96, 66.06, None]
    backbones = [there(backbone=backbone) for backbone in (RN50, "ViT-B-16-quickgelu/openai")]
    assert quoted(compare(backbones, "backbone", read_quotes("4")), "CoOp") == [62.95, 71.92]
    table = complexity([there(seconds={"training": 6.0}, epochs=3, num_parameters=1000)], read_quotes("5"))
    assert quoted(table, "HeGraphAdapter") == [None, 33.95, None, 10367000, None]
