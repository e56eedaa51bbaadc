"""The command `predict`, from its flags to its exit code."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from trainers.hegraph.features.bank import load_bank
from trainers.hegraph.models.folder import CONFIG, load_model, save_model
from trainers.hegraph.models.images import ImageModel
from trainers.hegraph.models.saved import hear
from trainers.hegraph.predict import prediction
from trainers.hegraph.predict.__main__ import main
from trainers.hegraph.utils.reading import read_json

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(finished_digits_once: Path) -> Path:
    return finished_digits_once


def json_rows(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def refused(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """The one line that a mistake gives."""
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


# What is predicted


def test_rows_hold_the_calibrated_probabilities_in_falling_order(run, images, tmp_path, capsys):
    model = load_model(run).model_copy(update={"temperature": 3.0})
    save_model(model, tmp_path / "calibrated")
    path = images / "a.png"
    features = ImageModel.load(run).features([path])
    expected = (model.classifier.logits(features)[0] / 3.0).softmax(dim=0)
    assert main([str(tmp_path / "calibrated"), str(path), "--format", "jsonl", "--top", "3"]) == 0
    [row] = json_rows(capsys.readouterr().out)
    values, labels = expected.sort(descending=True)
    assert [entry["class"] for entry in row["top"]] == [model.classnames[label] for label in labels[:3]]
    assert [entry["probability"] for entry in row["top"]] == pytest.approx(values[:3].tolist(), rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_order_is_that_of_the_inputs_whatever_the_batches(run, images, capsys, caplog, batch_size):
    (images / "bad.png").write_text("no image")
    (images / "empty").mkdir()
    given = [images / "g.png", images / "missing.png", images / "empty", images, images / "a.png"]
    flags = ["--format", "jsonl", "--top", "1", "--batch-size", str(batch_size)]
    assert main([str(run), *map(str, given), *flags]) == 1
    rows = json_rows(capsys.readouterr().out)
    walked = ["a.png", "b c.png", "bad.png", "d/e.png", "f.png", "g.png"]
    expected = [images / name for name in ("g.png", "missing.png", *walked, "a.png")]
    assert [row["path"] for row in rows] == list(map(str, expected))
    assert rows[0]["top"] == rows[7]["top"] and rows[2]["top"] == rows[8]["top"]
    assert [bool(row["error"]) for row in rows] == [position in (1, 4) for position in range(9)]
    assert f"2 of 9 could not be read; the first is {images / 'missing.png'}" in caplog.text


def test_a_bank_gives_the_predictions_of_the_run(finished_run_once, tiny_bank, tmp_path, capsys, caplog):
    caplog.set_level("INFO", "trainers.hegraph")
    run = finished_run_once
    assert main([str(run), "--features", str(tiny_bank), "--format", "jsonl"]) == 0
    rows = json_rows(capsys.readouterr().out)
    assert rows[17]["path"] == f"{tiny_bank}#test/17"
    names = load_model(run).classnames
    kept = load_file(run / "predictions.safetensors")["predicted"].tolist()
    assert [row["top"][0]["class"] for row in rows] == [names[label] for label in kept]
    assert f"accuracy {read_json(run / 'result.json')['accuracy']:.2f} %" in caplog.text
    out = tmp_path / "rows.csv"
    assert main([str(run), "--features", str(tiny_bank), "--split", "train", "--top", "1", "--out", str(out)]) == 0
    assert len(out.read_text().splitlines()) == 1 + 30
    assert "is read by this command" in refused(capsys, run, "--features", tiny_bank, "--out", tiny_bank)
    replace(load_bank(tiny_bank), val_features=None, val_labels=None).save(tmp_path / "no val.safetensors")
    assert "has no val" in refused(capsys, run, "--features", tmp_path / "no val.safetensors", "--split", "val")


def test_images_that_inform_each_other(finished_digits_once, finished_run_once, tiny_bank, images, capsys):
    def rows(*arguments: object) -> list[dict]:
        assert main([*map(str, arguments), "--format", "jsonl"]) == 0
        return json_rows(capsys.readouterr().out)

    bank, model = load_bank(tiny_bank), load_model(finished_run_once)
    _, heard = hear(model, bank.test_features, "cpu")
    for row, probabilities in zip(
        rows(finished_run_once, "--features", tiny_bank, "--together"), model.calibrate(heard.logits), strict=True
    ):
        found = {entry["class"]: entry["probability"] for entry in row["top"]}
        assert found == pytest.approx(dict(zip(model.classnames, probabilities.tolist())), abs=1e-4)
    together, alone = rows(finished_digits_once, images, "--together"), rows(finished_digits_once, images)
    assert [row["path"] for row in together] == [row["path"] for row in alone] and together != alone
    in_parts = rows(finished_digits_once, images, "--together", "--batch-size", 2)
    assert [row["top"][0]["class"] for row in in_parts] == [row["top"][0]["class"] for row in together]
    assert "leave it out with --together" in refused(capsys, finished_digits_once, images, "--together", "--keep", 0.9)
    empty = images / "empty"
    empty.mkdir()
    assert "there is nothing to classify" in refused(capsys, finished_digits_once, empty, "--together")


def test_as_many_images_are_encoded_at_once_as_fit_whatever_their_size():
    sizes = {(224, 224): 64, (448, 224): 32, (32, 32): 256, (4000, 4000): 1}
    assert {size: prediction.default_batch_size(size) for size in sizes} == sizes


def test_a_probability_that_is_no_number_is_no_row_and_classes_of_one_name_are_told_apart_by_their_ids(run):
    names = {"classnames": ["crane", "crane", *"abcdefgh"], "class_ids": tuple("0123456789")}
    logits = torch.zeros(2, 10)
    logits[0, 3] = float("nan")
    model = load_model(run).model_copy(update=names)
    failed, row = prediction.rows_of(model, ["x", "y"], logits, prediction.Options(top=3, format="csv"))
    assert failed.error == "the model gives NaN for it"
    # of equal classes the first comes first
    assert row.top == [(name, pytest.approx(0.1)) for name in ("crane (0)", "crane (1)", "a")]


# None of these


def test_images_that_score_below_the_threshold_are_marked(run, images, tmp_path, capsys):
    Image.new("L", (8, 8), 128).save(images / "grey.png")
    model = ImageModel.load(run)
    paths = [images / name for name in ("a.png", "b c.png", "d/e.png", "f.png", "g.png", "grey.png")]
    expected = [not known for known in model.model.is_known(model.logits(model.features(paths)), 0.5).tolist()]
    assert 0 < sum(expected) < 6  # the share is low, so that some are marked
    target = tmp_path / "sorted"
    flags = ["--keep", "0.5", "--format", "csv", "--top", "1", "--sort-into", str(target)]
    assert main([str(run), str(images), *flags]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["none_of_these"] == "true" for row in rows] == expected
    sorted_out = {path.name for path in (target / "none of these").iterdir()}
    assert sorted_out == {path.name for path, none in zip(paths, expected) if none}
    assert main([str(run), str(images)]) == 0
    assert "none of these" not in capsys.readouterr().out


# How it is written


def test_the_ending_of_the_file_chooses_the_format_and_all_say_the_same(run, images, tmp_path, capsys):
    names = ("rows.csv", "rows.JSONL", "rows.txt")
    assert [main([str(run), str(images), "--top", "1", "--out", str(tmp_path / name)]) for name in names] == [0, 0, 0]
    assert capsys.readouterr().out == ""
    table, lines, text = ((tmp_path / name).read_text() for name in names)
    expected = [(row["path"], row["top"][0]["class"]) for row in json_rows(lines)]
    assert [(row["path"], row["class"]) for row in csv.DictReader(table.splitlines())] == expected
    assert [tuple(part.strip() for part in line.split("  ")[:2]) for line in text.splitlines()] == expected


def test_lists_in_a_file_and_on_standard_input(run, images, tmp_path, capsys, monkeypatch):
    (tmp_path / "null.txt").write_bytes(os.fsencode(images) + b"/a.png\0")
    names = b"\0".join(os.fsencode(path) for path in sorted(images.rglob("*.png")))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(names)))
    assert main([str(run), "-", "--top", "1", str(tmp_path / "null.txt"), "-0", "--format", "jsonl"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO()))
    assert "there is nothing to classify" in refused(capsys, run, "-", "--format", "csv")


def test_images_are_sorted_into_folders_of_their_classes_and_those_are_not_read_again(run, images, capsys):
    for _ in range(2):
        assert main([str(run), str(images), "--sort-into", str(images / "sorted"), "--format", "jsonl"]) == 0
    rows = json_rows(capsys.readouterr().out)
    assert len(rows) == 10
    copies = {images / "sorted" / row["top"][0]["class"] / Path(row["path"]).name: row["path"] for row in rows}
    assert [copy.read_bytes() for copy in copies] == [Path(path).read_bytes() for path in copies.values()]
    assert {path for path in (images / "sorted").rglob("*") if path.is_file()} == set(copies)


def test_no_input_and_no_file_of_the_model_is_written_over(finished_digits, images, tmp_path, capsys):
    listed = tmp_path / "list.txt"
    listed.write_text(f"{images}/a.png\n")
    of_model = [finished_digits / "model" / name for name in (CONFIG, "README.md", "thumbnails/00000.jpg")]
    for out in (images / "f.png", listed, finished_digits / "result.json", *of_model):
        before = out.read_bytes()
        assert str(out) in refused(capsys, finished_digits, images, listed, "--out", out)
        assert out.read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize(("shell", "code", "said"), [("| head -n 1", 0, b""), (">&-", 2, b"error: standard output is")])
def test_a_standard_output_that_goes_away_is_no_traceback(run, images, shell, code, said):
    names = "\n".join([str(images / "a.png")] * 2000).encode()
    command = f"set -o pipefail; {sys.executable} -m trainers.hegraph.predict {run} - {shell}"
    ran = subprocess.run(["bash", "-c", command], cwd=ROOT, input=names, capture_output=True)
    assert ran.returncode == code and ran.stderr.startswith(said) and ran.stderr.count(b"\n") == bool(said)


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["RUN", "IMAGES", "--top", "0"], "'0'"),
        (["RUN", "IMAGES", "--batch-size", "9" * 20], "999"),
        (["RUN", "IMAGES", "--keep", "1"], "--keep must lie between 0 and 1"),
        (["RUN", "IMAGES", "--split", "val"], "--split val goes with --features"),
        (["RUN", "--features", "x", "--sort-into", "y"], "--sort-into is for these"),
        (["RUN", "--features", "BANK"], "'none', 16 wide"),
    ],
)
def test_a_mistake_is_one_line(run, images, tiny_bank, capsys, arguments, expected):
    places = {"RUN": run, "IMAGES": images, "BANK": tiny_bank}
    assert expected in refused(capsys, *(places.get(argument, argument) for argument in arguments))
