"""Prediction sets of the classifier."""

import numpy as np
import pytest
import torch

from trainers.hegraph import HeGraphClassifier, UserError


@pytest.fixture
def images(unit_features):
    """Features of 12 images of each of three classes, their labels, and text features."""
    labels = np.repeat(["ant", "bee", "cat"], 12)
    centres = unit_features(3, 16, seed=1)
    noise = 0.3 * unit_features(36, 16, seed=2)
    features = torch.nn.functional.normalize(centres.repeat_interleave(12, dim=0) + noise, dim=1)
    text = torch.nn.functional.normalize(centres + 0.3 * unit_features(3, 16, seed=3), dim=1)
    return features.numpy(), labels, text


def fitted(features, labels, text, **options):
    return HeGraphClassifier(variant="training_free", text_features=text, **options).fit(features, labels)


def test_sets_are_classes_above_the_threshold(images):
    model = fitted(*images)
    sets = model.predict_set(images[0], 0.9)
    probabilities = model.predict_proba(images[0])
    expected = probabilities >= model.model_.set_threshold(0.9)
    expected[np.arange(36), probabilities.argmax(axis=1)] = True
    assert sets.dtype == bool and (sets == expected).all()


def test_sets_grow_with_the_coverage(images):
    model = fitted(*images)
    small, large = (model.predict_set(images[0], coverage) for coverage in (0.5, 0.95))
    assert (large | small == large).all() and large.sum() >= small.sum()


def test_one_shot_sets_are_those_of_zero_shot_clip(images, unit_features):
    features = images[0][:12]
    text = unit_features(12, 16, seed=4)
    model = fitted(features, np.arange(12), text)
    assert model.model_.sets.of_zero_shot
    clip = model.model_.logit_scale * torch.tensor(features) @ text.t()
    probabilities = (clip.double() / model.model_.sets.temperature).softmax(dim=1)
    expected = (probabilities >= model.model_.set_threshold(0.9)).numpy()
    expected[np.arange(12), model.predict(features)] = True
    assert (model.predict_set(features, 0.9) == expected).all()


def test_few_images_refuse_a_high_coverage(images):
    with pytest.raises(UserError, match="coverage 0.99 needs at least 99 held-out images, and the model has 36"):
        fitted(*images).predict_set(images[0], 0.99)


def test_several_labels_have_no_sets(images):
    features, labels, text = images
    several = HeGraphClassifier(variant="training_free", text_features=text)
    several.fit(features, np.stack([labels == name for name in ("ant", "bee", "cat")], axis=1).astype(int))
    with pytest.raises(UserError, match="a prediction set needs a model with one label per image"):
        several.predict_set(features, 0.9)


def test_class_without_images_removes_sets_and_threshold(images, unit_features):
    model = fitted(*images)
    model.add_class("dog", text_features=unit_features(1, 16, seed=4)[0])
    reason = r"because of classes without training images \(1 of 4, such as 'dog'\); add images of them with train-more"
    with pytest.raises(UserError, match=f"^the model has no probabilities .*, {reason}"):
        model.predict_set(images[0], 0.9)
    with pytest.raises(UserError, match=f"^the model has no scores .*, {reason}"):
        model.is_known(images[0])


def test_images_of_a_named_class_restore_sets(images, unit_features):
    model = fitted(*images)
    dog = unit_features(1, 16, seed=4)
    model.add_class("dog", text_features=dog[0]).partial_fit(dog.numpy(), ["dog"])
    assert model.predict_set(images[0], 0.9).shape == (36, 4)
    assert model.is_known(images[0]).shape == (36,)
