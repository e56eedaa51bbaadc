"""The page: one file, and nothing loaded from elsewhere."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from trainers.hegraph.results.figures import write_report
from trainers.hegraph.results.records import PREDICTIONS, TEXT_NODES, write_beside, write_record


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.source, self.text = file.read_text(encoding="utf-8"), ""
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def report(tmp_path_factory, run, calibration) -> Path:
    """The page of runs of several kinds, which confuse two classes more often the later they stand here."""
    tmp_path = tmp_path_factory.mktemp("page")
    told = {
        "seconds": {"training": 1.0}, "epochs": 2, "device": "cpu", "threads": 2, "finished_at": "2026-01-01",
        "calibration": calibration(temperature=0.625), "num_test": 27,
    }  # fmt: skip
    there = {"accuracy": 60.0, "accuracy_zero_shot": 40.0, "num_test": 9, "num_classes": 3, "rule": "same classes"}
    base = {"config": {"DATASET.SUBSAMPLE_CLASSES": "base"}, "targets": {"Toy:new": there | {"rule": "other classes"}}}
    runs = {
        "four": run(**told),
        "sixteen": run(1, 90.0, shots=16, **told),
        "sixteen, earlier": run(2, 91.0, shots=16, **told | {"finished_at": "2025-01-01"}),
        "swept": run(1, 70.0, {"TRAINER.X.ALPHA": 2}, **told),
        "elsewhere": run(targets={"Toy2": there}, **told),
        "base": run(shots=16, **base, **told | {"num_test": 13, "finished_at": "2027-01-01"}),
    }
    names, nodes = ["<cat>", "dog", "a class with a rather long name"], torch.randn(2, 3, 8)
    for wrong, (name, record) in enumerate(runs.items(), 1):
        folder = tmp_path / "<runs> & more" / name
        predicted = torch.tensor([1] * wrong + [0] * (9 - wrong) + [1] * 9 + [2] * 9)
        write_record(folder, record)
        write_beside(folder / PREDICTIONS, names, predicted=predicted, labels=torch.arange(3).repeat_interleave(9))
        write_beside(folder / TEXT_NODES, names, before=nodes[0], after=nodes[1].clone())
    write_report([tmp_path / "<runs> & more"], tmp_path / "out" / "report.html")
    return tmp_path / "out" / "report.html"


def test_it_is_one_file_that_loads_nothing_and_runs_no_script(report):
    page = Page(report)
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base")
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "srcset", "data", "poster", "action"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)
    style = page.source.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style
    assert str(report.parents[1]) not in page.source


def test_it_shows_tables_of_each_kind_of_runs_apart_and_figures_with_a_text_in_their_place(report):
    page = Page(report)
    assert len(page.all("table")) == 6
    assert [len(image["alt"]) > 20 for image in page.all("img")] == [True] * 4  # curves, reliability, nodes, confusions
    for words in (
        "<runs> & more", "Accuracy on test (%) by shots", "by setting", "targets with same classes",
        "base and new classes", "What training takes", "0.62", "ALPHA=2", "90.50 ± 6.35",
        "cpu, 2 threads", "Toy (13 test images); Toy (27 test images)",
        # of the last run of the most shots on all classes
        "text nodes before and after, Toy, mini/mini, 16 shots, seed 1;",
        "Confusion matrix on test, Toy, mini/mini, 16 shots, seed 1.",
        "<cat> and dog: 2 (<cat> as dog 2, dog as <cat> 0)",
    ):  # fmt: skip
        assert words in page.text
    assert "Not shown" not in page.text and "strong" in dict(page.tags) and "strong>" not in page.text


def test_whatever_a_record_says_is_text_and_no_markup_and_what_cannot_be_shown_says_why(run, tmp_path):
    evil = '"><script>alert(1)</script>'
    changes = {"dataset": evil, "backbone": f"b{evil}", "versions": {"torch": evil}, "git_commit": evil}
    for seed, more in ((1, {}), (2, {"trainer": f"M{evil}", "variant": ""}), (3, {"versions": {"torch": evil + "2"}})):
        write_record(tmp_path / "runs" / str(seed), run(seed, **changes | more))
    write_report([tmp_path / "runs"], tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    assert page.all("script") == []
    assert f"Not shown: {evil}, b{evil}" in page.text
    assert f"torch {evil}2" in page.text and f"M{evil}" in page.text
