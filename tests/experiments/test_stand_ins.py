"""Calibration where some classes have a single image: other classes stand for them."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks.tasks import unit_features
from trainers.hegraph import FeatureBank, HeGraphClassifier
from trainers.hegraph.experiments import calibration
from trainers.hegraph.experiments.stand_ins import (
    held_out_with_stand_ins,
    single_classes,
    small_classes,
    too_few_to_stand_in,
    weights_of_held_out,
)
from trainers.hegraph.method.mean_text import without_text

CLASSES = 24
WIDTH = 32


def task(counts: list[int], seed: int, num_test: int = 30) -> FeatureBank:
    """Bank of classes with noisy images and noisy text, and as many training images as `counts` says."""
    generator = torch.Generator().manual_seed(seed)
    centres = unit_features(len(counts), WIDTH, seed=seed)

    def images(label: int, number: int) -> Tensor:
        noise = torch.randn(number, WIDTH, generator=generator) / WIDTH**0.5
        return torch.nn.functional.normalize(centres[label] + 1.5 * noise, dim=-1)

    train = torch.cat([images(label, count) for label, count in enumerate(counts)])
    test = torch.cat([images(label, num_test) for label in range(len(counts))])
    noise = torch.randn(len(counts), WIDTH, generator=generator) / WIDTH**0.5
    text = torch.nn.functional.normalize(centres + 1.6 * noise, dim=-1)
    return FeatureBank(
        train_features=train[None],
        train_labels=torch.tensor([label for label, count in enumerate(counts) for _ in range(count)]),
        text_positive=text,
        text_negative=-text,
        classnames=[f"class {label}" for label in range(len(counts))],
        dataset="tiny",
        backbone="none",
        logit_scale=20.0,
        test_features=test,
        test_labels=torch.arange(len(counts)).repeat_interleave(num_test),
    )


def fitted(bank: FeatureBank) -> HeGraphClassifier:
    """Training-free classifier of a bank."""
    text = {"text_features": bank.text_positive.numpy(), "negative_text_features": bank.text_negative.numpy()}
    model = HeGraphClassifier(variant="training_free", logit_scale=bank.logit_scale, random_state=1, device="cpu")
    return model.fit(bank.train_features[0].numpy(), bank.train_labels.numpy(), **text)


def nearest_mean(bank: FeatureBank) -> Callable[[Tensor], Tensor]:
    """The nearest class mean, times 20."""
    keys = bank.cache_keys()
    means = torch.stack([keys[bank.train_labels == label].mean(dim=0) for label in range(len(bank.classnames))])
    return lambda features: 20.0 * features @ means.t()


def test_each_class_with_several_images_stands_in_once():
    labels = torch.tensor([0, 1, 2, 2, 2, 3, 3, 3, 3])
    folds = calibration.assign_folds(labels, seed=1)
    assert single_classes(labels, folds, 4).tolist() == [True, True, False, False]
    parts = list(held_out_with_stand_ins(labels, folds, None, seed=1))
    assert len(parts) == 4
    stood_in = []
    for mask, of_stand_ins in parts:
        assert not mask[:2].any() and bool((mask | ~of_stand_ins).all())
        left = labels[~mask].bincount(minlength=4)
        assert left.min() >= 1
        for label in labels[of_stand_ins].unique().tolist():
            assert left[label] == 1
            stood_in.append(label)
    assert sorted(stood_in) == [2, 3]


def test_a_class_is_reduced_to_one_group():
    labels = torch.tensor([0, 1, 1, 1, 1, 2, 2, 3, 3])
    groups = torch.tensor([0, 1, 1, 2, 2, 3, 4, 4, 5])  # group 4 has two classes, which cannot stand in
    folds = calibration.assign_folds(labels, 1, groups)
    seen = set()
    for mask, of_stand_ins in held_out_with_stand_ins(labels, folds, groups, seed=1):
        for group in groups.unique().tolist():
            assert len(mask[groups == group].unique()) == 1  # no group is divided
        seen |= set(labels[of_stand_ins].tolist())
    assert seen == {1}


def test_classes_count_equally():
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    of_stand_ins = torch.tensor([False] * 4 + [True] * 3)
    weights = weights_of_held_out(labels, of_stand_ins, num_single=6)
    assert weights.tolist() == [0.25] * 4 + [1.5, 1.5, 3.0]


def test_sets_cover_classes_of_one_image():
    """Of classes with 1 and 16 images; folds of the large classes alone cover 80 % of the others."""
    covered = []
    of_single = []
    for seed in range(1, 6):
        counts = [1, 16] * (CLASSES // 2)
        bank = task(counts, seed)
        sets = fitted(bank).predict_set(bank.test_features.numpy(), 0.9)
        own = sets[range(len(sets)), bank.test_labels.numpy()]
        covered.append(own.mean())
        of_single.append(own[bank.test_labels.numpy() % 2 == 0].mean())
    assert sum(covered) / 5 > 0.89
    assert sum(of_single) / 5 > 0.87


def test_one_class_of_two_images_is_calibrated_as_at_one_shot():
    log_loss = []
    for counts in ([2] + [1] * (CLASSES - 1), [1] * CLASSES):
        bank = task(counts, seed=3)
        model = fitted(bank)
        probabilities = model.predict_proba(bank.test_features.numpy())
        log_loss.append(-torch.tensor(probabilities)[range(len(probabilities)), bank.test_labels].log().mean().item())
        assert model.model_.sets.of_zero_shot
        assert model.model_.known.fitted_on == "held-out classes"
    assert log_loss[0] < log_loss[1] + 0.02


@pytest.mark.parametrize(("counts", "expected"), [
    ([1, 16] * 10, False), ([1, 4] * 10, False), ([1, 3] * 10, True), ([2] + [1] * 19, True),
    ([16] * 8 + [1] * 12, True), ([16] * 8 + [1] * 8, False), ([2] * 19 + [1], False), ([2] * 20, False),
])  # fmt: skip
def test_few_stand_ins_are_too_few(counts, expected):
    counts = torch.tensor(counts)
    labels = torch.arange(len(counts)).repeat_interleave(counts)
    assert too_few_to_stand_in(labels, counts == 1) == expected


def test_without_text_few_images_are_held_out():
    bank = without_text(task([2] + [1] * 7, seed=3))
    found = calibration.fit_calibration(bank, None, nearest_mean, trains=False, seed=1)
    assert (found.fitted_on, found.num_images) == ("held-out images", 2)


def test_small_classes_have_less_than_half_of_the_mean():
    labels = torch.arange(5).repeat_interleave(torch.tensor([4, 5, 16, 0, 15]))
    none = torch.zeros(5, dtype=torch.bool)
    assert small_classes(labels, none).tolist() == [True, False, False, False, False]  # the mean is 10
    assert not small_classes(torch.arange(4), torch.ones(4, dtype=torch.bool)).any()


def test_sets_cover_classes_of_two_images():
    """Of classes with 2 and 16 images, the small ones are covered as well as the others."""
    covered = []
    for seed in range(1, 6):
        bank = task([2, 16] * (CLASSES // 2), seed)
        found = fitted(bank)
        assert found.model_.sets.few.stand_ins is None
        sets = found.predict_set(bank.test_features.numpy(), 0.9)
        own = sets[range(len(sets)), bank.test_labels.numpy()]
        covered.append(own[bank.test_labels.numpy() % 2 == 0].mean())
    assert sum(covered) / 5 > 0.88


@pytest.mark.parametrize(("trains", "fits"), [(False, 4), (True, 2)])
def test_number_of_refits(trains, fits):
    seen: list[FeatureBank] = []
    bank = task([1, 8] * 10, seed=1)
    found = calibration.fit_calibration(bank, None, lambda rest: seen.append(rest) or nearest_mean(rest), trains, 1)
    assert len(seen) == fits
    assert found.sets.few.classes == tuple(range(0, 20, 2))
    assert math.isfinite(found.temperature)


def test_val_images_of_single_classes_stand_for_themselves():
    bank = task([1, 8] * 6, seed=2)
    bank = replace(bank, val_features=bank.test_features, val_labels=bank.test_labels)
    found = calibration.fit_calibration(bank, nearest_mean(bank), None, trains=True, seed=1)
    assert (found.fitted_on, found.sets.few.classes, found.sets.few.stand_ins) == ("val", (0, 2, 4, 6, 8, 10), None)
