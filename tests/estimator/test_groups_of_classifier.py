"""Groups of training images in `HeGraphClassifier`: folds, the support set, and the model folder."""

import numpy as np
import pytest
import torch

from trainers.hegraph import HeGraphClassifier
from trainers.hegraph.estimator.inputs import HASHED_GROUPS
from trainers.hegraph.utils.errors import UserError

CLASSES = 3
WIDTH = 16


def images(videos: int, frames: int, spread: float = 0.8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, labels and videos of frames: a video is a random point near its class, and its frames are alike."""
    rng = np.random.default_rng(1)
    centres = 2 * np.eye(CLASSES, WIDTH)
    features, labels, groups = [], [], []
    for label in range(CLASSES):
        for video in range(videos):
            point = centres[label] + spread * rng.normal(size=WIDTH)
            features.append(point + 0.01 * rng.normal(size=(frames, WIDTH)))
            labels += [label] * frames
            groups += [f"class {label}, video {video}"] * frames
    return np.concatenate(features).astype(np.float32), np.array(labels), np.array(groups)


def fitted(groups=None, **parts) -> HeGraphClassifier:
    X, y, _ = images(**(parts or {"videos": 4, "frames": 4}))
    return HeGraphClassifier(variant="training_free").fit(X, y, groups=groups)


def test_calibration_does_not_judge_frames_by_their_video():
    _, _, videos = images(4, 4)
    alone = fitted()
    by_video = fitted(videos)
    assert by_video.model_.temperature > 1.2 * alone.model_.temperature  # frames of a video are easy
    assert torch.equal(by_video.model_.classifier.weights, alone.model_.classifier.weights)


def test_images_with_a_group_each_are_calibrated_as_without():
    numbers = list(range(48))
    assert fitted(numbers).model_.temperature == fitted().model_.temperature


def test_groups_of_earlier_calls_are_the_same_groups(tmp_path):
    X, y, _ = images(2, 2)
    classifier = HeGraphClassifier(variant="training_free").fit(X, y, groups=[7] * 6 + ["b"] * 6)
    classifier.partial_fit(X[:3], y[:3], groups=["b", 7, "c"])
    groups = classifier.model_.support_set.groups.tolist()
    assert groups[:6] == [7] * 6 and groups[13] == 7
    assert groups[6] == groups[11] == groups[12] >= HASHED_GROUPS
    assert groups[14] >= HASHED_GROUPS and groups[14] != groups[6]
    classifier.save_pretrained(tmp_path / "model")
    loaded = HeGraphClassifier.from_pretrained(tmp_path / "model")
    assert loaded.model_.support_set.groups.tolist() == groups
    loaded.forget(X[:1] + 0, y[:1])
    assert len(loaded.model_.support_set.groups) == 14


def test_images_without_groups_are_groups_of_their_own():
    X, y, _ = images(2, 2)
    classifier = HeGraphClassifier(variant="training_free").fit(X, y)
    assert classifier.model_.support_set.groups is None
    classifier.partial_fit(X[:2], y[:2], groups=[5, 5])
    groups = classifier.model_.support_set.groups
    assert groups[-2:].tolist() == [5, 5]
    assert len(groups[:12].unique()) == 12 and groups[:12].max() < 0
    classifier.partial_fit(X[:1], y[:1])
    assert len(classifier.model_.support_set.groups.unique()) == 14


def test_unlabelled_images_have_no_part_in_groups():
    X, y, videos = images(2, 2)
    y[0] = -1
    classifier = HeGraphClassifier(variant="training_free").fit(X, y, classnames=["a", "b", "c"], groups=videos)
    assert len(classifier.model_.support_set.groups) == 11


@pytest.mark.parametrize(("groups", "problem"), [
    ([1, 2], "expected a group for each of the 12 images, got 2 groups"),
    ("video", "expected a group for each of the 12 images, got 1 groups"),
    ([1.5] * 12, "expected groups that are strings or integers from 0 on, got 1.5"),
    ([-1] * 12, "expected groups that are strings or integers from 0 on, got -1"),
    ([None] * 12, "expected groups that are strings or integers from 0 on, got None"),
    ([" "] * 12, "expected groups that are strings or integers from 0 on, got ' '"),
])  # fmt: skip
def test_invalid_groups_are_refused(groups, problem):
    with pytest.raises(UserError, match=problem):
        fitted(groups, videos=2, frames=2)
