"""The command `predict`, from its flags to its exit code."""

import csv
import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score

from trainers.hegraph.commands.predict import main
from trainers.hegraph.datasets.digits import open_digit
from trainers.hegraph.features.bank import load_bank
from trainers.hegraph.models.folder import load_model, save_model
from trainers.hegraph.models.images import ImageModel
from trainers.hegraph.models.predict import prediction
from trainers.hegraph.models.predict.files import FORMATS
from trainers.hegraph.models.saved import adapt
from trainers.hegraph.utils.reading import read_json

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(finished_digits_once: Path) -> Path:
    return finished_digits_once


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of five digits, one of them in a folder of its own."""
    for row, name in enumerate(("a.png", "b c.png", "d/e.png", "f.png", "g.png")):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        open_digit(f"digits/{row:04d}").save(path)
    return tmp_path / "images"


@pytest.fixture
def rows(capsys) -> Callable[..., list[dict]]:
    """Function that runs the command and returns its rows."""

    def predict(*arguments: object, code: int = 0) -> list[dict]:
        assert main([*map(str, arguments), "--format", "jsonl"]) == code
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return predict


# Predictions


def test_rows_have_calibrated_probabilities_in_order(run, images, tmp_path, rows):
    model = load_model(run).model_copy(update={"temperature": 3.0})
    save_model(model, tmp_path / "calibrated")
    features = ImageModel.load(run).features([images / "a.png"])
    values, labels = (model.classifier.logits(features)[0] / 3.0).softmax(dim=0).sort(descending=True)
    [row] = rows(tmp_path / "calibrated", images / "a.png", "--top", 3)
    assert [entry["class"] for entry in row["top"]] == [model.classnames[label] for label in labels[:3]]
    assert [entry["probability"] for entry in row["top"]] == pytest.approx(values[:3].tolist(), rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_rows_are_in_order_of_inputs(run, images, rows, caplog, batch_size):
    (images / "bad.png").write_text("no image")
    (images / "empty").mkdir()
    inputs = [images / "g.png", images / "missing.png", images / "empty", images, images / "a.png"]
    found = rows(run, *inputs, "--top", 1, "--batch-size", batch_size, code=1)
    names = ["g.png", "missing.png", "a.png", "b c.png", "bad.png", "d/e.png", "f.png", "g.png", "a.png"]
    assert [row["path"] for row in found] == [str(images / name) for name in names]
    assert found[0]["top"] == found[7]["top"] and found[2]["top"] == found[8]["top"]
    assert [bool(row["error"]) for row in found] == [name in ("missing.png", "bad.png") for name in names]
    assert f"2 of 9 could not be read; the first is {images / 'missing.png'}" in caplog.text


def test_bank_has_the_predictions_of_the_run(finished_run_once, tiny_bank, tmp_path, rows, cli_error, caplog):
    caplog.set_level("INFO", "trainers.hegraph")
    run, of_bank = finished_run_once, ("--features", tiny_bank)
    found, names = rows(run, *of_bank), load_model(run).classnames
    assert found[17]["path"] == f"{tiny_bank}#test/17"
    labels = load_file(run / "predictions.safetensors")["predicted"].tolist()
    assert [row["top"][0]["class"] for row in found] == [names[label] for label in labels]
    assert f"accuracy {read_json(run / 'result.json')['accuracy']:.2f} %" in caplog.text
    assert len(rows(run, *of_bank, "--split", "train", "--top", 1)) == 30
    replace(load_bank(tiny_bank), val_features=None, val_labels=None).save(tiny_bank)
    assert "has no val" in cli_error("predict", run, *of_bank, "--split", "val")


def test_bank_with_several_labels_has_its_map(finished_run_once, tiny_bank, rows, caplog):
    caplog.set_level("INFO", "trainers.hegraph")
    bank, model = load_bank(tiny_bank), load_model(finished_run_once)
    labels = {name: F.one_hot(getattr(bank, name), 5).bool() for name in ("train_labels", "val_labels", "test_labels")}
    several = replace(bank, **labels)
    several.save(tiny_bank)
    assert len(rows(finished_run_once, "--features", tiny_bank)) == 40
    expected = average_precision_score(several.test_labels, model.classifier.logits(bank.test_features))
    assert f"mAP {100 * expected:.2f} %" in caplog.text
    caplog.clear()
    for changes in ({"test_labels": torch.zeros(40, 5, dtype=torch.bool)}, {"classnames": list("vwxyz")}):
        replace(several, **changes).save(tiny_bank)
        rows(finished_run_once, "--features", tiny_bank)
    assert "mAP" not in caplog.text and "accuracy" not in caplog.text


def test_transductive_predictions(finished_digits_once, finished_run_once, tiny_bank, images, rows, cli_error):
    model, of_digits = load_model(finished_run_once), (finished_digits_once, images, "--transductive")
    _, adaptation = adapt(model, load_bank(tiny_bank).test_features, "cpu")
    found = rows(finished_run_once, "--features", tiny_bank, "--transductive")
    for row, probabilities in zip(found, model.calibrate(adaptation.logits), strict=True):
        predicted = {entry["class"]: entry["probability"] for entry in row["top"]}
        assert predicted == pytest.approx(dict(zip(model.classnames, probabilities.tolist())), abs=1e-4)
    together, alone = rows(*of_digits), rows(finished_digits_once, images)
    assert [row["path"] for row in together] == [row["path"] for row in alone] and together != alone
    in_parts = rows(*of_digits, "--batch-size", 2)
    assert [row["top"][0]["class"] for row in in_parts] == [row["top"][0]["class"] for row in together]
    assert "leave it out with --transductive" in cli_error("predict", *of_digits, "--open-set", 0.9)
    (images / "empty").mkdir()
    assert "expected at least one image" in cli_error(
        "predict", finished_digits_once, images / "empty", "--transductive"
    )


def test_batch_size_depends_on_image_size():
    sizes = {(224, 224): 64, (448, 224): 32, (32, 32): 256, (4000, 4000): 1}
    assert {size: prediction.default_batch_size(size) for size in sizes} == sizes


def test_nan_is_an_error_and_names_are_unique(run):
    names = {"classnames": ["crane", "crane", *"abcdefgh"], "class_ids": tuple("0123456789")}
    logits = torch.zeros(2, 10)
    logits[0, 3] = float("nan")
    model = load_model(run).model_copy(update=names)
    failed, row = prediction.rows_of(model, ["x", "y"], logits, top=3)
    assert failed.error == "the model predicts NaN"
    # Equal probabilities are in class order
    assert row.top == [(name, pytest.approx(0.1)) for name in ("crane (0)", "crane (1)", "a")]


def test_several_labels_are_those_above_their_thresholds(run):
    thresholds = torch.tensor([2.0, 0.0, -3.0, *[9.0] * 7])
    model = load_model(run).model_copy(update={"thresholds": thresholds})
    logits = torch.full((2, 10), -5.0)
    logits[0, :3] = torch.tensor([1.0, 0.0, 1.0])  # class 0 is as probable as class 2, and below its threshold
    first, second = prediction.rows_of(model, ["x", "y"], logits, top=1)
    names = model.classnames
    assert first.top == [(names[2], pytest.approx(1 / (1 + math.exp(-1)))), (names[1], 0.5)]
    assert second.top == [] and not second.error
    lines = [[*write([[first, second]], False)] for write in FORMATS.values()]
    assert [len(of_format) for of_format in lines] == [3, 4, 2]
    assert ([line.split()[:2] for line in lines[0][1:]], lines[1][-1]) == ([["x", names[2]], ["y", "-"]], "y,,,,\n")
    assert json.loads(lines[2][1])["top"] == []


def test_images_with_several_labels_are_sorted_into_all_their_folders(run, images, tmp_path, rows):
    model = load_model(run)
    save_model(model.model_copy(update={"thresholds": torch.full((10,), -1e6), "support_set": None}), tmp_path / "all")
    assert len(rows(tmp_path / "all", images / "a.png", "--sort-into", tmp_path / "sorted")[0]["top"]) == 10
    assert len([*(tmp_path / "sorted").glob("*/a.png")]) == 10


@pytest.mark.parametrize("into", ["out/model", "out/model/sorted", "link", "out", "project/.hegraph"])
def test_images_are_not_sorted_into_a_model(run, images, tmp_path, cli_error, into):
    model = load_model(run)
    save_model(model.model_copy(update={"classnames": ("model", *model.classnames[1:])}), tmp_path / "out" / "model")
    (tmp_path / "link").symlink_to("out/model")
    before = set(tmp_path.rglob("*"))
    error = cli_error("predict", tmp_path / "out" / "model", images, "--sort-into", tmp_path / into)
    assert "IMAGE is inside" in error and "the folder of a model or project; choose another folder" in error
    assert set(tmp_path.rglob("*")) == before


# Open-set rejection


def test_images_below_the_threshold_are_rejected(run, images, tmp_path, capsys):
    Image.new("L", (8, 8), 128).save(images / "grey.png")
    model = ImageModel.load(run)
    paths = [images / name for name in ("a.png", "b c.png", "d/e.png", "f.png", "g.png", "grey.png")]
    expected = [not known for known in model.model.is_known(model.logits(model.features(paths)), 0.5).tolist()]
    assert 0 < sum(expected) < 6  # the share is low, so that some are marked
    flags = ["--open-set", "0.5", "--format", "csv", "--top", "1", "--sort-into", str(tmp_path / "sorted")]
    assert main([str(run), str(images), *flags]) == 0
    rows = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert [row["none_of_these"] == "true" for row in rows] == expected
    marked = {path.name for path, none in zip(paths, expected) if none}
    assert {path.name for path in (tmp_path / "sorted" / "none of these").iterdir()} == marked


# Output


def test_suffix_selects_the_format(run, images, tmp_path, capsys):
    names = ("rows.csv", "rows.JSONL", "rows.txt")
    assert [main([str(run), str(images), "--top", "1", "--out", str(tmp_path / name)]) for name in names] == [0, 0, 0]
    assert capsys.readouterr().out == ""
    table, lines, text = ((tmp_path / name).read_text() for name in names)
    expected = [(row["path"], row["top"][0]["class"]) for row in map(json.loads, lines.splitlines())]
    assert [(row["path"], row["class"]) for row in csv.DictReader(table.splitlines())] == expected
    head, *lines = text.splitlines()
    assert head.split() == ["path", "class", "probability", "next", "classes"]
    starts = [head.index(name) for name in ("class", "probability")]
    assert [(line[: starts[0]].rstrip(), line[slice(*starts)].rstrip()) for line in lines] == expected


def test_lists_in_a_file_and_on_standard_input(run, images, tmp_path, rows, monkeypatch):
    (tmp_path / "null.txt").write_bytes(os.fsencode(images) + b"/a.png\0")
    names = b"\0".join(os.fsencode(path) for path in sorted(images.rglob("*.png")))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(names)))
    assert len(rows(run, "-", "--top", 1, tmp_path / "null.txt", "-0")) == 6


def test_sorted_images_are_not_read_again(run, images, rows):
    into = ("--sort-into", images / "sorted")
    found = rows(run, images, *into)
    assert rows(run, images, *into) == found and len(found) == 5
    copies = {images / "sorted" / row["top"][0]["class"] / Path(row["path"]).name: row["path"] for row in found}
    assert [copy.read_bytes() for copy in copies] == [Path(path).read_bytes() for path in copies.values()]
    assert {path for path in (images / "sorted").rglob("*") if path.is_file()} == set(copies)


@pytest.mark.slow
@pytest.mark.parametrize(("shell", "code", "error"), [
    ("| head -n 1", 0, b""), (">&-", 2, b"error: standard output is"),
])  # fmt: skip
def test_closed_standard_output_is_no_traceback(run, images, shell, code, error):
    names = "\n".join([str(images / "a.png")] * 2000).encode()
    command = f"set -o pipefail; {sys.executable} -m trainers.hegraph predict {run} - {shell}"
    ran = subprocess.run(["bash", "-c", command], cwd=ROOT, input=names, capture_output=True)
    assert ran.returncode == code and ran.stderr.startswith(error) and ran.stderr.count(b"\n") == bool(error)


# Errors


@pytest.mark.parametrize(("arguments", "expected"), [
    (["RUN", "IMAGES", "--top", "0"], "'0'"), (["RUN", "IMAGES", "--batch-size", "9" * 20], "999"),
    (["RUN", "IMAGES", "--open-set", "1"], "--open-set must be between 0 and 1"),
    (["RUN", "IMAGES", "--coverage", "1"], "--coverage must be between 0 and 1, such as 0.9, got 1"),
    (["RUN", "IMAGES", "--coverage", "0.9", "--transductive"], "leave it out with --transductive"),
    (["RUN", "IMAGES", "--coverage", "0.999"], "coverage 0.999 needs at least 999 held-out images, and the model has"),
    (["RUN", "IMAGES", "--split", "val"], "--split val needs --features"),
    (["RUN", "a.png", "IMAGES", "--sort-into", "IMAGES"], "is an input too"),
    (["RUN", "--features", "x", "--sort-into", "y"], "which --sort-into needs"),
    (["RUN", "--features", "x", "--batch-size", "9"], "which --batch-size needs"),
    (["RUN", "--features", "BANK"], "got 'none' with width 16"),
])  # fmt: skip
def test_a_mistake_is_one_line(run, images, tiny_bank, cli_error, arguments, expected):
    places = {"RUN": run, "IMAGES": images, "BANK": tiny_bank}
    assert expected in cli_error("predict", *(places.get(argument, argument) for argument in arguments))


# Prediction sets


def test_json_has_the_classes_of_the_set(run, images, rows):
    model = ImageModel.load(run).model
    for row in rows(run, images, "--coverage", 0.9, "--top", 10):
        probable = [entry["class"] for entry in row["top"] if entry["probability"] >= model.set_threshold(0.9)]
        assert row["classes"] == (probable or [row["top"][0]["class"]])
    assert "classes" not in rows(run, images)[0]


def test_csv_and_table_have_a_column_of_classes(run, images, capsys, rows):
    expected = rows(run, images, "--coverage", 0.95, "--top", 2)
    assert main([str(run), str(images), "--coverage", "0.95", "--top", "2", "--format", "csv"]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["classes"] for row in table] == ["|".join(row["classes"]) for row in expected for _ in range(2)]
    assert main([str(run), str(images), "--coverage", "0.95"]) == 0
    head, first, *_ = capsys.readouterr().out.splitlines()
    assert head.split() == ["path", "class", "probability", "classes", "next", "classes"]
    assert ", ".join(expected[0]["classes"]) in first


def test_sets_of_a_bank_are_those_of_its_features(finished_run, tiny_bank, rows):
    model = load_model(finished_run)
    features = load_bank(tiny_bank).test_features
    sets = model.prediction_sets(features, model.classifier.logits(features), 0.8)
    found = rows(finished_run, "--features", tiny_bank, "--coverage", 0.8)
    assert [{*row["classes"]} for row in found] == [
        {name for name, inside in zip(model.classnames, row) if inside} for row in sets.tolist()
    ]
