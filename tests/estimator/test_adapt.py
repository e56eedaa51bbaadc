"""Images without labels: `fit(unlabelled=...)`, the label -1, `adapt`, and what it makes of the model."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from trainers.hegraph import HeGraphClassifier, UserError
from trainers.hegraph.method.cache import FoldedClassifier
from trainers.hegraph.method.unlabelled import ClassSums, hear_unlabelled
from trainers.hegraph.training import memory

NAMES = ["ant", "bee", "cow", "dog"]


@pytest.fixture(scope="module")
def parts(data):
    """Two labelled images of each of the 4 classes, and the other 112."""
    drawn = np.concatenate([np.flatnonzero(data.y == c)[:2] for c in range(4)])
    rest = np.setdiff1d(np.arange(120), drawn)
    return data.X[drawn], data.y[drawn], data.X[rest], data.y[rest]


@pytest.fixture(scope="module")
def fitted(parts, data, quick) -> HeGraphClassifier:
    """Without unlabelled images; not to be changed."""
    return quick(text_features=data.text).fit(*parts[:2])


@pytest.fixture
def own(fitted) -> HeGraphClassifier:
    """A copy of `fitted` for this test alone."""
    return pickle.loads(pickle.dumps(fitted))


def test_adapt_lets_the_trained_classifier_hear_the_images(own, fitted, parts, data):
    X, y, U, truth = parts
    model, text = fitted.model_, torch.from_numpy(data.text)
    sums = ClassSums.of(torch.from_numpy(X), torch.from_numpy(y), 4)
    pool = torch.from_numpy(U)
    expected = hear_unlabelled(model.classifier, sums, text, pool, model.logit_scale, model.temperature)
    assert own.adapt(U) is own
    torch.testing.assert_close(own.model_.classifier.weights, expected.classifier.weights)
    torch.testing.assert_close(own.model_.classifier.bias, expected.classifier.bias)
    assert abs(own.decision_function(U) - fitted.decision_function(U)).max() > 0.1
    assert own.score(U, truth) >= fitted.score(U, truth)
    # a second call begins with what was fitted
    twice = pickle.loads(pickle.dumps(fitted)).adapt(U[:50]).adapt(U)
    np.testing.assert_array_equal(twice.decision_function(U), own.decision_function(U))
    assert twice.model_.unlabelled == 112


def test_fit_hears_unlabelled_images_and_those_with_the_label_minus_one(own, parts, data, quick):
    X, y, U, _ = parts
    expected = own.adapt(U).decision_function(U)
    both, labels = np.concatenate([X, U[40:]]), np.concatenate([y, np.full(72, -1)])
    classifier = quick(text_features=data.text).fit(both, labels, classnames=NAMES, unlabelled=U[:40])
    np.testing.assert_array_equal(classifier.decision_function(U), expected)
    assert classifier.classes_.tolist() == [0, 1, 2, 3] and classifier.model_.unlabelled == 112
    with_minus_one = quick().fit(data.X, data.y - 1, classnames=NAMES)
    assert with_minus_one.classes_.tolist() == [-1, 0, 1, 2] and with_minus_one.model_.unlabelled == 0


def test_the_folder_keeps_what_hearing_needs_and_says_what_was_heard(own, fitted, parts, tmp_path):
    X, U = parts[0], parts[2]
    fitted.save_pretrained(tmp_path / "model")
    later = HeGraphClassifier.from_pretrained(tmp_path / "model").adapt(U)
    own.adapt(U).save_pretrained(tmp_path / "heard")
    loaded = HeGraphClassifier.from_pretrained(tmp_path / "heard")
    for classifier in (later, loaded):  # the folder keeps sums in float32 and cache keys in float16
        np.testing.assert_allclose(classifier.predict_proba(U), own.predict_proba(U), atol=2e-3)
        assert classifier.model_.unlabelled == 112
    assert "heard 112 images without labels" in (tmp_path / "heard" / "README.md").read_text()
    # what was measured before does not hold any more
    assert own.model_.known is None and own.model_.scores.num_test == 0
    assert own.model_.temperature == fitted.model_.temperature
    with pytest.raises(UserError, match="without unlabelled images"):
        own.is_known(X)
    with pytest.raises(UserError, match="heard unlabelled images before"):
        loaded.adapt(U)


def test_images_that_are_none_or_too_many_for_the_memory_are_refused(own, parts, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 7_000)
    for wrong, message in (
        (np.ones((3, 5)), "5 features.*16"),
        ("a.png", "a list of images"),
        (parts[2], "112 unlabelled images of 4 classes"),  # 4 times 1,792 bytes
    ):
        with pytest.raises(ValueError, match=message):
            own.adapt(wrong)
    own.adapt(parts[2][:104])


def test_pictures_are_heard(digits, digit_classifier):
    own = pickle.loads(pickle.dumps(digit_classifier)).adapt(digits.others)
    fitted = HeGraphClassifier(**digit_classifier.get_params())
    labels = [*digits.labels, *[-1] * 20]
    fitted.fit([*digits.pictures, *digits.others], labels, classnames=digits.classnames)
    assert own.model_.unlabelled == fitted.model_.unlabelled == 20
    expected = own.decision_function(digits.others)
    np.testing.assert_allclose(fitted.decision_function(digits.others), expected, atol=1e-3)


def test_a_start_without_any_label(data, quick):
    none, text = np.full(len(data.X), -1), torch.from_numpy(data.text)
    fitted = quick(text_features=data.text).fit(data.X, none, classnames=NAMES)
    nothing = ClassSums.of(torch.zeros(0, 16), torch.zeros(0, dtype=torch.long), 4)
    heard = hear_unlabelled(FoldedClassifier(100 * text), nothing, text, torch.from_numpy(data.X), 100.0, 1.0)
    torch.testing.assert_close(fitted.model_.classifier.weights, heard.classifier.weights, rtol=1e-4, atol=1e-3)
    assert fitted.classes_.tolist() == [0, 1, 2, 3] and fitted.model_.method == "ZeroShot"
    by_label = quick(text_features=data.text).fit(data.X, none, classnames={7: "a", 3: "b", 5: "c", 9: "d"})
    assert by_label.classes_.tolist() == [3, 5, 7, 9]
    for given, message in ((NAMES, "text_features or a backbone"), (None, "one class")):
        with pytest.raises(UserError, match=message):
            quick().fit(data.X, none, classnames=given)
