"""Predictions of images by models without them, for the estimated accuracy."""

import pytest
import torch
import torch.nn.functional as F

from trainers.hegraph import load_cfg
from trainers.hegraph.datasets.groups import NOT_HELD_OUT, balanced_folds
from trainers.hegraph.estimator.labels.held_out import SEED, folds_of_images, held_out_predictions
from trainers.hegraph.estimator.labels.leave_one_group_out import leave_one_group_out
from trainers.hegraph.estimator.labels.leave_one_out import leave_one_out
from trainers.hegraph.experiments.fitting import fit
from trainers.hegraph.experiments.tasks import FeatureTask
from trainers.hegraph.features.bank import FeatureBank

SCALE = 100.0


def images_of(counts: list[int], width: int = 16, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unit-norm features, labels and text of classes with these numbers of images."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    centres = torch.randn(len(counts), width, generator=generator)
    noise = torch.randn(len(labels), width, generator=generator)
    text = centres + torch.randn(len(counts), width, generator=generator)
    return F.normalize(centres[labels] + 1.5 * noise, dim=1), labels, F.normalize(text, dim=1)


def refitted(features, labels, text, held_out, shots: int) -> torch.Tensor:
    """Predictions of a run's training-free model that is fitted to the other images."""
    names = [f"class {k}" for k in range(len(text))]
    bank = FeatureBank(
        features[None, ~held_out], labels[~held_out], text, -text, names, "Toy", "toy", logit_scale=SCALE
    )
    cfg = load_cfg(opts=["DATASET.NUM_SHOTS", shots, "TRAINER.HEGRAPHADAPTER.VARIANT", "training_free"])
    return fit(FeatureTask(bank, cfg, 1), bank).logits(features[held_out]).argmax(dim=1)


@pytest.mark.parametrize("shots", [2, 3, 4])
def test_few_images_are_predicted_by_balanced_folds(shots):
    features, labels, text = images_of([shots] * 8)
    found = held_out_predictions(features, labels, text, SCALE)
    folds = torch.tensor(folds_of_images(labels.tolist()))
    for fold in range(shots):
        held_out = folds == fold
        assert labels[held_out].tolist() == [*range(8)]
        assert found[held_out].tolist() == refitted(features, labels, text, held_out, shots).tolist()


def test_many_images_are_predicted_by_leave_one_out():
    features, labels, text = images_of([5] * 8)
    _, expected = leave_one_out(features, labels, text, SCALE)
    assert torch.equal(held_out_predictions(features, labels, text, SCALE), expected)


def test_groups_are_predicted_by_folds_of_groups():
    features, labels, text = images_of([8] * 6)
    groups = torch.arange(48) // 2
    found = held_out_predictions(features, labels, text, SCALE, groups=groups)
    folds = torch.tensor(balanced_folds(labels.tolist(), groups.tolist(), SEED))
    assert set(folds.tolist()) == {0, 1, 2, 3}
    for fold in range(4):
        held_out = folds == fold
        assert not set(groups[held_out].tolist()) & set(groups[~held_out].tolist())
        assert found[held_out].tolist() == refitted(features, labels, text, held_out, 8).tolist()


def test_groups_of_one_image_change_nothing():
    features, labels, text = images_of([3] * 8)
    found = held_out_predictions(features, labels, text, SCALE, groups=torch.arange(24))
    assert torch.equal(found, held_out_predictions(features, labels, text, SCALE))


def test_only_image_of_a_class_is_predicted_by_leave_one_out():
    features, labels, text = images_of([1, 3, 3, 3])
    _, expected = leave_one_out(features, labels, text, SCALE)
    assert held_out_predictions(features, labels, text, SCALE)[0] == expected[0]


def test_only_group_of_a_class_is_predicted_without_its_group():
    features, labels, text = images_of([4, 4, 4])
    groups = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    _, expected = leave_one_group_out(features, labels, groups, text, SCALE)
    found = held_out_predictions(features, labels, text, SCALE, groups=groups)
    assert torch.equal(found[:4], expected[:4])


def test_changed_label_moves_images_of_two_classes_only():
    labels = [0, 1, 2, 3] * 4
    changed = [1, *labels[1:]]
    pairs = zip(labels, folds_of_images(labels), folds_of_images(changed))
    assert all(before == after for label, before, after in pairs if label > 1)
    assert folds_of_images([0, 1, 1])[0] == NOT_HELD_OUT
