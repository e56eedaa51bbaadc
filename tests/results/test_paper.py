"""The paper's numbers: typed as its text has them, and shown only where they belong."""

from __future__ import annotations

import re

import pytest

from trainers.hegraph.results.comparison import compare, complexity
from trainers.hegraph.results.scores import AVERAGE, QUOTED, paper_backbone, paper_name, read_quotes

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
