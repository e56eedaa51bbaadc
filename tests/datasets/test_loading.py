"""The data sets below the data root: their list, real split files, and parity with the real CoOp on the golden tree.

golden_fewshot.json holds what the real CoOp and Dassl select on the tree that the make_data.py beside it makes; its
README.md says how that was run.
"""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from trainers.hegraph.datasets import Dataset, layouts, load_dataset, load_few_shot
from trainers.hegraph.datasets.digits import DOMAINS, HALVES
from trainers.hegraph.datasets.loading import LOADERS, read_stored
from trainers.hegraph.datasets.registry import ENTRIES, canonical_name, find_entry, stored_datasets
from trainers.hegraph.prompts.sentences import DESCRIPTIONS
from trainers.hegraph.utils.errors import UserError

STORED = stored_datasets()
CHECK = "python -m trainers.hegraph datasets check"

# Real split files, and the list of class names that goes with each
REAL = {
    "Caltech101": "caltech101", "DescribableTextures": "dtd", "EuroSAT": "eurosat", "OxfordFlowers": "oxford_flowers",
    "OxfordPets": "oxford_pets", "StanfordCars": "stanford_cars", "UCF101": "ucf101",
}  # fmt: skip

# Train, val, test, classes; as published with CoOp, of those that have no real split file here
SIZES = {
    "Food101": (50500, 20200, 30300, 101), "SUN397": (15880, 3970, 19850, 397), "FGVCAircraft": (3334, 3333, 3333, 100)
}  # fmt: skip

# Golden name -> ours
GOLDEN = {
    "caltech101": "Caltech101", "oxford_pets": "OxfordPets", "eurosat": "EuroSAT", "dtd": "DescribableTextures",
    "imagenet": "ImageNet",
}  # fmt: skip
SPLIT_SETS = [name for name in GOLDEN if name != "imagenet"]  # those that have a split file

# The four variants, whose items the real CoOp's loaders gave on the golden tree as written here
VARIANTS = {
    "ImageNetV2": ("imagenetv2/imagenetv2-matched-frequency-format-val", range(10), 3, "v2_{folder}_{image}.jpeg"),
    "ImageNetSketch": ("imagenet-sketch/images", range(10), 4, "sketch_{image}.JPEG"),
    "ImageNetA": ("imagenet-adversarial/imagenet-a", (0, 2, 3, 5, 8, 9), 4, "adversarial_{image}.jpg"),
    "ImageNetR": ("imagenet-rendition/imagenet-r", (0, 1, 2, 4, 6, 7, 9), 4, "rendition_{image}.jpg"),
}


# --- the list of all data sets

OURS = {"Digits", "ImageFolder", "DigitsLow", "DigitsHigh"}


def test_there_is_one_configuration_file_per_data_set_and_its_name_and_that_of_the_data_set_mean_the_same():
    assert set(ENTRIES) == {*STORED, *OURS, *DOMAINS, *HALVES} and len(STORED) == 15  # CoOp's
    files = (Path(__file__).parents[2] / "configs" / "datasets").glob("*.yaml")
    names = {path.stem: yaml.safe_load(path.read_text())["DATASET"]["NAME"] for path in files}
    assert sorted(names.values()) == sorted([*STORED, *OURS])
    for given, name in {
        **names, "Oxford-Pets": "OxfordPets", "pets": "OxfordPets", "cars": "StanfordCars", "fgvc": "FGVCAircraft",
        "Flowers102": "OxfordFlowers", "DTD": "DescribableTextures", "imagenet_v2": "ImageNetV2",
    }.items():  # fmt: skip
        assert canonical_name(given) == canonical_name(name.upper()) == find_entry(given).name == name
    assert (canonical_name("OxfordPet"), find_entry("OxfordPet"), find_entry("")) == ("OxfordPet", None, None)
    with pytest.raises(UserError, match="unknown data set 'OxfordPet'; did you mean 'OxfordPets'"):
        load_dataset("OxfordPet")


def test_an_entry_is_complete_and_its_names_are_no_others():
    for entry in ENTRIES.values():
        assert len(entry.templates) == len(entry.negative_templates) > 0
        assert all(template.count("{}") == 1 for template in (*entry.templates, *entry.negative_templates))
        assert not entry.descriptions or (DESCRIPTIONS / f"{entry.descriptions}.json").is_file()
        assert not entry.train_on or find_entry(entry.train_on).train_on == ""
        assert (entry.loader in LOADERS) == (entry.name not in STORED)
    for entry in STORED.values():
        assert entry.descriptions and entry.sources and hasattr(layouts, f"read_{entry.layout}")
        assert entry.split_file in ("", f"split_zhou_{entry.name}.json")
        assert bool(entry.train_on) == (entry.sizes.train == 0)
        assert bool(entry.class_ids) == entry.name.startswith("ImageNet")
    assert {name: STORED[name].sizes for name in SIZES} == SIZES
    assert [name for name, entry in ENTRIES.items() if not entry.describe_by_default] == ["Digits"]
    assert {ENTRIES[name].train_on for name in DOMAINS} == {"Digits"}
    names = [name.lower().replace("_", "") for entry in ENTRIES.values() for name in (entry.name, *entry.aliases)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", REAL)
def test_a_real_split_file_has_the_sizes_and_the_class_names_of_its_entry(name, shared, tmp_path):
    entry = STORED[name]
    (tmp_path / entry.split_file).symlink_to(shared / "data" / "splits" / entry.split_file)
    pools, names = read_stored(entry, tmp_path, seed=1, rng=random.Random(1))
    assert (*(len(pools[split]) for split in ("train", "val", "test")), len(names)) == entry.sizes
    for items in pools.values():
        assert {(item.label, item.classname) for item in items} == set(enumerate(names))
    assert names == json.loads((shared / "data" / "classnames" / f"{REAL[name]}.json").read_text())
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


@pytest.fixture
def new_root(golden_tree: Path, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], str]:
    """Makes a data root with a data set of the golden tree: "presplit" with its split file, "fresh_sorted" without."""

    def make(name: str, scenario: str) -> str:
        folder = STORED[GOLDEN[name]].folder
        target = tmp_path_factory.mktemp("root") / folder
        target.mkdir()
        splits = (shared / "golden" / "splits" / name).iterdir() if scenario == "presplit" else ()
        for path in (*(golden_tree / folder).iterdir(), *splits):
            (target / path.name).symlink_to(path)
        return str(target.parent)

    return make


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


@pytest.mark.parametrize("name", GOLDEN)
def test_tasks_halves_of_the_classes_and_drawn_splits_are_those_of_the_real_coop_item_for_item(name, golden, new_root):
    tasks = [
        (scenario, "all", shots, seed, expected)
        for scenario in (("presplit", "fresh_sorted") if name in SPLIT_SETS else ("fresh_sorted",))
        for shots, by_seed in golden["fewshot"][scenario][name].items()
        for seed, expected in by_seed.items()
    ] + [
        (expected["scenario"], which, shots, seed, expected)
        for which, by_shots in golden["subsample"][name].items()
        for shots, by_seed in by_shots.items()
        for seed, expected in by_seed.items()
    ]
    assert len(tasks) == (18 if name in SPLIT_SETS else 12)
    for scenario, which, shots, seed, expected in tasks:
        root = new_root(name, scenario)
        for _ in range(2):  # the second time, also a fresh data set has the split file of the first
            assert_is_coops(load_few_shot(GOLDEN[name], root, int(shots), int(seed), which), expected)
        if scenario == "fresh_sorted" and (split_file := STORED[GOLDEN[name]].split_file):
            listed = json.loads((Path(root) / STORED[GOLDEN[name]].folder / split_file).read_text())
            assert listed == golden["splits"]["fresh_sorted"][name][seed]


def test_a_split_that_is_drawn_is_warned_of_and_where_it_cannot_be_kept_nothing_half_written_is_left(
    golden, new_root, caplog, disk_full_after
):
    root = new_root("dtd", "fresh_sorted")
    before = sorted((Path(root) / "dtd").iterdir())
    with disk_full_after(1000):
        dataset = load_few_shot("DescribableTextures", root, 4, 1)
    assert_is_coops(dataset, golden["fewshot"]["fresh_sorted"]["dtd"]["4"]["1"])
    assert "every seed will draw a split, and a test set, of its own" in " ".join(caplog.messages)
    assert sorted((Path(root) / "dtd").iterdir()) == before
    caplog.clear()
    for _ in range(2):  # the second time, the file is there
        load_dataset("DescribableTextures", root, seed=7)
    (message,) = caplog.messages
    assert "split_zhou_DescribableTextures.json was missing: drawn with seed 7 and written" in message
    assert message.endswith(f"It is not the published split: {CHECK} DescribableTextures --root {root}")


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_of_imagenet_has_coops_items_and_class_order(name, golden_tree):
    base, classes, images, file = VARIANTS[name]
    lines = (golden_tree / "imagenet" / "classnames.txt").read_text().splitlines()
    ids, names = zip(*(line.split(" ", 1) for line in lines))
    folders = [str(number) if name == "ImageNetV2" else ids[number] for number in classes]
    dataset = load_dataset(name, str(golden_tree))
    assert rows(dataset, "test") == [
        [f"{base}/{folder}/{file.format(folder=folder, image=image)}", label, names[number]]
        for label, (number, folder) in enumerate(zip(classes, folders))
        for image in range(images)
    ]
    assert list(dataset.classnames) == [names[number] for number in classes]
    assert list(dataset.class_ids)[: len(classes)] == [ids[number] for number in classes]
    assert dataset.train == dataset.val == []


# --- data that is missing or does not fit together


def test_a_data_set_that_is_not_there_is_an_error_that_says_where_it_was_expected(tmp_path):
    with pytest.raises(UserError, match=rf"Food101 is not in {tmp_path}/food-101; .* datasets check Food101 --root"):
        load_dataset("Food101", str(tmp_path))
    with pytest.raises(UserError, match="needs a seed from 0, got -1"):
        load_few_shot("Food101", str(tmp_path), 1, -1)
    with pytest.raises(UserError, match="DigitsNoisy has only test images: train on Digits with --target-domains"):
        load_few_shot("DigitsNoisy", "", 1, 0)
    (tmp_path / "dtd" / "images").mkdir(parents=True)  # as an interrupted download leaves it
    with pytest.raises(UserError, match=r"^DescribableTextures: there is no train image; see"):
        load_few_shot("DescribableTextures", str(tmp_path), 1, 1)
    assert [path.name for path in (tmp_path / "dtd").iterdir()] == ["images"]
