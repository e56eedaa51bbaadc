"""`features extract`: the bank of a whole data set, which is put together on disk."""

from __future__ import annotations

import itertools
import json
import logging

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from trainers.hegraph.__main__ import main as train
from trainers.hegraph.features.__main__ import main
from trainers.hegraph.features.bank import load_bank
from trainers.hegraph.models.images import ImageModel

NODE = "TRAINER.HEGRAPHADAPTER"


@pytest.fixture
def pictures(tmp_path):
    """Three classes of images of one colour each: of each four for training, two for validation, three for testing."""
    shades = itertools.count(100, 5)
    counts = {"train": 4, "val": 2, "test": 3}
    for (split, count), name in itertools.product(counts.items(), ("red", "green", "blue")):
        folder = tmp_path / "pictures" / split / name
        folder.mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (20, 20), (next(shades), 60, 60)).save(folder / f"{number}.png")
    return tmp_path / "pictures"


@pytest.fixture
def extract(tmp_path, pictures):
    def command(*opts: str) -> int:
        arguments = ["extract", "--out", str(tmp_path / "bank.safetensors"), "--root", str(pictures)]
        arguments += ["--dataset-config-file", "folder", "--config-file", "mini"]
        return main([*arguments, f"{NODE}.FEATURES.DIR", str(tmp_path / "features"), *opts])

    return command


def test_the_bank_holds_all_images_and_a_model_that_is_trained_from_it_classifies_images(
    extract, tmp_path, capsys, pictures
):
    assert extract(f"{NODE}.FEATURES.VIEWS", "2") == 0
    assert "12 train, 6 val, 9 test images, 3 classes" in capsys.readouterr().out
    bank = load_bank(tmp_path / "bank.safetensors")
    assert bank.train_features.shape[:2] == (2, 12)
    assert bank.train_labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert list(bank.classnames) == ["blue", "green", "red"]
    assert (bank.dataset, bank.backbone) == ("ImageFolder", "hegraph-mini/hegraph-mini")
    flags = ["--shots", "2", "--seed", "1", "--config-file", "mini", "OPTIM.MAX_EPOCH", "2", f"{NODE}.MIN_STEPS", "0"]
    assert train(["--features", str(tmp_path / "bank.safetensors"), "--output-dir", str(tmp_path / "out"), *flags]) == 0
    assert json.loads((tmp_path / "out" / "result.json").read_text())["num_train"] == 6
    model = ImageModel.load(tmp_path / "out")
    assert model.model.backbone.fingerprint == model.backbone.fingerprint == bank.encoder.fingerprint
    with safe_open(tmp_path / "out" / "predictions.safetensors", "pt") as predictions:
        predicted = predictions.get_tensor("predicted")
    files = sorted((pictures / "test").rglob("*.png"))
    assert torch.equal(model.probabilities(files).argmax(dim=1), predicted)


def test_its_features_are_kept_and_are_those_of_a_run_of_all_images(extract, tmp_path, pictures, caplog):
    assert extract() == 0
    first = (tmp_path / "bank.safetensors").read_bytes()
    (tmp_path / "bank.safetensors").unlink()
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert extract() == 0
        arguments = ["--root", str(pictures), "--dataset-config-file", "folder", "--config-file", "mini"]
        arguments += ["--shots", "-1", "--output-dir", str(tmp_path / "out"), "--no-train", "--seed", "1"]
        assert train([*arguments, f"{NODE}.FEATURES.DIR", str(tmp_path / "features")]) == 0
    assert "encoded" not in caplog.text
    assert (tmp_path / "bank.safetensors").read_bytes() == first


def test_a_bank_that_is_there_is_not_overwritten(extract, tmp_path, capsys):
    (tmp_path / "bank.safetensors").write_text("precious")
    assert extract() == 2
    assert "bank.safetensors exists; choose another --out" in capsys.readouterr().err
    assert (tmp_path / "bank.safetensors").read_text() == "precious"
