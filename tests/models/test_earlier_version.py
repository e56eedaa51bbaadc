"""A model folder of an earlier version, whose recipe had no `W` in text: commit b7cbcb1, digits, mini, 1 shot, seed 1.

`earlier/expected.safetensors` holds features of six test images and of the text of two other classes, and what that
version predicted for them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from trainers.hegraph import load_backbone
from trainers.hegraph.experiments.run import KEPT
from trainers.hegraph.models.folder import load_model

EARLIER = Path(__file__).parent / "earlier"


def test_it_loads_and_predicts_what_it_predicted():
    model, expected = load_model(EARLIER / "model"), load_file(EARLIER / "expected.safetensors")
    features, new = expected["features"], expected["new_text"]
    found = model.probabilities(features)
    assert_close(found, expected["probabilities"], rtol=1e-5, atol=1e-6)
    assert [model.classnames[k] for k in found.argmax(dim=1)] == ["eight", "five", "four", "nine", "zero", "eight"]
    assert_close(model.transfer.logits(features, new[:2], new[2:], model.logit_scale), expected["new_logits"])


def test_eval_only_says_that_another_recipe_trained_it_and_tests_it_by_its_own(run, digits_features):
    words = ("--dataset-config-file", "digits", "--config-file", "mini", "--eval-only", "--model-dir", str(EARLIER))
    keys = ("TRAINER.HEGRAPHADAPTER.FEATURES.DIR", str(digits_features))
    assert "trained by another recipe" in run(*words, bank=None, quick=keys, code=2)
    model = load_model(EARLIER / "model")
    if load_backbone("hegraph-mini").fingerprint["preprocess"] != model.preprocessing.transform:
        pytest.skip("this open_clip prepares images by other steps than the one of the folder, which is refused")
    own = [word for key, value in model.trained_on.config.items() if key in KEPT for word in (key, str(value))]
    record, _ = run(*words, *own, bank=None, quick=keys)
    assert record["accuracy"] == model.scores.accuracy
