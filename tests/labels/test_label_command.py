"""The command `label`: suggestions for a trained model, and labels that seem wrong."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from trainers.hegraph.datasets.digits import load_digits_dataset
from trainers.hegraph.features.bank import load_bank
from trainers.hegraph.labels.__main__ import main
from trainers.hegraph.labels.issues import find_label_issues
from trainers.hegraph.labels.suggest import suggest
from trainers.hegraph.models.images import ImageModel

VIEWS = ("TRAINER.HEGRAPHADAPTER.FEATURES.VIEWS", "1")


@pytest.fixture
def digits(tmp_path, monkeypatch) -> Path:
    """train/ has 4 scans of each of 4 digits, a five of which lies among the zeros; unlabelled/ has 8 more scans."""
    monkeypatch.chdir(tmp_path)
    data = load_digits_dataset()
    for label in (0, 1, 4, 5):
        for number, item in enumerate([item for item in data.train if item.label == label][:6]):
            classname = data.classnames[0 if (label, number) == (5, 0) else label]
            folder = "unlabelled" if number >= 4 else f"train/{classname}"
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            data.open(item.path).save(tmp_path / folder / f"{label}-{number}.png")
    return tmp_path


def test_a_scan_in_the_wrong_folder_is_found(digits, capsys):
    arguments = ["check", "--root", str(digits), "--config-file", "mini", *VIEWS]
    assert main(arguments) == 1
    [line] = capsys.readouterr().out.splitlines()
    path, score, said = line.split(maxsplit=2)
    wrong = digits / "train" / "zero" / "5-0.png"
    assert (path, said) == (str(wrong), "zero -> five") and float(score) > 2
    wrong.rename(digits / "train" / "five" / "5-0.png")
    assert main([*arguments, "--format", "csv"]) == 0
    assert capsys.readouterr().out == "path,label,suggested,score\n"


def test_labels_of_a_bank_are_those_that_the_classifier_doubts(tiny_bank, tmp_path, capsys):
    bank = load_bank(tiny_bank)
    expected = find_label_issues(
        bank.cache_keys(), bank.train_labels, bank.text_positive, bank.logit_scale, bank.classnames
    )
    out = tmp_path / "rows.csv"
    assert main(["check", "--features", str(tiny_bank), "--above", "-1000", "--out", str(out)]) == 1
    head, *rows = csv.reader(out.open(encoding="utf-8"))
    assert head == ["path", "label", "suggested", "score"]
    wanted = [[f"{tiny_bank}#train/{i.index}", i.label, i.suggested, round(i.score, 4)] for i in expected]
    assert [[*row[:3], float(row[3])] for row in rows] == wanted
    assert main(["check", "--features", str(tiny_bank), "--above", "-1000", "--format", "jsonl"]) == 1
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert list(first.items()) == list(zip(head, wanted[0]))


def test_suggestions_are_rows_of_predictions_with_the_image_to_label_first(finished_digits_once, digits, capsys):
    folder = digits / "unlabelled"
    (folder / "broken.png").write_bytes(b"no image")
    model = ImageModel.load(finished_digits_once)
    paths = sorted(str(path) for path in folder.iterdir() if path.name != "broken.png")
    features = model.features(paths)
    chosen = suggest(model.model, features, 3)
    assert main(["suggest", str(finished_digits_once), str(folder), "-n", "3", "--top", "2", "--format", "jsonl"]) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["path"] for row in rows] == [*(paths[place] for place in chosen), str(folder / "broken.png")]
    values, best = model.model.probabilities(features[chosen]).max(dim=1)
    for row, value, label in zip(rows, values.tolist(), best.tolist()):
        assert row["top"][0]["class"] == model.model.classnames[label]
        assert row["top"][0]["probability"] == pytest.approx(value, rel=1e-4)
        assert len(row["top"]) == 2
    assert rows[3]["error"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("check --root nowhere", "nowhere"),
        ("suggest nowhere a.png b.png", "nowhere"),
        ("suggest a . -n 0", "whole"),
    ],
)
def test_a_mistake_is_one_line(arguments, words, capsys):
    assert main(arguments.split()) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert error.startswith("error: ") and words in error
