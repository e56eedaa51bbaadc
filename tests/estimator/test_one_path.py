"""The classifier and the command line are one path: the same data, shots and seed give the same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors import safe_open

from trainers.hegraph import HeGraphClassifier, load_bank, load_dataset
from trainers.hegraph.__main__ import main
from trainers.hegraph.estimator import training
from trainers.hegraph.models.lessons import Lessons
from trainers.hegraph.models.saved import Backbone

NODE = "TRAINER.HEGRAPHADAPTER."
QUICK = {"OPTIM.MAX_EPOCH": 2, f"{NODE}MIN_STEPS": 0}


def run(out: Path, *arguments: str) -> list[list]:
    """Runs the command line; returns the rows of the training images that it selected."""
    assert main(["--output-dir", str(out), *arguments]) == 0
    return json.loads((out / "split.json").read_text())["train"]


@pytest.mark.parametrize("options", [{}, {f"{NODE}VARIANT": "T", f"{NODE}LEARN_METAPATH": True, "OPTIM.MAX_EPOCH": 3}])
def test_a_bank_gives_the_model_of_the_command_line(tiny_bank, tmp_path, options):
    words = [str(word) for pair in options.items() for word in pair]
    rows = run(tmp_path / "run", "--features", str(tiny_bank), "--shots", "4", "--seed", "3", *words)
    bank = load_bank(tiny_bank)
    picked = [row for row, _, _ in rows]
    text = {"text_features": bank.text_positive, "negative_text_features": bank.text_negative}
    classifier = HeGraphClassifier(options=options, random_state=3, **text)
    X, y = bank.train_features[:, picked].transpose(0, 1), bank.train_labels[picked]
    classifier.fit(X, y, classnames=bank.classnames).save_pretrained(tmp_path / "model")
    written = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("model", "run/model")]
    assert written[0] == written[1]
    one, other = (json.loads((tmp_path / p / "config.json").read_text()) for p in ("model", "run/model"))
    for key in ("method", "variant", "classnames", "class_ids", "width", "logit_scale", "fusion", "transfer"):
        assert one[key] == other[key]
    assert one["trained_on"]["config"] == other["trained_on"]["config"]


def test_all_of_a_trained_model_is_moved_to_the_cpu(tiny_bank, tmp_path, monkeypatch):
    elsewhere = SimpleNamespace(to=lambda device: f"on the {device}", cpu=lambda: "on the cpu")
    parts = dict.fromkeys(("classifier", "transfer", "class_nodes"), elsewhere)
    make_model = training.make_model
    monkeypatch.setattr(training, "make_model", lambda *arguments: make_model(*arguments).model_copy(update=parts))
    cfg = training.make_configuration(("", ""), {}, {**QUICK, "DATASET.NUM_SHOTS": 2}, 1, str(tmp_path))
    bank = load_bank(tiny_bank)
    origin = training.Origin(Backbone(title=bank.backbone), None, bank.logit_scale, prompted=False)
    model = training.learn(Lessons.of(bank, {}), origin, cfg, "cpu")
    assert {getattr(model, name) for name in parts} == {"on the cpu"}
    assert model.text_positive.device.type == "cpu"


def test_pictures_give_the_model_of_the_command_line_and_its_predictions(tmp_path):
    features = (f"{NODE}FEATURES.DIR", str(tmp_path / "features"), f"{NODE}FEATURES.VIEWS", "2")
    flags = ("--config-file", "mini", "--dataset-config-file", "digits", "--shots", "2", "--seed", "2")
    rows = run(tmp_path / "run", *flags, *features)
    dataset = load_dataset("Digits")
    classifier = HeGraphClassifier(
        config="mini", dataset_config="digits", options={f"{NODE}FEATURES.VIEWS": 2}, random_state=2
    )
    pictures = [dataset.open(path) for path, _, _ in rows]
    classifier.fit(pictures, [label for _, label, _ in rows], classnames=dataset.classnames)
    classifier.save_pretrained(tmp_path / "model")
    written = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("model", "run/model")]
    assert written[0] == written[1]
    with safe_open(tmp_path / "run" / "predictions.safetensors", "np") as predictions:
        predicted = predictions.get_tensor("predicted")
    test = dataset.test[:100]
    np.testing.assert_array_equal(classifier.predict([dataset.open(i.path) for i in test]), predicted[:100])
