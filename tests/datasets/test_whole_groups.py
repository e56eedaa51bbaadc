"""No split, fold or sample of the package divides a group, whatever the groups are."""

import random
from pathlib import Path

import pytest
import torch

from trainers.hegraph.datasets.folder import split_at_random
from trainers.hegraph.datasets.groups import NOT_HELD_OUT, balanced_folds
from trainers.hegraph.datasets.own_images import OwnImages, Row
from trainers.hegraph.datasets.splits import sample_few_shot
from trainers.hegraph.estimator.labels.held_out import held_out_folds
from trainers.hegraph.estimator.labels.leave_one_group_out import left_out_group_logits
from trainers.hegraph.estimator.labels.leave_one_out import training_free_options
from trainers.hegraph.experiments.calibration import assign_folds, without_images
from trainers.hegraph.features.bank import FeatureBank
from trainers.hegraph.method.head.multilabel import MultiLabelHead
from trainers.hegraph.utils.errors import UserError

pytest.importorskip("hypothesis", reason="hypothesis is not installed, which generates the groups")
from hypothesis import assume, given, settings, strategies as st

# Images as pairs of a class and a group; a group may span classes
IMAGES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=2, max_size=80)
# The same with any number of classes
SEVERAL = st.lists(
    st.tuples(st.sets(st.integers(0, 3)).map(lambda labels: tuple(sorted(labels))), st.integers(0, 12)),
    min_size=2,
    max_size=60,
)
SEED = st.integers(0, 1000)


def features_of(count: int, seed: int) -> torch.Tensor:
    """Unit-norm features of shape `[count, 8]`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, 8, generator=generator), dim=1)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(images=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 12)), min_size=24, max_size=80))
def test_random_split_divides_no_group(images):
    rows = [Row("train", f"{number}.png", f"class{label}", f"g{group}") for number, (label, group) in enumerate(images)]
    rows.sort(key=lambda row: row.label)
    try:
        split = split_at_random(OwnImages(rows, Path("photos"))).rows
    except UserError:  # too few classes, images or groups
        return
    assert sorted(row.path for row in split) == sorted(row.path for row in rows)
    shared = len({row.group for row in rows}) < len(rows)
    if shared:
        assert len({(row.group, row.split) for row in split}) == len({row.group for row in rows})
    for name in ("train", "val", "test"):
        assert {row.label for row in split if row.split == name} == {row.label for row in rows}


@settings(max_examples=100, deadline=None, derandomize=True)
@given(train=IMAGES, val=IMAGES, shots=st.integers(-1, 6).filter(bool), seed=SEED)
def test_sample_shares_no_group_between_train_and_val(train, val, shots, seed):
    train_labels, train_groups = zip(*train)
    val_labels, val_groups = zip(*val)
    sample = sample_few_shot(train_labels, val_labels, shots, random.Random(seed), train_groups, val_groups)
    assert len({*sample.train}) == len(sample.train) and len({*sample.val}) == len(sample.val)
    assert {train_groups[row] for row in sample.train}.isdisjoint(val_groups[row] for row in sample.val)
    for label in set(train_labels):
        number = train_labels.count(label)
        expected = number if shots == -1 else min(shots, number)
        assert sum(train_labels[row] == label for row in sample.train) == expected


@settings(max_examples=100, deadline=None, derandomize=True)
@given(train=IMAGES, shots=st.integers(1, 6), seed=SEED)
def test_sample_divides_at_most_one_group_of_a_class(train, shots, seed):
    labels, groups = zip(*train)
    assume(len(set(groups)) < len(groups))
    sample = sample_few_shot(labels, (), shots, random.Random(seed), groups).train
    for label in set(labels):
        whole = [groups[row] for row in range(len(labels)) if labels[row] == label]
        sampled = [groups[row] for row in sample if labels[row] == label]
        divided = [group for group in set(sampled) if sampled.count(group) < whole.count(group)]
        assert len(divided) <= 1


@settings(max_examples=100, deadline=None, derandomize=True)
@given(images=IMAGES, seed=SEED)
def test_folds_divide_no_group_and_empty_no_class(images, seed):
    labels, groups = zip(*images)
    folds = balanced_folds(labels, groups, seed)
    assert assign_folds(torch.tensor(labels), seed, torch.tensor(groups)).tolist() == folds
    fold_of = dict(zip(groups, folds))
    assert [fold_of[group] for group in groups] == folds
    used = {*folds} - {NOT_HELD_OUT}
    assert used == {*range(len(used))}
    for fold in used:
        assert {label for label, of in zip(labels, folds) if of != fold} == {*labels}


@settings(max_examples=100, deadline=None, derandomize=True)
@given(train=SEVERAL, val=SEVERAL, shots=st.integers(1, 4), seed=SEED)
def test_sample_of_several_labels_shares_no_group(train, val, shots, seed):
    train_labels, train_groups = zip(*train)
    val_labels, val_groups = zip(*val)
    sample = sample_few_shot(train_labels, val_labels, shots, random.Random(seed), train_groups, val_groups)
    assert {train_groups[row] for row in sample.train}.isdisjoint(val_groups[row] for row in sample.val)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(images=IMAGES)
def test_estimate_of_teach_and_backbones_divides_no_group(images):
    labels, groups = zip(*images)
    assume(len(set(groups)) < len(groups))
    folds = held_out_folds(torch.tensor(labels), torch.tensor(groups)).tolist()
    assert len(set(zip(groups, folds))) == len(set(groups))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(images=IMAGES, seed=SEED)
def test_calibration_and_sets_hold_out_whole_groups(images, seed):
    """The images of the temperature are also those of the prediction sets."""
    labels, groups = (torch.tensor(values) for values in zip(*images))
    names = [f"class {label}" for label in range(4)]
    text = features_of(4, seed)
    features = features_of(len(labels), seed)[None]
    bank = FeatureBank(features, labels, text, -text, names, "Toy", "toy", 100.0, train_groups=groups)
    for part, held_out in without_images(bank, seed):
        assert not set(groups[held_out].tolist()) & set(part.train_groups.tolist())
        assert len(part.train_labels) + int(held_out.sum()) == len(labels)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(groups=st.lists(st.integers(0, 8), min_size=36, max_size=36), seed=SEED)
def test_label_check_does_not_use_the_group_of_an_image(groups, seed):
    labels = torch.arange(36) % 3
    groups = torch.tensor(groups)
    inside = groups == groups.mode().values
    assume(labels[~inside].bincount(minlength=3).min() > 3)
    features = features_of(len(labels), seed)
    changed = features.clone()
    first = int(inside.nonzero()[0])
    changed[inside] = features_of(int(inside.sum()), seed + 1)
    changed[first] = features[first]
    arguments = (labels, groups, features_of(3, seed), 100.0, training_free_options(4), False)
    before = left_out_group_logits(features, *arguments)[first]
    torch.testing.assert_close(left_out_group_logits(changed, *arguments)[first], before, atol=1e-3, rtol=0)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(images=SEVERAL, seed=SEED)
def test_scores_of_several_labels_leave_out_whole_groups(images, seed):
    """The ridge and the weight of the text follow all images, so the score is that of a fit with both fixed."""
    labels = torch.tensor([[number in of for number in range(4)] for of, _ in images])
    groups = torch.tensor([group for _, group in images])
    group = groups.mode().values
    inside = groups == group
    assume(labels[~inside].any(dim=0).all() and not labels[~inside].all(dim=0).any())
    features = features_of(len(labels), seed)
    head = MultiLabelHead.fit(features, labels, groups=groups)
    X = features.double()
    spread = (X - X.mean(dim=0)).square().sum() / X.shape[1]
    mean = X[~inside].mean(dim=0)
    Y = labels.double()
    deviations = X[~inside] - mean
    gram = deviations.t() @ deviations + head.ridge * spread * torch.eye(X.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, deviations.t() @ (Y[~inside] - Y[~inside].mean(dim=0)))
    expected = Y[~inside].mean(dim=0) + (X[inside] - mean) @ weights
    torch.testing.assert_close(head.left_out[inside].double(), expected, atol=1e-5, rtol=0)
