"""Unequal numbers of training images per class: values of DATASET.SHOTS_PER_CLASS, and the images that they sample."""

import math
from collections import Counter
from random import Random

import pytest

from trainers.hegraph import load_few_shot
from trainers.hegraph.config_files import load_cfg
from trainers.hegraph.datasets.loading import load_dataset
from trainers.hegraph.datasets.shots import ShotsPerClass, shots_of_classes
from trainers.hegraph.datasets.splits import sample_few_shot
from trainers.hegraph.utils.errors import UserError

KEY = "DATASET.SHOTS_PER_CLASS"


def test_long_tail_falls_geometrically():
    counts = ShotsPerClass.parse("long-tailed:1-16").counts(5, Random(1))
    assert sorted(counts) == [1, 2, 4, 8, 16]  # 16 / 2^j
    assert sorted(ShotsPerClass.parse("long-tailed:2-9").counts(3, Random(1))) == [2, 4, 9]  # 9 (2/9)^(1/2) = 4.24
    assert ShotsPerClass.parse("long-tailed:2-9").counts(1, Random(1)) == [9]


def test_seed_orders_the_classes():
    shots = ShotsPerClass.parse("long-tailed:1-16")
    orders = [shots.counts(5, Random(seed)) for seed in range(20)]
    assert shots.counts(5, Random(3)) == orders[3]
    assert {order.index(16) for order in orders} == set(range(5))


def test_mean_number_of_shots():
    assert ShotsPerClass.parse("3,1,5").mean == 3
    assert ShotsPerClass.parse("long-tailed:1-16").mean == pytest.approx(15 / math.log(16))
    assert ShotsPerClass.parse("long-tailed:4-4").mean == 4
    many = ShotsPerClass.parse("long-tailed:1-16").counts(2000, Random(1))
    assert sum(many) / 2000 == pytest.approx(15 / math.log(16), abs=0.05)


@pytest.mark.parametrize("text", [
    "0,1", "1,,2", "1, 2", "-1", "long-tailed:16-1", "long-tailed:0-4", "long-tailed:4", "long_tailed:1-4", "1" * 10,
])  # fmt: skip
def test_other_forms_are_refused(text):
    with pytest.raises(UserError, match=f"{KEY} must be .*long-tailed:LOW-HIGH.*, got"):
        ShotsPerClass.parse(text)
    with pytest.raises(UserError, match=f"{KEY} must be empty, .*long-tailed:LOW-HIGH.*, got"):
        load_cfg(opts=[KEY, text])


def test_largest_number_is_the_number_of_shots():
    for text in ("16,2", "long-tailed:2-16"):
        assert load_cfg(opts=[KEY, text]).data.shots_per_class == text
        with pytest.raises(UserError, match=r"needs DATASET.NUM_SHOTS 16, .* got 4; add --shots 16"):
            load_cfg(opts=[KEY, text, "DATASET.NUM_SHOTS", 4])


def test_settings_by_shots_follow_the_mean():
    opts = ["TRAINER.HEGRAPHADAPTER.VARIANT", "training_free"]
    unequal = load_cfg(opts=[KEY, "16,1,1,1,1", *opts])  # mean 4
    equal = load_cfg(opts=["DATASET.NUM_SHOTS", 4, *opts])
    assert (unequal.training, unequal.model) == (equal.training, equal.model)
    assert unequal.model.closed_form != load_cfg(opts=opts).model.closed_form


def test_each_class_has_its_number_of_images():
    rng = Random(1)
    train = [0] * 9 + [1] * 9 + [2] * 9
    val = [2] * 9 + [1] * 9 + [0] * 9
    sample = sample_few_shot(train, val, [7, 1, 3], rng)
    assert Counter(train[row] for row in sample.train) == {0: 7, 1: 1, 2: 3}
    assert Counter(val[row] for row in sample.val) == {0: 4, 1: 1, 2: 3}


def test_equal_numbers_sample_the_images_of_shots():
    labels = [n % 3 for n in range(30)]
    assert sample_few_shot(labels, labels, [5, 5, 5], Random(2)) == sample_few_shot(labels, labels, 5, Random(2))


def test_small_class_contributes_all_its_images(caplog):
    sample = sample_few_shot([0, 0, 1, 1], [], [3, 1], Random(1))
    assert sample.train[:2] == [0, 1] and len(sample.train) == 3
    assert f"1 of 2 classes have fewer training images than {KEY} (minimum: 2)" in caplog.text


def test_labels_of_an_image_have_their_numbers():
    labels = [(0,)] * 6 + [(1,)] * 8
    sample = sample_few_shot(labels, [], [2, 5], Random(1))
    assert Counter(labels[row] for row in sample.train) == {(0,): 2, (1,): 5}


def test_images_of_a_data_set_are_unequal():
    listed = load_few_shot("Digits", "", 9, 1, shots_per_class="1,2,3,4,5,6,7,8,9,9")
    assert [sum(item.label == label for item in listed.train) for label in range(10)] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 9]
    drawn = load_few_shot("Digits", "", 16, 1, pool=True, shots_per_class="long-tailed:1-16")
    counts = Counter(item.label for item in drawn.train).values()
    assert sorted(counts) == [round(16 ** (n / 9)) for n in range(10)]
    whole = load_dataset("Digits")
    assert len(drawn.pool) == len(whole.train) + len(whole.val) - sum(counts)


@pytest.mark.parametrize("number", [9, 11])
def test_list_of_another_length_is_refused(number):
    with pytest.raises(UserError, match=f"{KEY} has {number} numbers for 10 classes"):
        load_few_shot("Digits", "", 2, 1, shots_per_class=",".join("2" * number))
    assert shots_of_classes(4, "", 10, Random(1)) == 4
