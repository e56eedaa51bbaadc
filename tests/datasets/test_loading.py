"""The data sets below the data root: real split files, and parity with the real CoOp on the golden tree.

golden_fewshot.json holds what the real CoOp and Dassl select on the tree that the make_data.py beside it makes; its
README.md says how that was run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import subprocess
import sys
from pathlib import Path

import pytest

from trainers.hegraph.datasets import Dataset, load_dataset, load_few_shot
from trainers.hegraph.datasets.loading import load_test_images, read_stored
from trainers.hegraph.datasets.registry import stored_datasets
from trainers.hegraph.utils.errors import UserError

STORED = stored_datasets()

# Real split files, and the list of class names that goes with each
REAL = {
    "Caltech101": "caltech101", "DescribableTextures": "dtd", "EuroSAT": "eurosat", "OxfordFlowers": "oxford_flowers",
    "OxfordPets": "oxford_pets", "StanfordCars": "stanford_cars", "UCF101": "ucf101",
}  # fmt: skip

# Golden name -> ours
GOLDEN = {
    "caltech101": "Caltech101", "oxford_pets": "OxfordPets", "eurosat": "EuroSAT", "dtd": "DescribableTextures",
    "imagenet": "ImageNet",
}  # fmt: skip
SPLIT_SETS = [name for name in GOLDEN if name != "imagenet"]  # those that have a split file

WNIDS = (
    "n01440764", "n01443537", "n01484850", "n01491361", "n01494475", "n01496331", "n01498041", "n01514668", "n01514859",
    "n01518878",
)  # fmt: skip
WNID_NAMES = (
    "tench", "goldfish", "great white shark", "tiger shark", "hammerhead shark", "electric ray", "stingray", "rooster",
    "hen", "ostrich",
)  # fmt: skip


# --- real split files


@pytest.mark.parametrize("name", REAL)
def test_a_real_split_file_has_the_sizes_and_the_class_names_of_its_entry(name, shared, tmp_path):
    entry = STORED[name]
    (tmp_path / entry.split_file).symlink_to(shared / "data" / "splits" / entry.split_file)
    pools, names = read_stored(entry, tmp_path, seed=1, rng=random.Random(1))
    assert (*(len(pools[split]) for split in ("train", "val", "test")), len(names)) == entry.sizes
    for items in pools.values():
        assert {(item.label, item.classname) for item in items} == set(enumerate(names))
    expected = json.loads((shared / "data" / "classnames" / f"{REAL[name]}.json").read_text())
    assert names == expected
    assert all(item.path.startswith(f"{entry.images}/" if entry.images else "cars_") for item in pools["train"])


# --- parity


@pytest.fixture(scope="session")
def golden(shared: Path) -> dict:
    return json.loads((shared / "golden" / "golden_fewshot.json").read_text())


@pytest.fixture(scope="session")
def golden_tree(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generated tree; nothing is to be written into it."""
    tree = tmp_path_factory.mktemp("golden")
    command = [sys.executable, str(shared / "golden" / "make_data.py"), str(tree)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return tree


class Roots:
    """Makes data roots that share the images of the golden tree."""

    def __init__(self, tree: Path, splits: Path, parent: Path) -> None:
        self.tree, self.splits, self.parent = tree, splits, parent
        self.count = 0

    def __call__(self, golden_name: str, scenario: str) -> str:
        """A new root with one data set: "presplit" with its split file, "fresh_sorted" without."""
        self.count += 1
        folder = STORED[GOLDEN[golden_name]].folder
        target = self.parent / str(self.count) / folder
        target.mkdir(parents=True)
        for path in (self.tree / folder).iterdir():
            (target / path.name).symlink_to(path)
        if scenario == "presplit":
            for path in (self.splits / golden_name).iterdir():
                (target / path.name).symlink_to(path)
        return str(target.parent)


@pytest.fixture
def new_root(golden_tree: Path, shared: Path, tmp_path: Path) -> Roots:
    return Roots(golden_tree, shared / "golden" / "splits", tmp_path)


def rows(dataset: Dataset, split: str) -> list[list]:
    return [list(item) for item in dataset.splits[split]]


def assert_is_coops(dataset: Dataset, expected: dict) -> None:
    assert rows(dataset, "train") == expected["train"]
    assert rows(dataset, "val") == expected["val"]
    test = rows(dataset, "test")
    if "test" in expected:
        assert test == expected["test"]
        assert list(dataset.classnames) == expected["classnames"]
    else:
        assert len(test) == expected["n_test"]
        assert hashlib.sha1(json.dumps(test).encode()).hexdigest() == expected["test_sha1"]
    assert all(item.classname == dataset.classnames[item.label] for item in (*dataset.train, *dataset.test))


SCENARIOS = [("presplit", name) for name in SPLIT_SETS] + [("fresh_sorted", name) for name in GOLDEN]


@pytest.mark.parametrize(("scenario", "name"), SCENARIOS)
def test_train_val_and_test_are_those_of_the_real_coop_item_for_item(scenario, name, golden, new_root):
    compared = 0
    for shots, by_seed in golden["fewshot"][scenario][name].items():
        for seed, expected in by_seed.items():
            root = new_root(name, scenario)
            for _ in range(2):  # the second time, also a fresh data set has the split file of the first
                assert_is_coops(load_few_shot(GOLDEN[name], root, int(shots), int(seed)), expected)
                compared += 1
    assert compared == 12


@pytest.mark.parametrize("which", ["base", "new"])
@pytest.mark.parametrize("name", GOLDEN)
def test_halves_of_the_classes_are_those_of_the_real_coop_item_for_item(name, which, golden, new_root):
    compared = 0
    for shots, by_seed in golden["subsample"][name][which].items():
        for seed, expected in by_seed.items():
            root = new_root(name, expected["scenario"])
            assert_is_coops(load_few_shot(GOLDEN[name], root, int(shots), int(seed), which), expected)
            compared += 1
    assert compared == 3


@pytest.mark.parametrize("name", SPLIT_SETS)
def test_the_split_file_that_a_seed_leaves_is_that_of_the_real_coop(name, golden, new_root):
    entry = STORED[GOLDEN[name]]
    for seed, expected in golden["splits"]["fresh_sorted"][name].items():
        root = new_root(name, "fresh_sorted")
        load_few_shot(GOLDEN[name], root, 4, int(seed))
        assert json.loads((Path(root) / entry.folder / entry.split_file).read_text()) == expected


@pytest.mark.parametrize("name", SPLIT_SETS)
def test_another_seed_uses_the_split_file_that_the_first_left_and_the_first_still_selects_the_same(
    name, golden, new_root
):
    root = new_root(name, "fresh_sorted")
    first = load_few_shot(GOLDEN[name], root, 4, 1)
    second = load_few_shot(GOLDEN[name], root, 4, 2)
    assert second.test == first.test
    base = f"{STORED[GOLDEN[name]].folder}/{STORED[GOLDEN[name]].images}"
    pools = {
        split: [[f"{base}/{path}", label, called] for path, label, called in items]
        for split, items in golden["splits"]["fresh_sorted"][name]["1"].items()
    }
    rng, expected = random.Random(2), {}  # CoOp with seed 2 reads seed 1's file, and then draws
    for split in ("train", "val"):
        by_label: dict[int, list] = {}
        for row in pools[split]:
            by_label.setdefault(row[1], []).append(row)
        expected[split] = [row for items in by_label.values() for row in rng.sample(items, 4)]
    assert (rows(second, "train"), rows(second, "val")) == (expected["train"], expected["val"])
    again = load_few_shot(GOLDEN[name], root, 4, 1)
    assert (again.train, again.val, again.test) == (first.train, first.val, first.test)
    assert_is_coops(again, golden["fewshot"]["fresh_sorted"][name]["4"]["1"])


def test_the_first_seed_still_selects_the_same_after_images_were_added(golden, new_root):
    root = new_root("dtd", "fresh_sorted")
    folder = Path(root) / "dtd"
    (folder / "images").unlink()
    (folder / "images").mkdir()
    for path in (new_root.tree / "dtd" / "images").iterdir():
        (folder / "images" / path.name).mkdir()
        for image in path.iterdir():
            (folder / "images" / path.name / image.name).symlink_to(image)
    expected = golden["fewshot"]["fresh_sorted"]["dtd"]["4"]["1"]
    assert_is_coops(load_few_shot("DescribableTextures", root, 4, 1), expected)
    for number in range(9):  # the split file does not know them
        (folder / "images" / "banded" / f"added_{number}.jpg").touch()
    assert_is_coops(load_few_shot("DescribableTextures", root, 4, 1), expected)


def test_a_split_that_is_drawn_is_warned_of(new_root, caplog):
    root = new_root("dtd", "fresh_sorted")
    with caplog.at_level(logging.WARNING):
        load_dataset("DescribableTextures", root, seed=7)
    (message,) = caplog.messages
    assert "split_zhou_DescribableTextures.json was missing: drawn with seed 7 and written" in message
    assert "not the split of published numbers" in message
    assert message.endswith(f"datasets download DescribableTextures --root {root}")
    caplog.clear()
    load_dataset("DescribableTextures", root, seed=7)
    assert caplog.messages == []


def test_where_the_split_cannot_be_kept_it_is_drawn_all_the_same_and_nothing_half_written_is_left(
    golden, new_root, caplog, disk_full_after
):
    root = new_root("dtd", "fresh_sorted")
    before = sorted((Path(root) / "dtd").iterdir())
    with caplog.at_level(logging.WARNING), disk_full_after(1000):
        dataset = load_few_shot("DescribableTextures", root, 4, 1)
    assert_is_coops(dataset, golden["fewshot"]["fresh_sorted"]["dtd"]["4"]["1"])
    assert "every seed will draw a split, and a test set, of its own" in " ".join(caplog.messages)
    assert sorted((Path(root) / "dtd").iterdir()) == before


# The four variants, whose items the real CoOp's loaders gave on this tree as written here
VARIANTS = {
    "ImageNetV2": ("imagenetv2/imagenetv2-matched-frequency-format-val", range(10), 3, "v2_{folder}_{image}.jpeg"),
    "ImageNetSketch": ("imagenet-sketch/images", range(10), 4, "sketch_{image}.JPEG"),
    "ImageNetA": ("imagenet-adversarial/imagenet-a", (0, 2, 3, 5, 8, 9), 4, "adversarial_{image}.jpg"),
    "ImageNetR": ("imagenet-rendition/imagenet-r", (0, 1, 2, 4, 6, 7, 9), 4, "rendition_{image}.jpg"),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_of_imagenet_has_coops_items_and_class_order(name, golden_tree):
    base, classes, images, file = VARIANTS[name]
    folders = [str(number) if name == "ImageNetV2" else WNIDS[number] for number in classes]
    dataset = load_dataset(name, str(golden_tree))
    assert rows(dataset, "test") == [
        [f"{base}/{folder}/{file.format(folder=folder, image=image)}", label, WNID_NAMES[number]]
        for label, (number, folder) in enumerate(zip(classes, folders))
        for image in range(images)
    ]
    assert list(dataset.classnames) == [WNID_NAMES[number] for number in classes]
    assert dataset.train == dataset.val == []
    dataset.check_files()
    with pytest.raises(UserError, match=f"{name} has only test images: train on ImageNet with --target-domains"):
        load_few_shot(name, str(golden_tree), 1, 1)


# --- data that is missing or does not fit together


def test_a_data_set_that_is_not_there_is_an_error_that_says_where_it_was_expected(tmp_path):
    with pytest.raises(UserError) as error:
        load_dataset("Food101", str(tmp_path))
    assert str(error.value) == (
        f"Food101 is not in {tmp_path}/food-101; set --root to the folder that holds food-101/, or see python -m "
        f"trainers.hegraph datasets check Food101 --root {tmp_path}"
    )
    with pytest.raises(UserError, match="the few-shot protocol needs a seed from 0, got -1"):
        load_few_shot("Food101", str(tmp_path), 1, -1)


def test_an_empty_image_folder_is_an_error_and_no_empty_split_is_kept(tmp_path):
    (tmp_path / "dtd" / "images").mkdir(parents=True)  # as an interrupted download leaves it
    with pytest.raises(UserError, match=r"no split can be drawn instead: .*dtd/images holds no folder of a class; see"):
        load_few_shot("DescribableTextures", str(tmp_path), 1, 1)
    assert [path.name for path in (tmp_path / "dtd").iterdir()] == ["images"]


TRAIN = [["ant/1.jpg", 0, "ant"], ["ant/2.jpg", 0, "ant"], ["bee/1.jpg", 1, "bee"]]


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        ([], TRAIN, "there is no train image"),
        (TRAIN, [], "there is no test image"),
        ([["a.jpg", 1, "ant"], ["b.jpg", 2, "bee"]], [["c.jpg", 1, "ant"]], "no item has label 0"),
        (TRAIN, [["c.jpg", 2, "cow"]], r"images/c\.jpg has label 2 \('cow'\), and no training image has"),
        (TRAIN, [["c.jpg", 0, "bee"]], r"label 0 is both 'ant' and 'bee' \(images/c\.jpg\)"),
    ],
    ids=["no train", "no test", "labels from 1", "label only in test", "other name in test"],
)  # fmt: skip
def test_a_split_file_that_contradicts_itself_is_an_error_that_says_how(train, test, words, tmp_path):
    (tmp_path / "dtd").mkdir()
    split = {"train": train, "val": [], "test": test}
    (tmp_path / "dtd" / "split_zhou_DescribableTextures.json").write_text(json.dumps(split))
    with pytest.raises(UserError, match=rf"^DescribableTextures: .*{words}.*; see python -m .* check"):
        load_dataset("DescribableTextures", str(tmp_path))


def test_test_images_come_without_the_others_and_must_be_there(tmp_path):
    (tmp_path / "dtd" / "images").mkdir(parents=True)
    split = {"train": TRAIN, "val": [], "test": [["c.jpg", 1, "bee"], ["d.jpg", 0, "ant"]]}
    (tmp_path / "dtd" / "split_zhou_DescribableTextures.json").write_text(json.dumps(split))
    (tmp_path / "dtd" / "images" / "c.jpg").touch()
    dataset = load_test_images("dtd", str(tmp_path), 1, "new")
    assert (dataset.train, dataset.val, dataset.test) == ([], [], [("dtd/images/c.jpg", 0, "bee")])
    with pytest.raises(UserError, match=r"1 of 2 images are missing below .*: dtd/images/d\.jpg"):
        load_test_images("dtd", str(tmp_path), 1)
