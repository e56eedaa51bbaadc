"""A classifier that is saved and loaded again, and models of the command line in Python."""

from __future__ import annotations

import numpy as np
import pytest

from trainers.hegraph import HeGraphClassifier, UserError

load = HeGraphClassifier.from_pretrained


@pytest.mark.parametrize("labels", [[30, -1, 7, 8], ["zebra", "ant", "cow", "bee"], [False, True]], ids=str)
def test_labels_of_any_kind_are_predicted_and_loaded_again(labels, data, quick, tmp_path):
    rows = data.y < len(labels)
    X, y = data.X[rows], np.array(labels)[data.y[rows]]
    saved = quick().fit(X, y)
    saved.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    for classifier in (saved, loaded):
        np.testing.assert_array_equal(classifier.classes_, np.unique(labels))
        predicted = classifier.predict(X)
        assert predicted.dtype == y.dtype and (predicted == y).mean() > 0.9 and classifier.n_features_in_ == 16
        assert classifier.model_.classnames == tuple(map(str, np.unique(labels)))
    # the keys of the cache are kept in float16
    np.testing.assert_allclose(loaded.predict_proba(X), saved.predict_proba(X), atol=2e-3)


def test_a_saved_classifier_keeps_names_beside_labels_and_can_be_saved_again(data, quick, tmp_path):
    one, two, names = tmp_path / "one", tmp_path / "two", ("ant", "bee", "cow", "dog")
    quick(alpha_c=3.5, beta_c=2.5).fit(data.X, data.y, classnames=names).save_pretrained(one)
    loaded = load(one)
    assert (loaded.variant, loaded.random_state, loaded.logit_scale) == ("full", 1, 100.0)
    assert (loaded.model_.classifier.alpha, loaded.model_.classifier.beta) == (3.5, 2.5)
    assert (loaded.model_.classnames, loaded.model_.labels) == (names, (0, 1, 2, 3))
    loaded.save_pretrained(two)
    for name in ("config.json", "model.safetensors", "README.md"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_a_loaded_classifier_takes_pictures_of_the_backbone_that_it_names_or_is_given_and_of_no_other(
    digits, digit_classifier, quick, tmp_path
):
    digit_classifier.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert loaded.backbone == "hegraph-mini"
    np.testing.assert_array_equal(loaded.predict(digits.others), digit_classifier.predict(digits.others))
    features = np.random.default_rng(0).normal(size=(30, loaded.n_features_in_))
    assert load(tmp_path).predict(features).shape == (30,)  # features need no backbone
    quick().fit(features, digits.labels).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="backbone"):
        load(tmp_path).predict(digits.others)
    assert load(tmp_path, backbone="hegraph-mini").predict(digits.others).shape == (20,)


def test_a_run_of_the_command_line_is_loaded_and_taught_more(finished_run_once):
    loaded = load(finished_run_once)
    model, rows = loaded.model_, np.eye(16, dtype=np.float32)
    assert loaded.classes_.tolist() == ["ant", "bee", "cow", "dog", "elk"] and loaded.random_state == 1
    assert set(loaded.predict(rows)) <= set(loaded.classes_)
    assert sum(model.images) == len(model.lessons.labels) == model.trained_on.num_train
    loaded.add_class("fox", rows[:2], text_features=rows[3])
    assert loaded.classes_.tolist() == [*model.classnames, "fox"] and loaded.model_.images[-1] == 2
    assert loaded.model_.trained_on.config["OPTIM.MAX_EPOCH"] == model.trained_on.config["OPTIM.MAX_EPOCH"]
    assert "OPTIM.LR" in model.trained_on.config and "OPTIM.LR" not in loaded.options  # it goes by the shots
    with pytest.raises(UserError, match="revision 'v1' is of a model on the Hub"):
        load(finished_run_once, revision="v1")


def test_what_is_known_goes_by_the_threshold_of_the_model_folder(data, quick):
    classifier = quick(text_features=data.text).fit(data.X, data.y)
    logits = classifier.decision_function(data.X) / classifier.model_.temperature
    energy, quantiles = np.log(np.exp(logits).sum(axis=1)), classifier.model_.known.quantiles
    for kept, known in ((0.9, classifier.is_known(data.X, keep=0.9)), (0.95, classifier.is_known(data.X))):
        assert known.dtype == np.bool_ and 60 < known.sum() < 120
        np.testing.assert_array_equal(known, energy >= np.interp(1 - kept, np.arange(101) / 100, quantiles))
    for odd in (95, 0, float("nan"), "most", None):
        with pytest.raises(UserError, match=f"keep: .* got {odd!r}"):
            classifier.is_known(data.X, keep=odd)
    rows = [list(data.y).index(label) for label in (0, 1)]  # one image of each of two classes
    with pytest.raises(UserError, match="so no threshold can be had; train it again"):
        quick(text_features=data.text[:2]).fit(data.X[rows], [0, 1]).is_known(data.X)
