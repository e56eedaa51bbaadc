"""Label issues of images with groups: a wrong label of a whole group."""

import json

import pytest
import torch
import torch.nn.functional as F

from trainers.hegraph import FeatureBank, HeGraphClassifier
from trainers.hegraph.commands.label import main
from trainers.hegraph.estimator.labels.issues import find_label_issues

NAMES = ["ant", "bee", "cat", "dog"]


@pytest.fixture(scope="module")
def videos():
    """Features of 4 videos of 4 frames of each class, labels with a wrong video, groups, and text features."""
    generator = torch.Generator().manual_seed(4)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    labels = torch.arange(4).repeat_interleave(16)
    groups = torch.arange(64) // 4
    centres = normal(4, 32)
    features = F.normalize(centres[labels] + 1.2 * normal(16, 32)[groups] + 0.2 * normal(64, 32), dim=1)
    wrong = labels.clone()
    wrong[:4] = 2
    return features, wrong, groups, F.normalize(centres + normal(4, 32), dim=1)


def doubted(issues) -> set[int]:
    return {issue.index for issue in issues if issue.score > 0}


def test_wrong_video_is_found_without_its_frames(videos):
    features, labels, groups, text = videos
    assert not {0, 1, 2, 3} <= doubted(find_label_issues(features, labels, text, 30.0, NAMES))
    assert {0, 1, 2, 3} <= doubted(find_label_issues(features, labels, text, 30.0, NAMES, groups=groups))


def test_classifier_judges_labels_without_groups(videos):
    features, labels, groups, text = videos
    classifier = HeGraphClassifier(variant="training_free", text_features=text, logit_scale=30.0)
    names = [NAMES[label] for label in labels.tolist()]
    classifier.fit(features.numpy(), names)
    expected = find_label_issues(features, labels, text, 30.0, NAMES, groups=groups)
    found = classifier.label_issues(features.numpy(), names, groups=[f"video {group}" for group in groups.tolist()])
    scores = {issue.index: issue.score for issue in expected}
    assert {issue.index: issue.score for issue in found} == pytest.approx(scores, abs=1e-6)


def test_label_issues_checks_groups_as_fit_does(videos, refused):
    features, labels, _, text = videos
    classifier = HeGraphClassifier(variant="training_free", text_features=text, logit_scale=30.0)
    classifier.fit(features.numpy(), labels.numpy())
    for groups, problem in (
        (range(63), "expected a group for each of the 64 images, got 63 groups"),
        ([-1] * 64, "expected groups that are strings or integers from 0 on, got -1"),
    ):
        with refused("", problem):
            classifier.label_issues(features.numpy(), labels.numpy(), groups=list(groups))
        with refused("", problem):
            classifier.fit(features.numpy(), labels.numpy(), groups=list(groups))


def test_label_check_uses_the_groups_of_a_bank(videos, tmp_path, capsys):
    features, labels, groups, text = videos
    bank = FeatureBank(features[None], labels, text, -text, NAMES, "Toy", "toy", 30.0, train_groups=groups)
    bank.save(tmp_path / "toy.safetensors")
    assert main(["check", "--features", str(tmp_path / "toy.safetensors"), "--above", "0", "--format", "jsonl"]) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = {int(row["path"].rpartition("/")[2]) for row in rows}
    assert found == doubted(find_label_issues(features, labels, text, 30.0, NAMES, groups=groups))
