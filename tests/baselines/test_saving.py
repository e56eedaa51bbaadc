"""What was fitted leaves its run: each method folds into a classifier that can be saved, or says why it cannot."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from trainers.hegraph.__main__ import main
from trainers.hegraph.baselines import METHODS, load_method
from trainers.hegraph.models.folder import load_model

NOT_SAVED = ["CLIPAdapter", "ProtoCLIP", "ProKeR", "APE"]


def record_of(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


@pytest.fixture
def fit_by_command(tiny_bank, tmp_path):
    """Function of a method's name: the output folder of its run on the tiny bank."""

    def run(name: str, *options: str) -> Path:
        flags = ("--features", str(tiny_bank), "--trainer", name, "--shots", "4", "--seed", "1")
        assert main([*flags, "--output-dir", str(tmp_path / "out"), *options]) == 0
        return tmp_path / "out"

    return run


@pytest.fixture
def evaluate_by_command(tiny_bank, tmp_path):
    """Function of a method's name, the folder of its run and more arguments: the exit code, and its output folder."""

    def run(name: str, model: Path, *arguments: str) -> tuple[int, Path]:
        flags = ("--eval-only", "--model-dir", str(model), "--trainer", name, "--features", str(tiny_bank))
        return main([*flags, "--output-dir", str(tmp_path / "test"), *arguments]), tmp_path / "test"

    return run


@pytest.mark.parametrize("name", METHODS)
def test_the_classifier_has_the_logits_of_the_method_or_the_method_says_why_there_is_none(
    unit_features, fit_once, name
):
    fitted, features = fit_once(name), unit_features(100, 64, seed=9)
    assert fitted.transfer_rule == ("zero-shot" if name == "ZeroShot" else "none")
    assert bool(load_method(name).not_saved) == (name in NOT_SAVED)
    if name in NOT_SAVED:
        assert fitted.classifier is None
        return
    expected, found = fitted.logits(features), fitted.classifier.logits(features)
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert torch.equal(found.argmax(dim=1), expected.argmax(dim=1))
    assert not found.requires_grad


@pytest.mark.parametrize("name", ["LinearProbe", "TipAdapterF"])
def test_a_run_leaves_a_model_that_gives_its_accuracy_again(fit_by_command, evaluate_by_command, name):
    folder = fit_by_command(name, "TRAINER.HEGRAPHADAPTER.CALIBRATE", "off")
    model = load_model(folder)
    assert (model.method, model.variant, model.trained_on.shots) == (name, "", 4)
    code, again = evaluate_by_command(name, folder, "TRAINER.HEGRAPHADAPTER.CALIBRATE", "off")
    assert code == 0
    trained, tested = record_of(folder), record_of(again)
    for key in ("accuracy", "macro_f1", "accuracy_zero_shot", "selected", "trainer"):
        assert tested[key] == trained[key]
    assert tested["accuracy_text"] is None
    assert (tested["epochs"], "rule" in tested) == (0, False)


def test_a_method_that_cannot_be_saved_says_so_and_leaves_no_model(fit_by_command, evaluate_by_command, caplog, capfd):
    with caplog.at_level(logging.INFO, "trainers.hegraph"):
        folder = fit_by_command("ProKeR")
    why = load_method("ProKeR").not_saved
    assert any("model folder" in message and why in message for message in caplog.messages)
    assert not (folder / "model").exists()
    capfd.readouterr()
    assert evaluate_by_command("ProKeR", folder)[0] == 2
    [line] = capfd.readouterr().err.splitlines()
    assert why in line


def test_flags_that_are_hegraphadapters_alone_are_refused(evaluate_by_command, tmp_path, capfd):
    code, out = evaluate_by_command("TaskRes", tmp_path / "anywhere", "--load-epoch", "2")
    assert (code, out.exists()) == (2, False)
    assert "--load-epoch" in capfd.readouterr().err
