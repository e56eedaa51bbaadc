"""scikit-learn's own checks, its random states, and pickles."""

from __future__ import annotations

import pickle
import random

import numpy as np
import torch
from sklearn.utils.estimator_checks import parametrize_with_checks

from trainers.hegraph import HeGraphClassifier

QUICK = {"OPTIM.MAX_EPOCH": 2, "TRAINER.HEGRAPHADAPTER.MIN_STEPS": 0}


@parametrize_with_checks([HeGraphClassifier(options=QUICK)])
def test_the_checks_of_scikit_learn_pass(estimator, check):
    check(estimator)


def test_training_leaves_the_global_generators_alone(data, quick):
    def state() -> tuple:
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = state()
    quick().fit(data.X, data.y)
    assert state() == before


def test_a_number_is_the_seed_and_a_generator_draws_one(data, quick):
    def weights(random_state: object) -> torch.Tensor:
        # one image of a batch at a time, so that the order matters
        options = QUICK | {"DATALOADER.TRAIN_X.BATCH_SIZE": 1}
        classifier = quick(random_state=random_state, options=options).fit(data.X[:12], data.y[:12])
        return classifier.model_.classifier.weights

    assert torch.equal(weights(5), weights(np.int64(5)))
    assert not torch.equal(weights(5), weights(6))
    generator = np.random.RandomState(0)
    first, second = weights(generator), weights(generator)
    assert torch.equal(weights(np.random.RandomState(0)), first) and not torch.equal(first, second)


def test_it_is_pickled_without_its_backbone(digits, digit_classifier):
    packed = pickle.dumps(digit_classifier)
    assert len(packed) < 1_000_000
    again = pickle.loads(packed)
    np.testing.assert_array_equal(again.predict(digits.others), digit_classifier.predict(digits.others))
