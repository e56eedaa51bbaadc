"""The command line: what it prints and writes, and its one line where it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from trainers.hegraph.results.__main__ import main
from trainers.hegraph.results.comparison import base_to_new, compare, complexity
from trainers.hegraph.results.records import PREDICTIONS, TEXT_NODES, collect, write_beside, write_record
from trainers.hegraph.results.scores import read_quotes
from trainers.hegraph.results.table import FORMATS


@pytest.fixture
def runs(run) -> list[dict]:
    there = {"dataset": "dtd", "backbone": "RN50/openai", "shots": 16, "seconds": {"training": 1.0}}
    return [run(1, 80.0, **there), run(2, 84.0, **there)]


@pytest.fixture
def folder(runs, tmp_path) -> Path:
    for record in runs:
        write_record(tmp_path / "runs" / f"seed{record['seed']}", record)
    return tmp_path / "runs"


@pytest.mark.parametrize("kind", FORMATS)
def test_compare_prints_the_table_in_every_format(folder, runs, capsys, kind):
    assert main(["compare", str(folder), "--format", kind]) == 0
    assert capsys.readouterr().out == FORMATS[kind](compare(runs))


def test_flags_reach_the_tables(folder, runs, run, tmp_path, capsys):
    (tmp_path / "grid.yaml").write_text("cases: {plain: {}}")
    new = {"accuracy": 40.0, "accuracy_zero_shot": 40.0, "num_test": 9, "num_classes": 3, "rule": "other classes"}
    base = [run(1, 80.0, {"DATASET.SUBSAMPLE_CLASSES": "base"}, targets={"Toy:new": new})]
    collect(base, tmp_path / "base.jsonl")
    flags = ["--by", "dataset", "--no-interval", "--quote", "2", "--cases", str(tmp_path / "grid.yaml")]
    quotes = read_quotes("2")
    for arguments, table in (
        (["compare", str(folder), *flags], compare(runs, "dataset", quotes, False, {"plain": {}})),
        (["base-to-new", str(tmp_path / "base.jsonl")], base_to_new(base)),
        (["complexity", str(folder)], complexity(runs)),
    ):
        assert main(arguments) == 0
        out = capsys.readouterr().out
        assert out == FORMATS["markdown"](table)
        assert ("| HeGraphAdapter (quoted) | 69.15 |" in out) == ("--quote" in arguments)


def test_calibration_prints_the_table_and_draws_if_asked(run, calibration, tmp_path, capsys):
    write_record(tmp_path / "run", run(calibration=calibration()))
    stem = tmp_path / "new" / "v1.5 figure"
    assert main(["calibration", str(tmp_path / "run"), "--out", str(stem)]) == 0
    out = capsys.readouterr().out
    assert "| HeGraphAdapter | 80.00 | 79.00 |" in out and out.endswith(f"wrote {stem}.svg\n")
    assert Image.open(f"{stem}.png").format == "PNG" and b"<svg" in Path(f"{stem}.svg").read_bytes()


def test_figures_of_one_run_are_written_and_what_they_say_in_numbers_is_printed(tmp_path, capsys):
    write_beside(tmp_path / TEXT_NODES, ["a", "b", "c"], before=torch.eye(3), after=torch.ones(3, 3))
    predicted, labels = torch.tensor([1, 1, 1]), torch.tensor([0, 0, 1])
    write_beside(tmp_path / PREDICTIONS, ["a", "b"], predicted=predicted, labels=labels)
    for command, first in (
        ("tsne", "mean inter-class distance: before 1.4142, after 0.0000"),
        ("confusion", "a and b: 2 (a as b 2, b as a 0)"),
    ):
        stem = tmp_path / "figures" / command
        assert main([command, str(tmp_path), "--out", str(stem)]) == 0
        assert capsys.readouterr().out.splitlines() == [first, f"wrote {stem}.png", f"wrote {stem}.svg"]


def test_report_and_collect_write_their_file(folder, tmp_path, capsys):
    assert main(["report", str(folder), "--out", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'page.html'}\n"
    assert "82.00" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert main(["collect", str(folder), "--out", str(tmp_path / "all.jsonl")]) == 0
    assert [json.loads(line)["seed"] for line in (tmp_path / "all.jsonl").read_text().splitlines()] == [1, 2]


def test_runs_without_test_images_are_left_out_and_it_is_said(folder, run, caplog, capsys):
    write_record(folder / "seed3", run(3) | {"accuracy": None})
    assert main(["compare", str(folder)]) == 0
    assert "1 of 3 runs are without test images" in caplog.text
    assert "n = 2 seeds" in capsys.readouterr().out
    assert main(["compare", str(folder / "seed3")]) == 2


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("compare {}/nowhere", "no complete record below"),
        ("compare {}/runs --by target", "targets"),
        ("paired {}/runs/seed1/result.json", "Not a directory"),
        ("paired {}/empty", "no run with test images"),
        ("rejection {}/empty --features {}/bank", "no finished run below"),
        ("curves {}/runs --out {}/runs/seed1/result.json/x", "cannot write"),
        ("report {}/runs --out {}/runs/seed1/result.json", "is read by this command"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(folder, tmp_path, capsys, command, words):
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert main(command.replace("{}", str(tmp_path)).split()) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert error.startswith("error: ") and words in error
    assert sorted(tmp_path.rglob("*")) == before
