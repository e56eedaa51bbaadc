"""Prediction sets are those of MAPIE, with the predicted class added."""

import numpy as np
import pytest
import torch

from trainers.hegraph.method.training.prediction_sets import SetScores

CLASSES = 5


def probabilities_of(X: np.ndarray) -> np.ndarray:
    """Softmax of logits."""
    return torch.from_numpy(X).softmax(dim=1).numpy()


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95])
def test_sets_equal_lac_of_mapie(coverage):
    pytest.importorskip("mapie")
    from mapie.classification import SplitConformalClassifier
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Softmax(ClassifierMixin, BaseEstimator):
        """Classifier whose features are logits; it is fitted already."""

        classes_ = np.arange(CLASSES)
        n_features_in_ = CLASSES

        def fit(self, X, y):
            return self

        def predict_proba(self, X):
            return probabilities_of(X)

        def predict(self, X):
            return X.argmax(axis=1)

        def __sklearn_is_fitted__(self):
            return True

    rng = np.random.default_rng(1)
    labels = rng.integers(CLASSES, size=101)
    held_out = rng.normal(size=(101, CLASSES)) + 1.5 * np.eye(CLASSES)[labels]
    new = rng.normal(size=(200, CLASSES))
    mapie = SplitConformalClassifier(Softmax(), confidence_level=coverage, conformity_score="lac", prefit=True)
    predicted, expected = mapie.conformalize(held_out, labels).predict_set(new)
    expected = expected[:, :, 0]
    expected[np.arange(200), predicted] = True
    scores = SetScores.of(torch.from_numpy(held_out), torch.from_numpy(labels), temperature=1.0)
    sets = scores.sets_of(torch.from_numpy(new), torch.from_numpy(predicted), coverage)
    np.testing.assert_array_equal(sets.numpy(), expected)
    assert 0 < sets.float().mean() < 1
