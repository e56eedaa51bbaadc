"""scikit-learn's own checks, and the classifier inside scikit-learn's tools."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks

from trainers.hegraph import HeGraphClassifier

NODE = "TRAINER.HEGRAPHADAPTER."
# Check of scikit-learn's -> why the classifier cannot pass it. There is none.
EXPECTED_FAILURES: dict[str, str] = {}


@parametrize_with_checks([HeGraphClassifier()], expected_failed_checks=lambda _: EXPECTED_FAILURES)
def test_the_checks_of_scikit_learn_pass(estimator, check):
    check(estimator)


def test_it_stands_in_a_pipeline(data, quick):
    pipeline = make_pipeline(FunctionTransformer(lambda X: 3 * X), quick())
    pipeline.fit(data.X, data.y, hegraphclassifier__text_features=data.text)
    assert pipeline.score(data.X, data.y) > 0.9
    # the length of a feature says nothing, except for the last bits
    alone = quick().fit(data.X, data.y, text_features=data.text)
    np.testing.assert_allclose(pipeline.decision_function(data.X), alone.decision_function(data.X), atol=1e-2)


def test_it_is_cross_validated(data, quick):
    scores = cross_val_score(quick(text_features=data.text, negative_text_features=data.negative), data.X, data.y, cv=3)
    assert scores.shape == (3,)
    assert scores.min() > 0.9


def test_its_parameters_are_searched(data, quick):
    grid = {"alpha_c": [0.5, 8.0], "variant": ["T", "full"]}
    search = GridSearchCV(quick(text_features=data.text), grid, cv=2).fit(data.X, data.y)
    assert set(search.best_params_) == set(grid)
    assert search.best_estimator_.model_.variant == search.best_params_["variant"]
    assert search.predict_proba(data.X).shape == (120, 4)


def test_its_probabilities_are_calibrated(data, quick):
    calibrated = CalibratedClassifierCV(quick(text_features=data.text), cv=3).fit(data.X, data.y)
    np.testing.assert_allclose(calibrated.predict_proba(data.X).sum(axis=1), 1)
    assert calibrated.score(data.X, data.y) > 0.9


def test_lists_of_pictures_are_cross_validated(digits, digit_classifier):
    assert cross_val_score(clone(digit_classifier), digits.pictures, digits.labels, cv=3).shape == (3,)


def test_a_clone_has_the_parameters_and_nothing_that_was_learned(data, quick):
    fitted = quick(text_features=data.text, alpha_c=2.0).fit(data.X, data.y)
    copy = clone(fitted)
    assert copy.alpha_c == 2.0
    np.testing.assert_array_equal(copy.text_features, data.text)
    with pytest.raises(NotFittedError):
        copy.predict(data.X)


def test_the_constructor_only_stores_its_parameters():
    given = {"backbone": 3, "options": ["odd"], "device": "abacus", "random_state": -5}
    assert {key: value for key, value in HeGraphClassifier(**given).get_params().items() if key in given} == given


def test_a_fit_that_fails_leaves_the_classifier_unfitted(data, quick):
    classifier = quick(options={"OPTIM.LR": "odd"})
    with pytest.raises(ValueError, match=r"OPTIM\.LR must be of type float"):
        classifier.fit(data.X, data.y)
    with pytest.raises(NotFittedError):
        classifier.predict(data.X)


def test_training_leaves_the_global_generators_alone(data, quick):
    def state() -> tuple:
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = state()
    quick().fit(data.X, data.y)
    assert state() == before


def test_a_number_is_the_seed_and_a_generator_draws_one(data, quick):
    def weights(random_state: object) -> torch.Tensor:
        # one image of a batch at a time, so that the order matters
        options = {"OPTIM.MAX_EPOCH": 2, f"{NODE}MIN_STEPS": 0, "DATALOADER.TRAIN_X.BATCH_SIZE": 1}
        classifier = quick(random_state=random_state, options=options).fit(data.X[:12], data.y[:12])
        return classifier.model_.classifier.weights

    assert torch.equal(weights(5), weights(np.int64(5)))
    assert not torch.equal(weights(5), weights(6))
    assert torch.equal(weights(np.random.RandomState(0)), weights(np.random.RandomState(0)))
    generator = np.random.RandomState(0)
    assert not torch.equal(weights(generator), weights(generator))
    assert not torch.equal(weights(None), weights(None))


def test_the_logits_of_an_image_do_not_depend_on_the_others(data, quick):
    classifier = quick().fit(data.X, data.y)
    alone = np.concatenate([classifier.decision_function(data.X[i : i + 1]) for i in range(20)])
    np.testing.assert_allclose(alone, classifier.decision_function(data.X)[:20], rtol=1e-10)


def test_it_is_pickled_without_its_backbone(digits, digit_classifier):
    packed = pickle.dumps(digit_classifier)
    assert len(packed) < 1_000_000
    again = pickle.loads(packed)
    np.testing.assert_array_equal(again.predict(digits.others), digit_classifier.predict(digits.others))
