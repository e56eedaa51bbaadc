"""The classifier and the command line are one path: the same data, shots and seed give the same bytes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from trainers.hegraph import HeGraphClassifier, load_bank, load_dataset

NODE = "TRAINER.HEGRAPHADAPTER."


@pytest.mark.parametrize("options", [{}, {f"{NODE}VARIANT": "T", f"{NODE}LEARN_METAPATH": True, "OPTIM.MAX_EPOCH": 3}])
def test_a_bank_gives_the_model_of_the_command_line(run, tiny_bank, tmp_path, options):
    words = tuple(str(word) for pair in options.items() for word in pair)
    _, out = run("--shots", "4", "--seed", "3", quick=words)
    bank = load_bank(tiny_bank)
    picked = [row for row, _, _ in json.loads((out / "split.json").read_text())["train"]]
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


def test_pictures_give_the_model_of_the_command_line_and_its_predictions(finished_digits_once, tmp_path):
    rows = json.loads((finished_digits_once / "split.json").read_text())["train"]
    dataset = load_dataset("Digits")
    classifier = HeGraphClassifier(config="mini", dataset_config="digits", random_state=1)
    pictures = [dataset.open(path) for path, _, _ in rows]
    classifier.fit(pictures, [label for _, label, _ in rows], classnames=dataset.classnames)
    classifier.save_pretrained(tmp_path)
    written = [(folder / "model.safetensors").read_bytes() for folder in (tmp_path, finished_digits_once / "model")]
    assert written[0] == written[1]
    predicted = load_file(finished_digits_once / "predictions.safetensors")["predicted"]
    test = dataset.test[:100]
    np.testing.assert_array_equal(classifier.predict([dataset.open(i.path) for i in test]), predicted[:100])
