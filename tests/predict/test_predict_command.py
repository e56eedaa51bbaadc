"""The command `predict`, from its flags to its exit code."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from trainers.hegraph.__main__ import main as train
from trainers.hegraph.datasets.digits import load_digits_dataset
from trainers.hegraph.features.bank import FeatureBank
from trainers.hegraph.models.folder import CONFIG, TENSORS, load_model, save_model
from trainers.hegraph.predict import prediction
from trainers.hegraph.predict.__main__ import main
from trainers.hegraph.utils.reading import read_json

ROOT = Path(__file__).parents[2]


@pytest.fixture
def images(tmp_path: Path, write_digit: Callable[[Path, int], Path]) -> Path:
    """A folder of five digits, one of them in a folder of its own."""
    for name, row in {"a.png": 0, "b c.png": 1, "d/e.png": 2, "f.png": 3, "g.png": 4}.items():
        write_digit(tmp_path / "images" / name, row)
    return tmp_path / "images"


def json_rows(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def predict_in_a_process(*arguments: object, **options: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "trainers.hegraph.predict", *map(str, arguments)]
    return subprocess.run(command, **{"cwd": ROOT, "capture_output": True} | options)


def refused(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """The one line that a mistake gives."""
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1
    return err


# What is predicted


def test_the_test_images_get_the_classes_that_the_run_gave_them(digits_run, tmp_path, write_digit):
    items = load_digits_dataset().test
    paths = [write_digit(tmp_path / f"{position:04d}.png", int(item.path[-4:])) for position, item in enumerate(items)]
    assert main([str(digits_run), str(tmp_path), "--out", str(tmp_path / "rows.jsonl")]) == 0
    rows = json_rows((tmp_path / "rows.jsonl").read_text())
    assert [row["path"] for row in rows] == [str(path) for path in paths]
    names = load_model(digits_run).classnames
    right = sum(row["top"][0]["class"] == names[item.label] for row, item in zip(rows, items))
    assert 100 * right / len(items) == pytest.approx(read_json(digits_run / "result.json")["accuracy"])


def test_rows_hold_calibrated_probabilities_in_falling_order(digits_run, images, tmp_path, capsys):
    model = load_model(digits_run)
    assert model.temperature == read_json(digits_run / "result.json")["calibration"]["temperature"] != 1
    save_model(type(model)(**model.__dict__ | {"temperature": 3.0}), tmp_path / "calibrated")
    found = []
    for folder in (digits_run, tmp_path / "calibrated"):
        assert main([str(folder), str(images), "--format", "jsonl", "--top", "100"]) == 0
        found.append(json_rows(capsys.readouterr().out))
    for plain, calibrated in zip(*found):
        assert len(plain["top"]) == 10
        values = [entry["probability"] for entry in plain["top"]]
        assert values == sorted(values, reverse=True) and sum(values) == pytest.approx(1, abs=1e-5)
        logits = {e["class"]: torch.tensor(e["probability"]).log() * model.temperature / 3 for e in plain["top"]}
        expected = dict(zip(logits, torch.stack(list(logits.values())).softmax(0).tolist()))
        assert {e["class"]: e["probability"] for e in calibrated["top"]} == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_the_order_is_that_of_the_inputs_whatever_the_batches(digits_run, images, capsys, batch_size):
    (images / "bad.png").write_text("no image")
    given = [images / "g.png", images / "missing.png", images, images / "bad.png", images / "a.png"]
    flags = ["--format", "jsonl", "--top", "1", "--batch-size", str(batch_size)]
    assert main([str(digits_run), *map(str, given), *flags]) == 1
    rows = json_rows(capsys.readouterr().out)
    walked = ["a.png", "b c.png", "bad.png", "d/e.png", "f.png", "g.png"]
    assert [row["path"] for row in rows] == [
        str(images / name) for name in ("g.png", "missing.png", *walked, "bad.png", "a.png")
    ]
    assert rows[0]["top"] == rows[7]["top"] and rows[2]["top"] == rows[9]["top"]
    assert [bool(row["error"]) for row in rows] == [name in (1, 4, 8) for name in range(10)]


def test_a_bank_gives_the_predictions_of_the_run(digits_run, tmp_path, capsys, caplog):
    caplog.set_level("INFO", "trainers.hegraph")
    bank = bank_of(digits_run)
    bank.save(tmp_path / "bank.safetensors")
    assert main([str(digits_run), "--features", str(tmp_path / "bank.safetensors"), "--format", "jsonl"]) == 0
    rows = json_rows(capsys.readouterr().out)
    assert rows[17]["path"] == f"{tmp_path / 'bank.safetensors'}#test/17"
    names = load_model(digits_run).classnames
    kept = load_file(digits_run / "predictions.safetensors")["predicted"].tolist()
    assert [row["top"][0]["class"] for row in rows] == [names[label] for label in kept]
    assert f"accuracy {read_json(digits_run / 'result.json')['accuracy']:.2f} %" in caplog.text
    assert main([str(digits_run), "--features", str(tmp_path / "bank.safetensors"), "--split", "train"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(bank.train_labels)


def bank_of(run: Path) -> FeatureBank:
    """The bank of a run, from the features that it kept."""
    names = ("train", "test", "text")
    parts = {name: load_file(next((run.parent / "features").rglob(f"{name}-*.safetensors"))) for name in names}
    dataset = load_digits_dataset()
    split = read_json(run / "split.json")
    return FeatureBank(
        train_features=parts["train"]["features"],
        train_labels=torch.tensor([label for _, label, _ in split["train"]]),
        test_features=parts["test"]["features"][0],
        test_labels=torch.tensor([item.label for item in dataset.test]),
        text_positive=parts["text"]["positive"],
        text_negative=parts["text"]["negative"],
        classnames=list(dataset.classnames),
        dataset="Digits",
        backbone="hegraph-mini/hegraph-mini",
        logit_scale=load_model(run).logit_scale,
    )


def test_a_model_that_was_trained_from_a_bank_takes_images_once_its_backbone_is_named(
    digits_run, images, tmp_path, capsys
):
    bank_of(digits_run).save(tmp_path / "bank.safetensors")
    quick = ["OPTIM.MAX_EPOCH", "1", "OPTIM.WARMUP_EPOCH", "0", "TRAINER.HEGRAPHADAPTER.MIN_STEPS", "0"]
    flags = ["--features", str(tmp_path / "bank.safetensors"), "--shots", "4", "--seed", "1"]
    assert train([*flags, "--output-dir", str(tmp_path / "run"), *quick]) == 0
    capsys.readouterr()
    assert "give --backbone NAME --pretrained TAG" in refused(capsys, tmp_path / "run", images)
    assert main([str(tmp_path / "run"), str(images), "--backbone", "hegraph-mini"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_two_classes_of_one_name_are_told_apart_by_their_ids(digits_run):
    model = load_model(digits_run)
    names = ("crane", "crane", *model.classnames[2:])
    model = type(model)(**model.__dict__ | {"classnames": names, "class_ids": tuple("abcdefghij")})
    assert prediction.distinct_names(model)[:3] == ["crane (a)", "crane (b)", "two"]


def test_a_probability_that_is_no_number_is_an_error_and_no_row():
    rows = list(prediction.rows_of(["x", "y"], torch.tensor([[float("nan"), 1.0], [0.5, 0.5]]), ["a", "b"], 1))
    assert rows[0].error == "the model gives NaN for it"
    assert rows[1].top == [("a", 0.5)]  # of equal classes the first


# How it is written


def test_every_format_says_the_same(digits_run, images, tmp_path, capsys):
    written = {}
    for name in ("rows.csv", "rows.jsonl", "rows.txt"):
        assert main([str(digits_run), str(images), "--top", "1", "--out", str(tmp_path / name)]) == 0
        written[name] = (tmp_path / name).read_text()
    assert capsys.readouterr().out == ""
    rows = json_rows(written["rows.jsonl"])
    table = list(csv.DictReader(written["rows.csv"].splitlines()))
    expected = [(row["path"], row["top"][0]["class"]) for row in rows]
    assert [(row["path"], row["class"]) for row in table] == expected
    lines = [re.split("  +", line)[:2] for line in written["rows.txt"].splitlines()]
    assert [tuple(line) for line in lines] == expected


def test_a_name_of_any_bytes_is_written_as_valid_utf_8(digits_run, tmp_path, write_digit, capsys):
    write_digit(Path(os.fsdecode(os.fsencode(tmp_path) + b"/x\xff\n.png")), 0)
    assert main([str(digits_run), str(tmp_path), "--format", "jsonl", "--sort-into", str(tmp_path / "sorted")]) == 0
    [row] = json_rows(capsys.readouterr().out)
    assert row["path"] == f"{tmp_path}/x\\xff\n.png"
    assert [os.fsencode(path.name) for path in (tmp_path / "sorted").rglob("*.png")] == [b"x\xff\n.png"]


def test_lists_in_a_file_and_on_standard_input(digits_run, images, tmp_path, capsys, monkeypatch):
    (tmp_path / "list.txt").write_text(f"{images}/a.png\n{images}/b c.png\n")
    (tmp_path / "null.txt").write_bytes(os.fsencode(images) + b"/a.png\0")
    assert main([str(digits_run), str(tmp_path / "list.txt")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    names = b"\0".join(os.fsencode(path) for path in sorted(images.rglob("*.png")))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(names)))
    assert main([str(digits_run), "-", "--top", "1", str(tmp_path / "null.txt"), "-0", "--format", "jsonl"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO()))
    assert "there is nothing to classify: the list is empty" in refused(capsys, digits_run, "-")


def test_images_are_sorted_into_folders_of_their_classes_and_those_are_not_read_again(digits_run, images, capsys):
    for _ in range(2):
        assert main([str(digits_run), str(images), "--sort-into", str(images / "sorted"), "--format", "jsonl"]) == 0
    rows = json_rows(capsys.readouterr().out)
    assert len(rows) == 10
    for row in rows[:5]:
        path, folder = Path(row["path"]), images / "sorted" / row["top"][0]["class"]
        assert (folder / path.name).read_bytes() == path.read_bytes()
        assert (folder / path.name).with_stem(f"{path.stem}-1").read_bytes() == path.read_bytes()


def test_unreadable_images_are_in_their_rows_and_in_the_summary(digits_run, images, capsys, caplog, monkeypatch):
    (images / "bad.png").write_text("no image")
    (images / "c.png").write_bytes((images / "a.png").read_bytes()[:60])
    Image.new("1", (80, 80)).save(images / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # Pillow refuses twice as many
    assert main([str(digits_run), str(images), "--format", "jsonl"]) == 1
    rows = {Path(row["path"]).name: row for row in json_rows(capsys.readouterr().out)}
    assert len(rows) == 8
    assert rows["bad.png"]["error"].startswith("is no image")
    assert "exceeds limit of 4000 pixels" in rows["bomb.png"]["error"]
    assert rows["c.png"]["error"] and rows["c.png"]["top"] == []
    assert f"3 of 8 could not be read; the first is {images / 'bad.png'}: is no image" in caplog.text


def test_an_output_file_appears_whole_or_not_at_all(digits_run, images, tmp_path, capsys, disk_full_after):
    out = tmp_path / "rows.csv"
    out.write_text("older")
    with disk_full_after(50):
        assert main([str(digits_run), str(images), "--out", str(out)]) == 2
    assert capsys.readouterr().err.startswith(f"error: cannot write {out}: File too large")
    assert out.read_text() == "older"
    assert sorted(os.listdir(tmp_path)) == ["images", "rows.csv"]


def test_head_ends_without_a_traceback(digits_run, images):
    many = [str(images / "a.png")] * 5000
    names = "\n".join(many).encode()
    command = f"{sys.executable} -m trainers.hegraph.predict {digits_run} - | head -n 1"
    ran = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], cwd=ROOT, input=names, capture_output=True)
    assert (ran.returncode, ran.stdout.count(b"\n"), ran.stderr) == (0, 1, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_standard_output_is_one_line(digits_run, images):
    with open("/dev/full", "wb") as full:
        ran = predict_in_a_process(digits_run, images, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert ran.returncode == 2
    assert ran.stderr == b"error: cannot write to standard output: No space left on device\n"


def test_a_closed_standard_output_is_one_line(digits_run, images):
    ran = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m trainers.hegraph.predict {digits_run} {images} >&-"],
        cwd=ROOT, capture_output=True,
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (2, b"error: standard output is closed; give --out FILE\n")


def test_an_interruption_is_one_line(digits_run, images, capsys, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prediction, "write_rows", interrupted)
    assert main([str(digits_run), str(images)]) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["RUN"], "nothing to classify"),
        (["RUN", "missing.png"], "there is no missing.png"),
        (["RUN", "IMAGES", "--top", "0"], "--top must be at least 1, got 0"),
        (["RUN", "IMAGES", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["RUN", "IMAGES", "--batch-size", "9" * 20], "--batch-size must be below 2**31, got 999"),
        (["RUN", "IMAGES", "--top", "9" * 20], "--top must be below 2**31, got 999"),
        (["RUN", "IMAGES", "--split", "val"], "--split val goes with --features"),
        (["RUN", "IMAGES", "--features", "x"], "--features takes the place of images"),
        (["RUN", "--features", "x", "--sort-into", "y"], "--sort-into needs images"),
        (["RUN", "--features", "missing"], "cannot read missing"),
        (["RUN", "IMAGES", "--device", "gpu"], "--device must be cpu, cuda or cuda:N, got 'gpu'"),
        (["RUN", "IMAGES", "--device", "meta"], "--device must be cpu, cuda or cuda:N, got 'meta'"),
        (["RUN", "IMAGES", "--out", "IMAGES"], "is no regular file, and is not overwritten"),
        (["RUN", "IMAGES", "--out", "/dev/null"], "--out /dev/null is no regular file"),
        (["RUN", "IMAGES", "--backbone", "RN50"], "the weights of RN50 are not named"),
        (["RUN", "IMAGES", "--pretrained", "nothing"], "unknown weights of hegraph-mini"),
        (["IMAGES", "IMAGES"], "holds no config.json"),
        (["missing", "IMAGES"], "missing is not there"),
    ],
)
def test_a_mistake_is_one_line(digits_run, images, capsys, arguments, expected):
    places = {"RUN": digits_run, "IMAGES": images}
    assert expected in refused(capsys, *(places.get(argument, argument) for argument in arguments))


def test_a_folder_without_images_is_one_line(digits_run, tmp_path, capsys):
    assert f"{tmp_path} holds no image (.jpg, .jpeg" in refused(capsys, digits_run, tmp_path)


def test_a_damaged_model_is_one_line(digits_run, images, tmp_path, capsys):
    save_model(load_model(digits_run), tmp_path / "model")
    (tmp_path / "model" / TENSORS).write_bytes(b"")
    assert f"{tmp_path / 'model' / TENSORS} is damaged" in refused(capsys, tmp_path / "model", images)
    (tmp_path / "model" / CONFIG).write_text("[" * 100_000)
    assert "it is nested too deeply" in refused(capsys, tmp_path / "model", images)


def test_features_of_another_backbone_are_refused(digits_run, tiny_bank, capsys):
    message = refused(capsys, digits_run, "--features", tiny_bank)
    assert "'hegraph-mini/hegraph-mini' features of width 64, but" in message and "'none', 16 wide" in message


def test_nothing_heavy_is_imported_that_prediction_does_not_need(digits_run, images):
    asked = (
        "import sys, torchvision; its_own = set(sys.modules); "  # that of torch 2.4 takes onnx, where there is one
        f"import trainers.hegraph.predict.__main__ as p; p.main([{str(digits_run)!r}, {str(images)!r}]); "
        "heavy = {'sklearn', 'matplotlib', 'scipy.stats', 'pandas', 'onnx', 'gradio'} - its_own; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", asked], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"
