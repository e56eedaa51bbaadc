"""The classifier says which images are of none of its classes, by the threshold that `predict --keep` takes."""

from __future__ import annotations

import numpy as np
import pytest

from trainers.hegraph import HeGraphClassifier
from trainers.hegraph.utils.errors import UserError


def test_most_images_of_the_classes_are_known_and_most_others_are_not(data, quick):
    few = np.concatenate([np.flatnonzero(data.y == label)[:8] for label in range(4)])
    rest = np.setdiff1d(np.arange(len(data.y)), few)
    classifier = quick(text_features=data.text, negative_text_features=data.negative).fit(data.X[few], data.y[few])
    known = classifier.is_known(data.X[rest])
    assert (known.shape, known.dtype) == ((len(rest),), np.bool_)
    random = np.random.default_rng(5).normal(size=(200, 16))  # of no class
    assert known.mean() > classifier.is_known(random).mean() + 0.3
    assert classifier.is_known(data.X[rest], keep=0.5).sum() < known.sum()


def test_the_threshold_is_that_of_the_model_folder(data, quick, tmp_path):
    classifier = quick(text_features=data.text).fit(data.X, data.y)
    classifier.save_pretrained(tmp_path / "model")
    loaded = HeGraphClassifier.from_pretrained(tmp_path / "model")
    assert loaded.model_.known == classifier.model_.known
    logits = classifier.decision_function(data.X) / classifier.model_.temperature
    energy, quantiles = np.log(np.exp(logits).sum(axis=1)), classifier.model_.known.quantiles
    expected = energy >= np.interp(0.1, np.arange(101) / 100, quantiles)
    np.testing.assert_array_equal(classifier.is_known(data.X, keep=0.9), expected)


def test_a_training_that_could_not_tell_is_one_line(data, quick):
    two = np.flatnonzero(data.y == 0)[0], np.flatnonzero(data.y == 1)[0]  # one image of each of two classes
    classifier = quick(text_features=data.text[:2]).fit(data.X[list(two)], [0, 1])
    with pytest.raises(UserError, match="so no threshold can be had; train it again"):
        classifier.is_known(data.X)
    with pytest.raises(UserError, match="keep must lie between 0 and 1"):
        classifier.is_known(data.X, keep=95)
    for odd in ("most", None, [0.5], float("nan")):
        with pytest.raises(UserError, match="keep must"):
            classifier.is_known(data.X, keep=odd)
