"""What was fitted leaves its run: each method folds into a classifier that can be saved, or says why it cannot."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from trainers.hegraph.__main__ import main
from trainers.hegraph.baselines import METHODS, load_method
from trainers.hegraph.baselines.base import cosine_classifier
from trainers.hegraph.method.cache import text_logits
from trainers.hegraph.models.folder import load_model

NOT_SAVED = [name for name in METHODS if load_method(name).not_saved]
FROM_BANK = [name for name in METHODS if not load_method(name).needs_backbone]
SAVED_FROM_BANK = [name for name in FROM_BANK if name not in NOT_SAVED]
QUICK = {"ProtoCLIP": ("TRAINER.PROTOCLIP.EPOCHS", "100")}


def record_of(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


@pytest.fixture
def fit_by_command(tiny_bank, tmp_path):
    """Function of a method's name: the output folder of its run on the tiny bank."""

    def run(name: str) -> Path:
        flags = ("--features", str(tiny_bank), "--trainer", name, "--shots", "4", "--seed", "1")
        assert main([*flags, "--output-dir", str(tmp_path / "out"), *QUICK.get(name, ())]) == 0
        return tmp_path / "out"

    return run


@pytest.fixture
def evaluate_by_command(tiny_bank, tmp_path):
    """Function of a method's name, the folder of its run and more arguments: the exit code, and its output folder."""

    def run(name: str, model: Path, *arguments: str) -> tuple[int, Path]:
        flags = ("--eval-only", "--model-dir", str(model), "--trainer", name, "--features", str(tiny_bank))
        return main([*flags, "--output-dir", str(tmp_path / "test"), *arguments]), tmp_path / "test"

    return run


def test_of_all_methods_those_that_change_the_query_or_weigh_images_by_class_cannot_be_saved():
    assert NOT_SAVED == ["CLIPAdapter", "ProtoCLIP", "ProKeR", "APE"]


def test_the_cosine_classifier_is_the_text_head(unit_features):
    features, text = unit_features(9, 8, seed=1), 3 * unit_features(4, 8, seed=2)
    found = cosine_classifier(text, 50.0).logits(features)
    torch.testing.assert_close(found, text_logits(features, text, 50.0), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("val", [3, 0], ids=["chosen on val", "start values"])
@pytest.mark.parametrize("name", METHODS)
def test_the_classifier_has_the_logits_of_the_method_or_the_method_says_why_there_is_none(
    make_bank, unit_features, fit, name, val
):
    bank = make_bank(shots=(4, 1, 3, 2, 4), val=val)
    fitted = fit(name, bank)
    why = load_method(name).not_saved
    if why:
        assert fitted.classifier is None
        assert fitted.transfer_rule == "none"
        assert "\n" not in why
        return
    for features in (unit_features(100, 64, seed=9), bank.test_features):
        expected, found = fitted.logits(features), fitted.classifier.logits(features)
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
        assert torch.equal(found.argmax(dim=1), expected.argmax(dim=1))
        assert not found.requires_grad


@pytest.mark.parametrize("name", METHODS)
def test_a_saved_model_reaches_other_classes_only_as_zero_shot_clip_does(make_bank, fit, name):
    fitted = fit(name, make_bank())
    assert fitted.transfer_rule == ("zero-shot" if name == "ZeroShot" else "none")


@pytest.mark.parametrize("name", ["TipAdapter", "TipAdapterF", "APET"])
def test_a_cache_is_folded_as_it_was_chosen_on_val(make_bank, fit, name):
    bank = make_bank()
    fitted = fit(name, bank)
    assert [fitted.classifier.alpha, fitted.classifier.beta] == list(fitted.selected["ALPHA, BETA"]["value"])
    assert torch.equal(fitted.classifier.labels, bank.train_labels)


@pytest.mark.parametrize("name", SAVED_FROM_BANK)
def test_a_run_leaves_a_model_that_gives_its_accuracy_again(fit_by_command, evaluate_by_command, name):
    folder = fit_by_command(name)
    model = load_model(folder)
    assert (model.method, model.variant, model.trained_on.shots) == (name, "", 4)
    code, again = evaluate_by_command(name, folder)
    assert code == 0
    trained, tested = record_of(folder), record_of(again)
    assert tested["accuracy"] == trained["accuracy"]
    assert tested["macro_f1"] == trained["macro_f1"]
    assert tested["accuracy_zero_shot"] == trained["accuracy_zero_shot"]
    assert tested["selected"] == trained["selected"]
    assert tested["accuracy_text"] is None
    assert (tested["epochs"], "rule" in tested) == (0, False)


def test_coop_leaves_a_model_that_gives_its_accuracy_again(tmp_path):
    data = ("--dataset-config-file", "digits", "--config-file", "mini", "--seed", "1", "--trainer", "CoOp")
    features = ("TRAINER.HEGRAPHADAPTER.FEATURES.DIR", str(tmp_path / "features"))
    epochs = ("TRAINER.COOP.EPOCHS", "[[1, 3]]")
    out, again = tmp_path / "out", tmp_path / "again"
    assert main([*data, "--shots", "1", "--output-dir", str(out), *features, *epochs]) == 0
    assert main([*data, "--eval-only", "--model-dir", str(out), "--output-dir", str(again), *features, *epochs]) == 0
    assert record_of(again)["accuracy"] == record_of(out)["accuracy"]


@pytest.mark.parametrize("name", ["TipAdapter", "LPPlusPlus"])
def test_in_another_domain_a_saved_model_gives_the_accuracy_that_its_run_did(tmp_path, name):
    flags = ("--config-file", "mini", "--trainer", name, "--seed", "1")
    keys = ("TRAINER.HEGRAPHADAPTER.FEATURES.DIR", str(tmp_path / "features"))
    out, there = tmp_path / "out", tmp_path / "there"
    trained = ("--dataset-config-file", "digits", "--shots", "2", "--target-domains", "DigitsInverted")
    assert main([*flags, *trained, "--output-dir", str(out), *keys]) == 0
    tested = ("--eval-only", "--model-dir", str(out), "--output-dir", str(there))
    assert main([*flags, *tested, "DATASET.NAME", "DigitsInverted", *keys]) == 0
    assert record_of(there)["accuracy"] == record_of(out)["targets"]["DigitsInverted"]["accuracy"]
    assert record_of(there)["rule"] == "same classes"


def test_a_saved_model_keeps_the_options_that_it_was_fitted_with(fit_by_command, evaluate_by_command, capfd):
    folder = fit_by_command("TipAdapter")
    capfd.readouterr()
    assert evaluate_by_command("TipAdapter", folder, "TRAINER.TIPADAPTER.BETA", "2.0")[0] == 2
    assert "the model was trained with TRAINER.TIPADAPTER.BETA 5.5 and keeps it" in capfd.readouterr().err


@pytest.mark.parametrize("name", [name for name in FROM_BANK if name in NOT_SAVED])
def test_a_method_that_cannot_be_saved_says_so_and_leaves_no_model(fit_by_command, caplog, name):
    with caplog.at_level(logging.INFO, "trainers.hegraph"):
        folder = fit_by_command(name)
    said = [message for message in caplog.messages if "model folder" in message]
    assert said == [f"{name} leaves no model folder: {load_method(name).not_saved}"]
    assert not (folder / "model").exists()


@pytest.mark.parametrize("name", NOT_SAVED)
def test_eval_only_of_a_method_that_cannot_be_saved_is_one_clear_line(evaluate_by_command, tmp_path, capfd, name):
    assert evaluate_by_command(name, tmp_path)[0] == 2
    [line] = capfd.readouterr().err.splitlines()
    assert f"{name} leaves no model for --eval-only to test: {load_method(name).not_saved}" in line


def test_the_model_of_one_method_is_not_tested_as_another(fit_by_command, evaluate_by_command, capfd):
    folder = fit_by_command("ZeroShot")
    capfd.readouterr()
    assert evaluate_by_command("TipAdapter", folder)[0] == 2
    assert "the model is of ZeroShot; give --trainer ZeroShot, not TipAdapter" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--select", "val"), "--select chooses HeGraphAdapter's values"),
        (("--load-epoch", "2"), "--load-epoch is HeGraphAdapter's; TaskRes leaves one model"),
    ],
)
def test_flags_that_are_hegraphadapters_alone_are_refused(evaluate_by_command, tmp_path, capfd, arguments, words):
    code, out = evaluate_by_command("TaskRes", tmp_path / "anywhere", *arguments)
    assert code == 2
    assert words in capfd.readouterr().err
    assert not out.exists()
