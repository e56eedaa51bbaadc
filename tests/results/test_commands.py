"""The command line: what it prints and writes, and its one line where it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from trainers.hegraph.results.__main__ import main
from trainers.hegraph.results.comparison import base_to_new, compare, complexity
from trainers.hegraph.results.records import collect, find_records, write_predictions, write_record, write_text_nodes
from trainers.hegraph.results.table import FORMATS

TARGET = {"accuracy": 40.0, "accuracy_zero_shot": 40.0, "num_test": 9, "num_classes": 3, "rule": "other classes"}


@pytest.fixture
def folder(run, tmp_path) -> Path:
    for seed, accuracy in ((1, 80.0), (2, 84.0)):
        write_record(tmp_path / "runs" / f"seed{seed}", run(seed, accuracy, seconds={"training": 1.0}))
    return tmp_path / "runs"


@pytest.mark.parametrize("kind", FORMATS)
def test_compare_prints_the_table_in_every_format(folder, run, capsys, kind):
    assert main(["compare", str(folder), "--format", kind]) == 0
    assert capsys.readouterr().out == FORMATS[kind](compare([run(1, 80.0), run(2, 84.0)]))


def test_the_flags_of_compare_reach_the_table(folder, run, tmp_path, capsys):
    (tmp_path / "grid.yaml").write_text("cases: {plain: {}}")
    flags = ["--by", "dataset", "--no-interval", "--cases", str(tmp_path / "grid.yaml")]
    assert main(["compare", str(folder), *flags]) == 0
    expected = compare([run(1, 80.0), run(2, 84.0)], "dataset", intervals=False, cases={"plain": {}})
    assert capsys.readouterr().out == FORMATS["markdown"](expected)


def test_other_tables_are_printed_too(folder, run, tmp_path, capsys):
    base = [run(1, 80.0, {"DATASET.SUBSAMPLE_CLASSES": "base"}, targets={"Toy:new": TARGET})]
    collect(base, tmp_path / "base.jsonl")
    for arguments, table in (
        (["base-to-new", str(tmp_path / "base.jsonl")], base_to_new(base)),
        (["complexity", str(folder)], complexity(find_records([folder]))),
    ):
        assert main(arguments) == 0
        assert capsys.readouterr().out == FORMATS["markdown"](table)


def test_calibration_prints_the_table_and_draws_if_asked(run, tmp_path, capsys):
    bins = {"count": [10] * 15, "confidence": [50.0] * 15, "accuracy": [50.0] * 15}
    part = {"accuracy": 80.0, "macro_f1": 79.0, "nll": 0.5, "brier": 0.3, "ece": 9.0, "bins": bins}
    found = {"temperature": 1.0, "before": part, "after": part, "zero_shot": part}
    write_record(tmp_path / "run", run(calibration=found))
    stem = tmp_path / "new" / "v1.5 figure"
    assert main(["calibration", str(tmp_path / "run"), "--out", str(stem)]) == 0
    out = capsys.readouterr().out
    assert "| HeGraphAdapter | 80.00 | 79.00 |" in out and out.endswith(f"wrote {stem}.svg\n")
    assert Image.open(f"{stem}.png").format == "PNG" and b"<svg" in Path(f"{stem}.svg").read_bytes()


def test_the_papers_numbers_are_quoted(run, tmp_path, capsys):
    write_record(tmp_path, run(dataset="dtd", backbone="RN50/openai", shots=16))
    assert main(["compare", str(tmp_path), "--quote", "2", "--by", "dataset"]) == 0
    assert "| HeGraphAdapter (quoted) | 69.15 |" in capsys.readouterr().out


def test_figures_of_one_run_are_written_and_what_they_say_in_numbers_is_printed(tmp_path, capsys):
    write_text_nodes(tmp_path, torch.eye(3), torch.ones(3, 3), ["a", "b", "c"])
    write_predictions(tmp_path, torch.tensor([1, 1, 1]), torch.tensor([0, 0, 1]), ["a", "b"])
    for command, first in (
        ("tsne", "mean inter-class distance: before 1.4142, after 0.0000"),
        ("confusion", "a and b: 2 (a as b 2, b as a 0)"),
    ):
        stem = tmp_path / "figures" / command
        assert main([command, str(tmp_path), "--out", str(stem)]) == 0
        assert capsys.readouterr().out.splitlines() == [first, f"wrote {stem}.png", f"wrote {stem}.svg"]
        assert (tmp_path / "figures" / f"{command}.svg").exists()


def test_report_and_collect_write_their_file(folder, tmp_path, capsys):
    assert main(["report", str(folder), "--out", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'page.html'}\n"
    assert "82.00" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert main(["collect", str(folder), "--out", str(tmp_path / "all.jsonl")]) == 0
    assert [json.loads(line)["seed"] for line in (tmp_path / "all.jsonl").read_text().splitlines()] == [1, 2]


def test_runs_without_test_images_are_left_out_and_it_is_said(folder, run, caplog, capsys):
    write_record(folder / "seed3", run(3) | {"accuracy": None})
    assert main(["compare", str(folder)]) == 0
    assert "1 of 3 runs had no test images" in caplog.text
    assert "n = 2 seeds" in capsys.readouterr().out
    assert main(["compare", str(folder / "seed3")]) == 2


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["compare", "{}/nowhere"], "no complete record below"),
        (["compare", "{}/runs", "--by", "target"], "targets"),
        (["rejection", "{}/all.jsonl", "--features", "{}/bank"], "no finished run below"),
        (["curves", "{}/runs", "--out", "{}/runs/seed1/result.json/x"], "cannot write"),
        (["report", "{}/runs", "--out", "{}/runs/seed1/result.json"], "is read by this command"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(folder, tmp_path, capsys, command, words):
    before = sorted(tmp_path.rglob("*"))
    assert main([word.format(tmp_path) for word in command]) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert error.startswith("error: ")
    assert words in error
    assert sorted(tmp_path.rglob("*")) == before
