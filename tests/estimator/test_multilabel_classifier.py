"""The classifier with several labels per image."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.base import clone
from sklearn.metrics import average_precision_score
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from trainers.hegraph import HeGraphClassifier, UserError
from trainers.hegraph.apps.demo.answer import answer_html, compute_answer
from trainers.hegraph.method.head.multilabel import MultiLabelHead
from trainers.hegraph.models.folder import load_model

NAMES = ["ant", "bee", "cat", "dog"]


@pytest.fixture(scope="module")
def scenes(data):
    """60 images with one or two of the four classes each: features, indicators, text features."""
    first, second = np.arange(60), np.arange(60, 120)
    Y = np.zeros((60, 4), dtype=int)
    Y[first, data.y[first]] = Y[first, data.y[second]] = 1
    return data.X[first] + data.X[second], Y, data.text


@pytest.fixture(scope="module")
def fitted(scenes) -> HeGraphClassifier:
    X, Y, text = scenes
    return HeGraphClassifier(variant="training_free").fit(X[:40], Y[:40], classnames=NAMES, text_features=text)


def fit(X, Y, **arguments) -> HeGraphClassifier:
    return HeGraphClassifier(variant="training_free").fit(X, Y, **arguments)


def test_predictions_are_those_of_the_head(fitted, scenes):
    X, Y, text = scenes
    model = fitted.model_
    head = MultiLabelHead.fit(model.support_set.keys(), torch.from_numpy(Y[:40]).bool(), torch.from_numpy(text))
    features = torch.nn.functional.normalize(torch.from_numpy(X), dim=1)
    np.testing.assert_allclose(fitted.predict_proba(X), head.probabilities(features), atol=1e-5)
    assert np.array_equal(fitted.predict(X), head.predict(features).int())
    expected = average_precision_score(Y[40:], fitted.decision_function(X[40:]))
    assert fitted.score(X[40:], Y[40:]) == pytest.approx(expected) and expected > 0.9
    assert model.classnames == tuple(NAMES) and model.trained_on.num_train == 40
    assert model.images == tuple(Y[:40].sum(axis=0))


def test_score_weighs_images(fitted, scenes):
    X, Y, _ = scenes
    weights = np.arange(60) % 3 > 0
    assert fitted.score(X, Y, weights) == pytest.approx(fitted.score(X[weights], Y[weights]))
    assert fitted.score(X, Y, weights) != pytest.approx(fitted.score(X, Y))


def test_score_of_some_classes_uses_their_columns(fitted, scenes):
    X, Y, _ = scenes
    columns = np.where(np.arange(4) == 3, Y, 0)  # labels of the last class only
    expected = average_precision_score(Y[:, 3], fitted.decision_function(X)[:, 3])
    assert fitted.score(X, columns) == pytest.approx(expected)


def test_two_classes_have_two_columns(scenes):
    X, Y, _ = scenes
    classifier = fit(X, Y[:, :2])
    assert classifier.decision_function(X).shape == classifier.predict(X).shape == (60, 2)


@pytest.mark.parametrize("convert", [
    np.ndarray.tolist, torch.tensor, csr_matrix, lambda Y: Y.astype(float), lambda Y: Y.astype(bool),
    lambda Y: pd.DataFrame(Y, columns=NAMES), lambda Y: [*map(tuple, Y.tolist())],
])  # fmt: skip
def test_forms_of_indicators_are_equivalent(convert, scenes):
    X, Y, _ = scenes
    weights = fit(X, convert(Y)).model_.classifier.weights
    assert torch.equal(weights, fit(X, Y).model_.classifier.weights)


@pytest.mark.parametrize("convert", [list, np.array, pd.Series])
def test_label_sets_are_sorted_into_columns(convert, scenes):
    X, Y, text = scenes
    names = np.array(["dog", "bee", "cat", "ant"])
    sets = [frozenset(names[row == 1]) for row in Y]
    classifier = fit(X, convert(sets), text_features=text[[3, 1, 2, 0]])
    assert classifier.classes_.tolist() == ["ant", "bee", "cat", "dog"]
    expected = fit(X, Y, text_features=text).predict(X)[:, [3, 1, 2, 0]]
    assert np.array_equal(classifier.predict(X), expected)
    assert classifier.score(X, sets) == pytest.approx(fit(X, Y, text_features=text).score(X, Y))


def test_images_without_labels_are_negatives(scenes):
    X, Y, _ = scenes
    sets = [[f"class {k}" for k in np.flatnonzero(row)] for row in Y[:40]] + [[]] * 20
    Y = np.vstack([Y[:40], np.zeros((20, 4), dtype=int)])
    np.testing.assert_array_equal(fit(X, sets).decision_function(X), fit(X, Y).decision_function(X))


def test_parts_equal_one_fit(scenes):
    X, Y, text = scenes
    growing = HeGraphClassifier(variant="training_free")
    growing.partial_fit(X[:30], Y[:30, :3], NAMES[:3], text[:3])
    growing.add_class(3, name="dog", text_features=text[3])
    assert growing.model_.named_only == ("dog",)
    growing.partial_fit(X[30:], Y[30:])
    Y = Y.copy()
    Y[:30, 3] = 0  # the first call did not know this class
    expected = fit(X, Y, classnames=NAMES, text_features=text)
    np.testing.assert_allclose(growing.decision_function(X), expected.decision_function(X), atol=1e-4)
    growing.remove_class(3)
    expected = fit(X, Y[:, :3], classnames=NAMES[:3], text_features=text[:3])
    np.testing.assert_allclose(growing.decision_function(X), expected.decision_function(X), atol=1e-4)


def test_add_class_takes_images_with_this_label_alone(scenes):
    X, Y, text = scenes
    classifier = fit(X[:40], Y[:40], text_features=text).add_class(7, X[40:], text_features=-text[0])
    assert classifier.model_.support_set.labels[40:].sum(dim=0).tolist() == [0, 0, 0, 0, 20]


def test_saved_model_predicts_the_same_and_grows(fitted, scenes, tmp_path):
    X, Y, _ = scenes
    fitted.save_pretrained(tmp_path / "model")
    loaded = HeGraphClassifier.from_pretrained(tmp_path / "model")
    assert np.array_equal(loaded.predict_proba(X), fitted.predict_proba(X))
    assert np.array_equal(loaded.predict(X), fitted.predict(X))
    loaded.partial_fit(X[40:], Y[40:])
    assert (load_model(tmp_path / "model").trained_on.num_train, loaded.model_.trained_on.num_train) == (40, 60)


def test_scikit_learn_tools_accept_indicators(scenes):
    X, Y, text = scenes
    classifier = HeGraphClassifier(variant="training_free", text_features=text)
    search = GridSearchCV(clone(classifier), {"logit_scale": [50.0, 100.0]}, cv=KFold(3)).fit(X, Y)
    assert search.best_score_ > 0.8
    pipeline = make_pipeline(FunctionTransformer(), classifier).fit(X, Y)
    assert pipeline.predict(X).shape == Y.shape


def test_images_are_encoded_with_their_label_sets(digits, tmp_path):
    sets = [{name, "digit"} for name in np.array(digits.classnames)[digits.labels]]
    classifier = HeGraphClassifier(config="mini", dataset_config="digits", variant="training_free")
    classifier.fit(digits.pictures, sets)
    assert len(classifier.classes_) == 11
    assert classifier.predict(digits.tests)[:, classifier.classes_.tolist().index("digit")].all()
    assert classifier.model_.prompts is not None


def test_demo_lists_labels_above_their_thresholds(fitted, scenes):
    X = scenes[0]
    predicted = fitted.predict(X)
    image = int(predicted.sum(axis=1).argmax())
    answer = compute_answer(fitted.model_, fitted._encoded(X[image : image + 1]))
    assert sorted(answer.predicted) == [NAMES[k] for k in np.flatnonzero(predicted[image])]
    for each in answer.scores:
        assert (each.adapted >= each.threshold) == (each.name in answer.predicted)
    assert "thresholds" in answer_html(answer, "HeGraphAdapter")


Y2 = np.eye(60, 2, dtype=int)


@pytest.mark.parametrize(("Y", "problem"), [
    (np.eye(60, 3) * 2, r"expected 0 and 1 in y of shape \[60, 3\], got 2"),
    (np.where(np.eye(60, 3) > 0, np.nan, 0), r"expected 0 and 1 .* got .*nan"),
    ([[3, 5]] * 60, "expected 0 and 1 .* got 3; pass label sets as sets"),
    ([set()] * 60, "expected at least one label in y, got none"),
    (Y2[:59], "inconsistent numbers of samples"),
])  # fmt: skip
def test_unusable_labels_are_refused(Y, problem, scenes):
    with pytest.raises(ValueError, match=problem):
        fit(scenes[0], Y)


@pytest.mark.parametrize(("call", "problem"), [
    (lambda c, X, Y: c.adapt(X), "adaptation to unlabelled images needs a model with one label per image"),
    (lambda c, X, Y: c.fit(X, Y, unlabelled=X), "adaptation to unlabelled images needs one label per image"),
    (lambda c, X, Y: c.is_known(X), "open-set rejection needs a model with one label per image"),
    (lambda c, X, Y: c.suggest(X), "active learning needs a model with one label per image"),
    (lambda c, X, Y: c.label_issues(X, Y), "label_issues needs a model with one label per image"),
    (lambda c, X, Y: c.forget(X, Y), "forget needs a model with one label per image"),
    (lambda c, X, Y: c.partial_fit(X, Y[:, 0]), "expected several labels per image, .* got one label"),
    (lambda c, X, Y: c.partial_fit(X, Y[:, :3]), "expected 4 columns in y, one for each class, got 3"),
    (lambda c, X, Y: c.score(X, 0 * Y), "expected labels of classes_ in y"),
    (lambda c, X, Y: c.score(X, [{"zebra"}] * 60), "expected labels of classes_ in y, got .'zebra'"),
])  # fmt: skip
def test_unsupported_calls_are_refused(call, problem, scenes):
    X, Y, text = scenes
    with pytest.raises(UserError, match=problem):
        call(fit(X, Y, text_features=text), X, Y)


@pytest.mark.parametrize("variant", [None, "full", "T", "base"])
def test_other_variants_are_refused(variant, scenes):
    with pytest.raises(UserError, match="several labels per image need variant='training_free'"):
        HeGraphClassifier(variant=variant).fit(scenes[0], scenes[1])


def test_one_image_is_refused(scenes):
    with pytest.raises(UserError, match="at least two images, got 1"):
        fit(scenes[0][:1], scenes[1][:1])
