"""The command `train-more`: images of a folder join those of a model folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainers.hegraph import HeGraphClassifier
from trainers.hegraph.__main__ import main
from trainers.hegraph.models.folder import load_model


@pytest.fixture
def model(digits, tmp_path) -> Path:
    """A folder of a model that was taught the digits 0 and 1."""
    classifier = HeGraphClassifier(config="mini", dataset_config="digits", variant="free")
    classifier.fit(digits.pictures[:6], ["zero"] * 3 + ["one"] * 3).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def root(digits, tmp_path) -> Path:
    """A folder of images: a 0 and a 1 that the model was taught, a 0 that it was not, and three of a 2."""
    for name, numbers in (("zero", (2, 20)), ("one", (4,)), ("two", (6, 7, 8))):
        (tmp_path / "images" / "train" / name).mkdir(parents=True)
        for number in numbers:
            digits.pictures[number].save(tmp_path / "images" / "train" / name / f"{number}.png")
    return tmp_path / "images"


def test_images_and_classes_of_a_folder_join_the_model(model, root, digits, tmp_path, capsys):
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    assert main(["train-more", str(model), "--root", str(root), "--out", str(tmp_path / "more")]) == 0
    said = capsys.readouterr().out
    assert "two: 3 more images, 3 in all\nzero: 1 more images, 4 in all\n4 images added, 3 classes" in said
    found = load_model(tmp_path / "more")
    assert (found.classnames, found.images) == (("one", "two", "zero"), (3, 3, 4))
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    classifier = HeGraphClassifier.from_pretrained(tmp_path / "more")
    assert classifier.predict(digits.pictures[6:9]).tolist() == ["two"] * 3
    assert main(["train-more", str(tmp_path / "more"), "--root", str(root), "--in-place"]) == 2
    assert "was taught all 6 images before" in capsys.readouterr().err


def test_in_place_and_labels_that_are_numbers(root, digits, tmp_path):
    classifier = HeGraphClassifier(config="mini", dataset_config="digits", variant="free")
    classifier.fit(digits.pictures[:6], [0] * 3 + [1] * 3, classnames=["zero", "one"]).save_pretrained(
        tmp_path / "model"
    )
    assert main(["train-more", str(tmp_path / "model"), "--root", str(root), "--in-place"]) == 0
    loaded = HeGraphClassifier.from_pretrained(tmp_path / "model")
    assert loaded.classes_.tolist() == [0, 1, 2] and loaded.predict(digits.pictures[6:9]).tolist() == [2] * 3
    assert loaded.model_.classnames == ("zero", "one", "two") and loaded.model_.images == (4, 3, 3)


def test_what_cannot_be_is_one_line_and_the_model_stays(model, root, finished_digits, digits, tmp_path, capsys):
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "a.tex").write_text("years of work")
    digits.pictures[0].save(root / "train" / "one" / "0.png")
    for arguments, message in (
        ([model, "--root", root, "--in-place"], "was taught before as 'zero'"),
        ([model, "--root", root, "--out", tmp_path / "thesis"], "is no model folder"),
        ([model, "--root", tmp_path / "absent", "--in-place"], "absent"),
        ([finished_digits, "--root", root, "--in-place"], "give --out FOLDER"),
    ):
        assert main(["train-more", *map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
