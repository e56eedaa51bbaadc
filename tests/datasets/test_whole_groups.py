"""No split, fold or sample of the package divides a group, whatever the groups are."""

import random

import pytest
import torch

from trainers.hegraph.datasets.folder import split_at_random
from trainers.hegraph.datasets.groups import NOT_HELD_OUT, balanced_folds
from trainers.hegraph.datasets.own_images import OwnImages, Row
from trainers.hegraph.datasets.splits import sample_few_shot
from trainers.hegraph.experiments.calibration import assign_folds
from trainers.hegraph.utils.errors import UserError

pytest.importorskip("hypothesis", reason="hypothesis is not installed, which generates the groups")
from hypothesis import assume, given, settings, strategies as st

# Images as pairs of a class and a group; a group may span classes
IMAGES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=2, max_size=80)
SEED = st.integers(0, 1000)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(images=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 12)), min_size=24, max_size=80))
def test_random_split_divides_no_group(images):
    rows = [Row("train", f"{number}.png", f"class{label}", f"g{group}") for number, (label, group) in enumerate(images)]
    rows.sort(key=lambda row: row.label)
    try:
        split = split_at_random(OwnImages(rows)).rows
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
