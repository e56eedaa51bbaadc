"""The command line: what it prints and writes, and its one line where it cannot."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from trainers.hegraph.results.__main__ import main
from trainers.hegraph.results.comparison import compare
from trainers.hegraph.results.records import write_predictions, write_record
from trainers.hegraph.results.table import FORMATS

RN50 = "RN50-quickgelu/openai"


@pytest.fixture
def folder(run, tmp_path):
    for seed, accuracy in ((1, 80.0), (2, 84.0)):
        write_record(tmp_path / "runs" / f"seed{seed}", run(seed, accuracy))
    return tmp_path / "runs"


@pytest.mark.parametrize("kind", FORMATS)
def test_compare_prints_the_table_in_every_format(folder, run, capsys, kind):
    assert main(["compare", str(folder), "--format", kind]) == 0
    assert capsys.readouterr().out == FORMATS[kind](compare([run(1, 80.0), run(2, 84.0)]))


@pytest.mark.parametrize("name", ["base-to-new", "complexity"])
def test_text_shows_accuracies_so_other_tables_do_not_have_it(folder, capsys, name):
    assert main([name, str(folder), "--format", "text"]) == 2
    assert "invalid choice: 'text'" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["compare", "--quote", "2"], ["curves", "--quote", "--out", "STEM"]])
def test_where_nothing_can_be_quoted_it_is_said(folder, tmp_path, caplog, command):
    command = [str(tmp_path / "stem") if word == "STEM" else word for word in command]
    assert main([command[0], str(folder), *command[1:]]) == 0
    assert "nothing is quoted" in caplog.text


def test_tsne_prints_the_distances_and_writes_both_files(tmp_path, capsys):
    nodes = {"before": torch.eye(3), "after": torch.ones(3, 3)}
    save_file(nodes, tmp_path / "text_nodes.safetensors", {"classnames": json.dumps(["a", "b", "c"])})
    assert main(["tsne", str(tmp_path), "--out", str(tmp_path / "fig" / "nodes")]) == 0
    distances, png, svg = capsys.readouterr().out.splitlines()
    assert distances == "mean inter-class distance: before 1.4142, after 0.0000"
    assert (png, svg) == (f"wrote {tmp_path / 'fig' / 'nodes.png'}", f"wrote {tmp_path / 'fig' / 'nodes.svg'}")
    assert (tmp_path / "fig" / "nodes.svg").exists()


def test_confusion_prints_the_hardest_pairs(tmp_path, capsys):
    write_predictions(tmp_path, torch.tensor([1, 1, 1]), torch.tensor([0, 0, 1]), ["a", "b"])
    assert main(["confusion", str(tmp_path), "--out", str(tmp_path / "matrix")]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "a and b: 2 (a as b 2, b as a 0)"
    assert (tmp_path / "matrix.png").exists()


def test_report_writes_the_page(folder, tmp_path, capsys):
    assert main(["report", str(folder), "--out", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'page.html'}\n"
    assert "82.00" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_runs_without_test_images_are_left_out_and_it_is_said(folder, run, caplog, capsys):
    write_record(folder / "seed3", run(3) | {"accuracy": None})
    assert main(["compare", str(folder)]) == 0
    assert "1 of 3 runs had no test images" in caplog.text
    assert "n = 2 seeds" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["compare", "{}/nowhere"], "no complete record below"),
        (["compare", "{}/runs", "--by", "target"], "targets"),
        (["compare", "{}/runs", "--quote", "7"], "unknown table"),
        (["base-to-new", "{}/runs"], "base"),
        (["complexity", "{}/runs"], "no times"),
        (["tsne", "{}/runs/seed1", "--out", "{}/x"], "text_nodes.safetensors"),
        (["confusion", "{}/runs/seed1", "--out", "{}/x"], "predictions.safetensors"),
        (["curves", "{}/runs", "--out", "{}/runs/seed1/result.json/x"], "cannot write"),
        (["report", "{}/nowhere", "--out", "{}/x.html"], "no complete record below"),
        (["report", "{}/runs", "--out", "{}/runs/seed1/result.json"], "is read by this command"),
        (["collect", "{}/runs", "--out", "{}"], "is no file"),
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
