"""What was fitted leaves its run: each method folds into a classifier that can be saved, or says why it cannot."""

from __future__ import annotations

import logging

import pytest
import torch

from trainers.hegraph.baselines import METHODS, load_method
from trainers.hegraph.models.folder import load_model

NOT_SAVED = ["CLIPAdapter", "ProtoCLIP", "ProKeR", "APE"]


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


def test_a_run_leaves_a_model_that_gives_its_accuracy_again(run):
    words = {"quick": ("TRAINER.HEGRAPHADAPTER.CALIBRATE", "off")}
    trained, folder = run("--trainer", "TipAdapterF", **words)
    model = load_model(folder)
    assert (model.method, model.variant, model.trained_on.shots) == ("TipAdapterF", "", 2)
    tested, _ = run("--trainer", "TipAdapterF", "--eval-only", "--model-dir", str(folder), name="test", **words)
    for key in ("accuracy", "macro_f1", "accuracy_zero_shot", "selected", "trainer"):
        assert tested[key] == trained[key]
    assert tested["accuracy_text"] is None
    assert (tested["epochs"], "rule" in tested) == (0, False)


def test_a_method_that_cannot_be_saved_says_so_and_leaves_no_model(run, caplog):
    words, why = ("--trainer", "ProKeR"), load_method("ProKeR").not_saved
    with caplog.at_level(logging.INFO, "trainers.hegraph"):
        _, folder = run(*words, quick=())
    assert any("model folder" in message and why in message for message in caplog.messages)
    assert not (folder / "model").exists()
    assert why in run(*words, "--eval-only", "--model-dir", str(folder), name="test", quick=(), code=2)
