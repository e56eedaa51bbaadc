"""A classifier that is saved and loaded again, and models of the command line in Python."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError

from trainers.hegraph import HeGraphClassifier, UserError
from trainers.hegraph.method.options import VARIANTS


@pytest.mark.parametrize(
    "labels",
    [[3, 1, 5, 7], ["d", "a", "c", "b"], [False, True]],
    ids=["numbers", "words", "truth"],
)
def test_a_loaded_classifier_predicts_the_same_labels(labels, data, quick, tmp_path):
    y = np.array(labels)[data.y % len(labels)]
    saved = quick(text_features=None).fit(data.X, y)
    saved.save_pretrained(tmp_path / "model")
    loaded = HeGraphClassifier.from_pretrained(tmp_path / "model")
    np.testing.assert_array_equal(loaded.classes_, saved.classes_)
    assert loaded.classes_.dtype == saved.classes_.dtype
    assert loaded.n_features_in_ == 16
    np.testing.assert_array_equal(loaded.predict(data.X), saved.predict(data.X))
    # the keys of the cache are kept in float16
    np.testing.assert_allclose(loaded.predict_proba(data.X), saved.predict_proba(data.X), atol=2e-3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_loaded_again(variant, data, quick, tmp_path):
    saved = quick(variant=variant).fit(data.X, data.y, text_features=data.text, negative_text_features=data.negative)
    saved.save_pretrained(tmp_path)
    loaded = HeGraphClassifier.from_pretrained(tmp_path)
    assert loaded.model_.variant == variant
    np.testing.assert_array_equal(loaded.predict(data.X), saved.predict(data.X))


def test_a_saved_classifier_keeps_names_beside_labels_can_be_saved_again_and_tells_damage(data, quick, tmp_path):
    quick().fit(data.X, data.y, classnames=["ant", "bee", "cow", "dog"]).save_pretrained(tmp_path / "one")
    HeGraphClassifier.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "two")
    for name in ("config.json", "model.safetensors", "README.md"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    assert (config["classnames"], config["labels"]) == (["ant", "bee", "cow", "dog"], [0, 1, 2, 3])
    for labels in ([0, 1, 2], [0, 1, 2, 2], [0, 1, 2, None], "abcd"):
        (tmp_path / "one" / "config.json").write_text(json.dumps(config | {"labels": labels}))
        with pytest.raises(UserError, match=r"config\.json is damaged .*labels"):
            HeGraphClassifier.from_pretrained(tmp_path / "one")


def test_a_loaded_classifier_takes_pictures_of_the_backbone_that_it_names(digits, digit_classifier, tmp_path):
    digit_classifier.save_pretrained(tmp_path)
    loaded = HeGraphClassifier.from_pretrained(tmp_path)
    assert loaded.backbone == "hegraph-mini"
    np.testing.assert_array_equal(loaded.predict(digits.others), digit_classifier.predict(digits.others))


def test_a_run_of_the_command_line_is_loaded_and_classifies(finished_run):
    loaded = HeGraphClassifier.from_pretrained(finished_run)
    np.testing.assert_array_equal(loaded.classes_, ["ant", "bee", "cow", "dog", "elk"])
    assert set(loaded.predict(np.eye(16))) <= set(loaded.classes_)
    assert loaded.random_state == 1


def test_a_backbone_with_other_features_is_refused(digits, digit_classifier, tmp_path):
    digit_classifier.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["backbone"]["fingerprint"]["weights"] = "0" * 64
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = HeGraphClassifier.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="weights"):
        loaded.predict(digits.others)
    features = np.zeros((1, loaded.n_features_in_))
    assert loaded.predict(features).shape == (1,)  # features need no backbone


def test_a_backbone_may_be_named_for_a_model_of_features(data, digits, quick, tmp_path):
    width = HeGraphClassifier(config="mini").fit(digits.pictures[:6], digits.labels[:6]).n_features_in_
    X = np.random.default_rng(0).normal(size=(30, width))
    quick().fit(X, digits.labels).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="backbone"):
        HeGraphClassifier.from_pretrained(tmp_path).predict(digits.others)
    named = HeGraphClassifier.from_pretrained(tmp_path, backbone="hegraph-mini")
    assert named.predict(digits.others).shape == (20,)


def test_only_a_fitted_classifier_is_saved_and_no_other_folder_is_overwritten(data, quick, tmp_path):
    with pytest.raises(NotFittedError):
        HeGraphClassifier().save_pretrained(tmp_path / "model")
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="is no model folder, and is not overwritten"):
        quick().fit(data.X, data.y).save_pretrained(tmp_path)


def test_a_folder_that_is_not_there_and_a_revision_of_a_folder_are_refused(data, quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("absent", "a/b/c"):
        with pytest.raises(UserError, match="is not there; give the model folder of a run"):
            HeGraphClassifier.from_pretrained(name)
    quick().fit(data.X, data.y).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="revision 'v1' is of a model on the Hub"):
        HeGraphClassifier.from_pretrained(tmp_path, revision="v1")


def test_the_model_holds_no_tensor_of_a_training(data, quick):
    model = quick().fit(data.X, data.y).model_
    tensors = [
        model.classifier.weights,
        model.classifier.keys,
        model.text_positive,
        *model.transfer.parameters.values(),
    ]
    assert all(isinstance(t, torch.Tensor) and not t.requires_grad and t.device.type == "cpu" for t in tensors)
