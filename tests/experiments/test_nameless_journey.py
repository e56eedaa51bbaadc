"""Folder of images without class names, from the training to the applications of its model."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from trainers.hegraph.__main__ import main
from trainers.hegraph.datasets.digits import load_digits_dataset
from trainers.hegraph.models.folder import load_model

NODE = "TRAINER.HEGRAPHADAPTER"
NO_NAMES = (f"{NODE}.PROMPTS.SOURCE", "none")
PARTS = ("part 43", "part 44", "part 45", "part 46")
IMAGES = {"photos/train": range(4), "photos/test": range(4, 9), "unlabelled": range(9, 12), "more/train": range(12, 15)}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Scans of four digits in `photos`, `unlabelled` and `more`; their class names are part numbers."""
    dataset = load_digits_dataset()
    folder = tmp_path_factory.mktemp("parts")
    for label, name in enumerate(PARTS):
        items = [item for item in dataset.train if item.label == label]
        for place, numbers in IMAGES.items():
            target = folder / place if place == "unlabelled" else folder / place / name
            target.mkdir(parents=True, exist_ok=True)
            for number in numbers:
                dataset.open(items[number].path).save(target / f"{label}-{number}.png")
    return folder


@pytest.fixture(scope="module", params=["training_free", "full"])
def run(folder, request) -> Path:
    """Output folder of a training of a variant on `photos`."""
    out = folder / request.param
    words = ("train", folder / "photos", "--backbone", "mini", "--output-dir", out)
    keys = (*NO_NAMES, f"{NODE}.VARIANT", request.param, f"{NODE}.MIN_STEPS", "20", "OPTIM.MAX_EPOCH", "5")
    assert main([*map(str, words), *keys]) == 0
    return out


def called(capsys, *words: object, code: int = 0) -> str:
    """Run a command; returns its standard output."""
    capsys.readouterr()
    assert main([*map(str, words)]) == code
    return capsys.readouterr().out


def test_model_predicts_without_names(run, folder, capsys):
    record = json.loads((run / "result.json").read_text())
    assert record["accuracy"] >= 80 and record["accuracy_zero_shot"] is None
    assert not load_model(run).has_text
    out = called(capsys, "predict", run, folder / "photos/test", "--format", "csv", "--coverage", "0.8")
    rows = [*csv.DictReader(out.splitlines())]
    best = [row["class"] for row in rows if row["rank"] == "1"]
    assert len(best) == 20 and {*best} == {*PARTS}


def test_report_and_tables_have_no_zero_shot_column(run, folder, capsys):
    called(capsys, "results", "report", run, "--out", folder / "report.html")
    report = (folder / "report.html").read_text()
    assert "CLIP without training images" not in report and "zero-shot" not in report.split("Tables and figures")[0]
    assert "zero-shot" not in called(capsys, "results", "compare", run)


def test_onnx_file_gives_the_probabilities_of_predict(run, folder, tmp_path, capsys):
    pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    file = tmp_path / "model.onnx"
    printed = called(capsys, "export", run, "--onnx", file)
    difference = float(printed.split("probabilities ")[1])
    assert difference < 1e-3 and file.stat().st_size > 0


def test_added_classes_need_images_but_no_names(run, folder, tmp_path, capsys):
    more = tmp_path / "more"
    shutil.copytree(folder / "more", more)
    (more / "train" / PARTS[3]).rename(more / "train" / "part 99")
    called(capsys, "train-more", run, "--root", more, "--out", tmp_path / "larger")
    larger = load_model(tmp_path / "larger")
    assert larger.classnames == (*PARTS, "part 99") and larger.images == (7, 7, 7, 4, 3)
    assert not larger.has_text and larger.prompts is None


def test_images_to_label_are_suggested(run, folder, capsys):
    out = called(capsys, "label", "suggest", run, folder / "unlabelled", "-n", 5, "--format", "jsonl")
    assert len(out.splitlines()) == 5


def test_unlabelled_images_need_no_names(folder, tmp_path, capsys):
    words = ("--backbone", "mini", "--output-dir", tmp_path / "run", "--unlabelled", folder / "unlabelled")
    called(capsys, "train", folder / "photos", *words, *NO_NAMES, f"{NODE}.VARIANT", "training_free")
    record = json.loads((tmp_path / "run/result.json").read_text())
    assert record["unlabelled"]["num_images"] == 12 and record["accuracy"] >= 80
    assert not load_model(tmp_path / "run").has_text


def test_wrong_label_is_found(folder, tmp_path, capsys):
    photos = tmp_path / "photos"
    shutil.copytree(folder / "photos/train", photos)
    shutil.move(photos / PARTS[0] / "0-1.png", photos / PARTS[1])
    words = ("label", "check", "--root", photos, "--config-file", "mini", "--format", "jsonl", *NO_NAMES)
    issues = [json.loads(line) for line in called(capsys, *words, code=1).splitlines()]
    assert Path(issues[0]["path"]).name == "0-1.png" and issues[0]["suggested"] == PARTS[0]


def test_several_labels_need_no_names(folder, tmp_path, capsys):
    rows = ["path,labels,split"]
    for place in ("train", "test"):
        for path in sorted((folder / "photos" / place).rglob("*.png")):
            label = int(path.name[0])
            rows.append(f"{path},{PARTS[label]}|{'odd' if label % 2 else 'even'},{place}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    words = ("train", tmp_path / "labels.csv", "--backbone", "mini", "--output-dir", tmp_path / "run", *NO_NAMES)
    assert "CLIP without training" not in called(capsys, *words, f"{NODE}.VARIANT", "training_free")
    record = json.loads((tmp_path / "run/result.json").read_text())
    assert record["map"] > 60 and record["map_zero_shot"] is None
