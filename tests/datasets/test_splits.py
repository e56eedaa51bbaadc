"""CoOp's few-shot protocol, compared with outputs of the real CoOp and with plain `random`."""

from __future__ import annotations

import json
import logging
import random
from collections import Counter

import pytest

from trainers.hegraph.datasets import Item, Selection, select_few_shot, subsample_labels
from trainers.hegraph.datasets.split_files import read_split_file
from trainers.hegraph.utils.errors import UserError

# Split file and image folder of each data set, below DATASET.ROOT in CoOp's layout
COOP_LAYOUT = {
    "caltech101": ("split_zhou_Caltech101.json", "caltech-101/101_ObjectCategories"),
    "dtd": ("split_zhou_DescribableTextures.json", "dtd/images"),
    "eurosat": ("split_zhou_EuroSAT.json", "eurosat/2750"),
    "oxford_pets": ("split_zhou_OxfordPets.json", "oxford_pets/images"),
}

# Train, val, test, classes; as published with CoOp
REAL_SIZES = {
    "Caltech101": (4128, 1649, 2465, 100),
    "DescribableTextures": (2820, 1128, 1692, 47),
    "EuroSAT": (13500, 5400, 8100, 10),
    "OxfordFlowers": (4093, 1633, 2463, 102),
    "OxfordPets": (2944, 736, 3669, 37),
    "StanfordCars": (6509, 1635, 8041, 196),
    "UCF101": (7639, 1898, 3783, 101),
}


def labels_of(items: list[Item]) -> list[int]:
    return [item.label for item in items]


def select(train: list[int], val: list[int], shots: int, seed: int) -> Selection:
    """What a run with a seed selects from a split that is there."""
    return select_few_shot(train, val, shots, random.Random(seed))


@pytest.mark.parametrize("dataset", COOP_LAYOUT)
def test_the_selection_is_coops_item_for_item(shared, dataset):
    # golden_fewshot.json was made by running CoOp's own train.py; its README.md says how
    golden = json.loads((shared / "golden" / "golden_fewshot.json").read_text())["fewshot"]["presplit"][dataset]
    file, image_folder = COOP_LAYOUT[dataset]
    pools = read_split_file(shared / "golden" / "splits" / dataset / file)
    assert set(golden) == {"1", "4", "16"}
    for shots, by_seed in golden.items():
        assert set(by_seed) == {"1", "2"}
        for seed, expected in by_seed.items():
            selection = select(labels_of(pools["train"]), labels_of(pools["val"]), int(shots), int(seed))
            for name, indices in (("train", selection.train), ("val", selection.val)):
                rows = [pools[name][i] for i in indices]
                assert [[f"{image_folder}/{row.path}", row.label, row.classname] for row in rows] == expected[name]
            assert len(pools["test"]) == expected["n_test"]


@pytest.mark.parametrize("dataset", REAL_SIZES)
def test_the_real_split_files_parse(shared, dataset):
    pools = read_split_file(shared / "data" / "splits" / f"split_zhou_{dataset}.json")
    *sizes, num_classes = REAL_SIZES[dataset]
    assert [len(pools[name]) for name in ("train", "val", "test")] == sizes
    for items in pools.values():
        assert {item.label for item in items} == set(range(num_classes))
    names = {(item.label, item.classname) for items in pools.values() for item in items}
    assert len(names) == num_classes
    assert pools["train"][0]._fields == ("path", "label", "classname")
    paths = [item.path for items in pools.values() for item in items]
    assert len(set(paths)) == len(paths)  # no image is in two of them


def test_classes_are_drawn_in_order_of_first_appearance_all_of_train_before_val():
    train, val = [2, 0, 2, 1, 0, 2, 1, 1], [1, 1, 0, 2, 0, 2]
    rng = random.Random(5)  # what Dassl's set_random_seed(5) makes of the module's own generator
    expected_train = rng.sample([0, 2, 5], 2) + rng.sample([1, 4], 2) + rng.sample([3, 6, 7], 2)
    expected_val = rng.sample([0, 1], 2) + rng.sample([2, 4], 2) + rng.sample([3, 5], 2)
    selection = select(train, val, shots=2, seed=5)
    assert selection.train == expected_train
    assert selection.val == expected_val


def test_a_class_with_fewer_items_is_taken_whole_in_split_order_without_a_draw():
    labels = [1, 0, 0, 0, 1, 0, 2, 2, 2, 2]
    rng = random.Random(3)
    expected = [0, 4, *rng.sample([1, 2, 3, 5], 3), *rng.sample([6, 7, 8, 9], 3)]
    assert select(labels, [], shots=3, seed=3).train == expected


def test_a_class_with_as_many_items_as_shots_is_drawn_and_so_in_a_random_order():
    # CoOp draws if there are at least `shots` items; seed 2 does not give the split order
    expected = random.Random(2).sample([0, 1, 2, 3], 4)
    assert expected != [0, 1, 2, 3]
    assert select([0, 0, 0, 0], [], shots=4, seed=2).train == expected


@pytest.mark.parametrize(("shots", "val_shots"), [(1, 1), (2, 2), (4, 4), (8, 4), (16, 4)])
def test_validation_gets_as_many_images_per_class_as_shots_but_at_most_four(shots, val_shots):
    labels = list(range(3)) * 20
    selection = select(labels, labels, shots, seed=1)
    for indices, per_class in ((selection.train, shots), (selection.val, val_shots)):
        assert len(set(indices)) == len(indices)
        assert Counter(labels[i] for i in indices) == {0: per_class, 1: per_class, 2: per_class}


def test_a_class_with_fewer_items_is_warned_of_by_numbers(caplog):
    with caplog.at_level(logging.WARNING):
        select([0] * 5 + [1] * 2 + [2], [0, 1, 2], shots=4, seed=1)
    assert caplog.messages == [
        "2 of 3 classes have fewer than 4 training images (fewest: 1); these are taken whole",
    ]


def test_the_selection_neither_reads_nor_moves_the_global_generator():
    labels = list(range(5)) * 20
    random.seed(123)
    state = random.getstate()
    first = select(labels, labels, 4, 1)
    assert random.getstate() == state
    random.seed(321)
    assert select(labels, labels, 4, 1) == first


def test_a_generator_that_was_used_before_goes_on():
    # CoOp draws a missing split from the generator that then draws the shots
    rng, plain = random.Random(7), random.Random(7)
    for generator in (rng, plain):
        generator.shuffle(list(range(30)))
    assert select_few_shot([0] * 9, [], 3, rng).train == plain.sample(range(9), 3)
    assert rng.getstate() == plain.getstate()


def test_minus_one_shot_selects_all_in_split_order_without_a_draw(caplog):
    rng = random.Random(1)
    state = rng.getstate()
    assert select_few_shot([1, 0, 1], [0, 1], -1, rng) == Selection([0, 1, 2], [0, 1])
    assert rng.getstate() == state
    assert caplog.messages == []


@pytest.mark.parametrize("shots", [0, -2, -16])
def test_no_shots_are_an_error_that_says_how_to_ask_for_all(shots):
    with pytest.raises(UserError, match=f"shots must be at least 1, or -1 for all, got {shots}$"):
        select([0, 1], [], shots, seed=1)


@pytest.mark.parametrize(
    ("which", "labels"), [("all", [0, 1, 2, 5, 9]), ("base", [0, 1, 2]), ("new", [5, 9])], ids=["all", "base", "new"]
)
def test_base_is_the_first_half_of_the_labels_with_the_middle_one_and_new_the_rest(which, labels):
    assert subsample_labels([9, 2, 0, 1, 5, 2], which) == labels


def test_a_split_file_becomes_items(tmp_path):
    path = tmp_path / "split.json"
    path.write_text('{"train": [["a/b.jpg", 0, "ant"]], "val": [], "test": [["c.jpg", 1, "bee"]]}')
    assert read_split_file(path) == {
        "train": [Item("a/b.jpg", 0, "ant")],
        "val": [],
        "test": [Item("c.jpg", 1, "bee")],
    }


@pytest.mark.parametrize(
    "text",
    [
        '{"train": [], "val": []}',
        "[]",
        '{"train": [["a.jpg", 0]], "val": [], "test": []}',
        '{"train": [["a.jpg", "ant", "ant"]], "val": [], "test": []}',
        '{"train": [["a.jpg", true, "ant"]], "val": [], "test": []}',
        '{"train": [["a.jpg", 0.5, "ant"]], "val": [], "test": []}',
        '{"train": [["a.jpg", -1, "ant"]], "val": [], "test": []}',
        '{"train": [[1, 0, "ant"]], "val": [], "test": []}',
    ],
    ids=["no test", "a list", "two columns", "label is a word", "true", "half", "negative", "path is a number"],
)
def test_a_file_of_another_structure_is_an_error_that_names_it_and_says_what_it_must_hold(tmp_path, text):
    path = tmp_path / "split.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"split\.json is not a split file: it must hold train, val and test"):
        read_split_file(path)


@pytest.mark.parametrize("spelling", ["a/1.jpg", "./a/1.jpg", "a/../a/1.jpg", "a//1.jpg"])
@pytest.mark.parametrize("split", ["val", "test"])
def test_a_split_file_with_an_image_in_two_splits_is_refused(tmp_path, split, spelling):
    rows = {"train": [["a/1.jpg", 0, "ant"], ["b/1.jpg", 1, "bee"]], "val": [], "test": []}
    rows[split] = [[spelling, 0, "ant"], ["b/1.jpg", 1, "bee"]]
    path = tmp_path / "split.json"
    path.write_text(json.dumps(rows))
    with pytest.raises(UserError) as caught:
        read_split_file(path)
    assert f"{path} lists {spelling} in train and in {split} (and 1 more)" in str(caught.value)


def test_a_split_file_with_two_labels_of_one_image_is_refused(tmp_path):
    rows = {"train": [["a/1.jpg", 0, "ant"], ["a/1.jpg", 1, "bee"]], "val": [], "test": []}
    (tmp_path / "split.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match="with the labels 0 and 1; it has one"):
        read_split_file(tmp_path / "split.json")
