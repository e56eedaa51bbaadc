"""The data sets below the data root: their list, real split files, and parity with the real CoOp on the golden tree;
the few-shot protocol against plain `random`; split files; CoOp's pickles, in which nothing is ever run.

golden_fewshot.json holds what the real CoOp and Dassl select on the tree that the make_data.py beside it makes; its
README.md says how that was run. Pickles are made with a class that calls itself Dassl's. Read and dumped so, the
pickles of the real CoOp (ff61507) come out byte for byte, so these are like them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import random
import subprocess
import sys
import types
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from dataset_files import make, write

from trainers.hegraph.datasets import (
    Dataset,
    FewShotSample,
    Item,
    layouts,
    load_dataset,
    load_few_shot,
    sample_few_shot,
    subsample_labels,
)
from trainers.hegraph.datasets.digits import DOMAINS, HALVES
from trainers.hegraph.datasets.loading import LOADERS, read_stored
from trainers.hegraph.datasets.registry import ENTRIES, canonical_name, find_entry, stored_datasets
from trainers.hegraph.datasets.splits import read_coop_pickle, read_random_split, read_split_file, write_random_split
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

# The four variants, whose items the real CoOp's loaders gave on the golden tree as written here
VARIANTS = {
    "ImageNetV2": ("imagenetv2/imagenetv2-matched-frequency-format-val", range(10), 3, "v2_{folder}_{image}.jpeg"),
    "ImageNetSketch": ("imagenet-sketch/images", range(10), 4, "sketch_{image}.JPEG"),
    "ImageNetA": ("imagenet-adversarial/imagenet-a", (0, 2, 3, 5, 8, 9), 4, "adversarial_{image}.jpg"),
    "ImageNetR": ("imagenet-rendition/imagenet-r", (0, 1, 2, 4, 6, 7, 9), 4, "rendition_{image}.jpg"),
}


# --- the list of all data sets


def test_there_is_one_configuration_file_per_data_set_and_its_name_and_that_of_the_data_set_mean_the_same():
    assert set(ENTRIES) == {*STORED, "Digits", "ImageFolder", *DOMAINS, *HALVES} and len(STORED) == 15  # CoOp's
    files = (Path(__file__).parents[2] / "configs" / "datasets").glob("*.yaml")
    names = {path.stem: yaml.safe_load(path.read_text())["DATASET"]["NAME"] for path in files}
    assert sorted(names.values()) == sorted([*STORED, "Digits", "ImageFolder", *HALVES])
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
        for scenario in (("presplit", "fresh_sorted") if name != "imagenet" else ("fresh_sorted",))
        for shots, by_seed in golden["fewshot"][scenario][name].items()
        for seed, expected in by_seed.items()
    ] + [
        (expected["scenario"], which, shots, seed, expected)
        for which, by_shots in golden["subsample"][name].items()
        for shots, by_seed in by_shots.items()
        for seed, expected in by_seed.items()
    ]
    assert len(tasks) == (18 if name != "imagenet" else 12)
    for scenario, which, shots, seed, expected in tasks:
        root = new_root(name, scenario)
        for _ in range(2):  # the second time, also a fresh data set has the split file of the first
            assert_is_coops(load_few_shot(GOLDEN[name], root, int(shots), int(seed), which), expected)
        if scenario == "fresh_sorted" and (split_file := STORED[GOLDEN[name]].split_file):
            listed = json.loads((Path(root) / STORED[GOLDEN[name]].folder / split_file).read_text())
            assert listed == golden["splits"]["fresh_sorted"][name][seed]


def test_a_split_that_is_drawn_is_warned_of_and_kept_whole_or_not(golden, new_root, caplog, disk_full_after):
    root = new_root("dtd", "fresh_sorted")
    before = sorted((Path(root) / "dtd").iterdir())
    with disk_full_after(1000):
        dataset = load_few_shot("DescribableTextures", root, 4, 1)
    assert_is_coops(dataset, golden["fewshot"]["fresh_sorted"]["dtd"]["4"]["1"])
    assert "each seed will have its own random split and test set" in " ".join(caplog.messages)
    assert sorted((Path(root) / "dtd").iterdir()) == before
    caplog.clear()
    for _ in range(2):  # the second time, the file is there
        load_dataset("DescribableTextures", root, seed=7)
    (message,) = caplog.messages
    assert "split_zhou_DescribableTextures.json was missing: wrote a random split with seed 7" in message
    assert message.endswith(f"not the published split: {CHECK} DescribableTextures --root {root}")


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
    assert load_few_shot("Digits", "", 1, "2").splits == load_few_shot("Digits", "", 1, 2).splits
    with pytest.raises(UserError, match="needs a seed from 0, got -1"):
        load_few_shot("Food101", str(tmp_path), 1, -1)
    with pytest.raises(UserError, match="DigitsNoisy has only test images: train on Digits with --target-domains"):
        load_few_shot("DigitsNoisy", "", 1, 0)
    (tmp_path / "dtd" / "images").mkdir(parents=True)  # as an interrupted download leaves it
    with pytest.raises(UserError, match=r"^DescribableTextures: there is no train image; see"):
        load_few_shot("DescribableTextures", str(tmp_path), 1, 1)
    assert [path.name for path in (tmp_path / "dtd").iterdir()] == ["images"]


# --- the protocol


def select(train: list[int], val: list[int], shots: int, seed: int) -> FewShotSample:
    """What a run with a seed selects from a split that is there."""
    return sample_few_shot(train, val, shots, random.Random(seed))


def test_classes_are_drawn_in_order_of_first_appearance_all_of_train_before_val_and_of_val_at_most_four():
    train, val = [2, 0, 2, 1, 0, 2, 1, 1], [1, 1, 0, 2, 0, 2]
    rng = random.Random(5)  # what Dassl's set_random_seed(5) makes of the module's own generator
    expected_train = rng.sample([0, 2, 5], 2) + rng.sample([1, 4], 2) + rng.sample([3, 6, 7], 2)
    expected_val = rng.sample([0, 1], 2) + rng.sample([2, 4], 2) + rng.sample([3, 5], 2)
    state = random.getstate()
    assert select(train, val, shots=2, seed=5) == FewShotSample(expected_train, expected_val)
    assert random.getstate() == state  # the global generator is not touched
    assert [(len(s.train), len(s.val)) for s in (select([0] * 9, [0] * 9, n, 1) for n in (4, 8))] == [(4, 4), (8, 4)]


def test_a_class_with_fewer_items_is_taken_whole_in_split_order_without_a_draw_and_warned_of(caplog):
    rng = random.Random(3)
    expected = [0, 4, *rng.sample([1, 2, 3, 5], 3), *rng.sample([6, 7, 8], 3)]  # 3 of 3 are drawn, as in CoOp
    assert select([1, 0, 0, 0, 1, 0, 2, 2, 2], [], shots=3, seed=3).train == expected
    assert caplog.messages == [
        "1 of 3 classes have fewer than 3 training images (minimum: 2) and contribute all of them"
    ]


def test_minus_one_shot_selects_all_in_split_order_without_a_draw(caplog):
    rng = random.Random(1)
    assert sample_few_shot([1, 0, 1], [0, 1], -1, rng) == FewShotSample([0, 1, 2], [0, 1])
    assert (rng.getstate(), caplog.messages) == (random.Random(1).getstate(), [])
    with pytest.raises(UserError, match="-1 for all, got 0$"):
        select([0, 1], [], 0, seed=1)


def test_base_is_the_first_half_of_the_labels_with_the_middle_one_and_new_the_rest():
    assert [subsample_labels([9, 2, 0, 1, 5, 2], half) for half in ("base", "new")] == [[0, 1, 2], [5, 9]]
    for labels, half, words in (
        ([3, 3], "new", "SUBSAMPLE_CLASSES new is empty: there are 1 classes"),
        ([3, 4], "basis", "'basis'; did you mean 'base'"),
    ):
        with pytest.raises(UserError, match=words):
            subsample_labels(labels, half)


# --- split files


def test_a_split_file_of_another_structure_or_with_an_image_in_two_places_is_an_error_that_names_it(tmp_path):
    good = '["a/1.jpg", 0, "ant"], ["b/1.jpg", 1, "bee"]'
    form = "is not a split file: expected train, val and test"
    for train, test, words in (
        ("0", "", form),
        ('["a", 0]', "", form),
        ('["a", true, "ant"]', "", form),
        ('["a", -1, "ant"]', "", form),
        ('], "train": [', "", r"split\.json is damaged or not JSON"),
        (good, '["./a/1.jpg", 0, "ant"]', "lists ./a/1.jpg in train with the label 0 and in test with the label 0"),
        (f'{good}, ["b/../a/1.jpg", 1, "bee"]', "", "/a/1.jpg in train with the label 0 and in train with the label 1"),
    ):
        write(tmp_path / "split.json", f'{{"train": [{train}], "val": [], "test": [{test}]}}')
        with pytest.raises(UserError, match=words):
            read_split_file(tmp_path / "split.json", "")
    write(tmp_path / "split.json", f'{{"train": [{good}], "val": [], "test": []}}')
    read = {"train": [("x/a/1.jpg", 0, "ant"), ("x/b/1.jpg", 1, "bee")], "val": [], "test": []}
    assert read_split_file(tmp_path / "split.json", "x/") == read


def test_how_a_split_was_drawn_is_known_until_the_file_changes(tmp_path):
    path, rng = tmp_path / "split.json", random.Random(5)
    rng.random()
    rng.gauss(0, 1)  # keeps a second number for the next time
    assert read_random_split(path) is None
    write_random_split(path, "", {"train": [Item("a.jpg", 0, "ant")], "val": [], "test": []}, 5, rng.getstate())
    drawn = read_random_split(path)
    assert (drawn.seed, drawn.state) == (5, rng.getstate())
    kept = tmp_path / "split.json.drawn"
    content = json.loads(kept.read_text())
    kept.write_text(json.dumps(content | {"state": [3, [1, 2], None]}))
    with pytest.raises(UserError, match=r"split\.json\.drawn is damaged .*; delete it, and also the split file"):
        read_random_split(path)
    kept.write_text(json.dumps(content))
    path.write_text(path.read_text() + " ")
    assert read_random_split(path) is None


# --- pickles

MODULE = "dassl.data.datasets.base_dataset"
PKL = "shot_1-seed_1.pkl"


class Datum:
    def __init__(self, impath: object, label: object, classname: object) -> None:
        self._impath, self._label, self._domain, self._classname = impath, label, 0, classname


class Subclass(Datum):
    pass


class Calls:
    """Pickles to a call of any function."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


Datum.__module__ = Subclass.__module__ = MODULE


def dump(content: Any, protocol: int = 5) -> bytes:
    """Pickles as in a process that has imported Dassl."""
    module = types.ModuleType(MODULE)
    module.Datum, module.Subclass = Datum, Subclass
    with pytest.MonkeyPatch.context() as patch:
        for name in ("dassl", "dassl.data", "dassl.data.datasets", MODULE):
            patch.setitem(sys.modules, name, module)
        return pickle.dumps(content, protocol)


def datum(path: str, label: int, name: str) -> Datum:
    return Datum(f"/home/somebody/data/dtd/images/{path}", label, name)


BEE, ANT, VAL = (("bee/2.jpg", 1, "bee"), ("ant/1.jpg", 0, "ant"), ("bee/5.jpg", 1, "bee"))
CONTENT = {"train": [datum(*BEE), datum(*ANT)], "val": [datum(*VAL)]}
READ = {split: [Item(f"dtd/images/{path}", *of) for path, *of in rows] for split, rows in
        {"train": (BEE, ANT), "val": (VAL,)}.items()}  # fmt: skip


def read(folder: Path, content: bytes) -> dict[str, list[Item]]:
    return read_coop_pickle(write(folder / PKL, content), "dtd")


def test_items_are_read_in_their_order_with_paths_from_the_folder_of_the_data_set(tmp_path):
    for protocol in (2, 5):
        assert read(tmp_path, dump(CONTENT, protocol)) == READ
    for path in ("/dtd/backup/dtd/images/a.jpg", "C:\\data\\dtd\\images\\a.jpg"):
        assert read(tmp_path, dump({"train": [Datum(path, 0, "ant")]})) == {"train": [("dtd/images/a.jpg", 0, "ant")]}


def test_a_call_is_refused_and_not_made_wherever_it_stands(tmp_path):
    trace = tmp_path / "it-ran"
    call = Calls(os.system, f"touch {trace}")
    for content in (call, {"train": [Datum(call, 0, "ant")]}, {**CONTENT, "more": call}):
        for protocol in (0, 2, 5):
            with pytest.raises(UserError, match="nothing in it was run"):
                read(tmp_path, dump(content, protocol))
            assert not trace.exists()
    pickle.loads(pickle.dumps(call))  # and it would have been made
    assert trace.exists()


def _text(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def test_other_content_and_a_damaged_pickle_are_refused_in_one_line(tmp_path):
    for content, words in (
        ({"train": [OrderedDict()]}, "collections.OrderedDict"),
        ({"train": [Datum("/dtd/a.jpg", "0", "ant")]}, "lacks path, label or name"),
        ({"train": [Datum("/dtdx/a.jpg", 0, "ant")]}, "/dtdx/a.jpg is not in a folder dtd"),
        ({"train": [datum("../dtd/a.jpg", 0, "ant")]}, "../dtd/a.jpg is not in a folder dtd"),
        ({"train": [*CONTENT["train"], datum("ant/1.jpg", 1, "bee")]}, ""),
        ([1, 2], "it contains no training images"),
        ({"train": [Subclass("/dtd/a.jpg", 0, "ant")]}, f"it contains {MODULE}.Subclass"),
        (dump(CONTENT).replace(MODULE.encode(), b"x" * len(MODULE)), f"it contains {'x' * len(MODULE)}.Datum"),
        (b"\x80\x04" + _text(MODULE) + _text("Datum.__init__.__globals__") + b"\x93.", "Datum.__init__"),
        (dump(CONTENT)[:-20], ""),
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f", ""),  # a text of 2**63 bytes
        (b"Psomething\n.", ""),  # a persistent id
    ):
        with pytest.raises(UserError) as error:
            read(tmp_path, content if isinstance(content, bytes) else dump(content))
        message = str(error.value)
        assert message.startswith(f"{tmp_path}/{PKL} is damaged or not a pickle") or f"{PKL} lists" in message
        assert words in message and "\n" not in message


# --- in a data root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """DTD of CoOp with two classes; of each, images 1 to 4 are for training, 5 and 6 for val, 7 and 8 for testing."""
    numbers = {"train": (1, 2, 3, 4), "val": (5, 6), "test": (7, 8)}
    classes = [(0, "ant"), (1, "bee")]
    rows = {split: [[f"{name}/{n}.jpg", y, name] for y, name in classes for n in of] for split, of in numbers.items()}
    write(tmp_path / "dtd" / "split_zhou_DescribableTextures.json", json.dumps(rows))
    return make(tmp_path, *(f"dtd/images/{path}" for split in rows.values() for path, *_ in split))


def load(root: Path, shots: int = 1, seed: int = 1) -> Dataset:
    return load_few_shot("DescribableTextures", str(root), shots, seed)


def test_what_coop_selected_before_wins_over_the_draw_of_these_shots_and_seed_and_this_is_said(root, caplog):
    tasks = [(1, 1), (1, 2), (2, 1), (-1, 1)]
    drawn = {task: load(root, *task) for task in tasks}
    path = write(root / "dtd" / "split_fewshot" / PKL, dump(CONTENT))
    caplog.set_level(logging.INFO)
    for task in tasks:
        expected = READ | {"test": drawn[task].test} if task == (1, 1) else drawn[task].splits
        assert load(root, *task).splits == expected
    assert drawn[1, 1].train != READ["train"]
    assert caplog.messages.count(f"{path}: using CoOp's few-shot sample") == 1


def test_a_pickle_of_another_split_is_an_error_that_names_it(root):
    for changes, words in (
        ({"train": [datum(*ANT), datum("bee/1.jpg", 7, "bee")]}, "bee/1.jpg is 'bee'"),
        ({"val": [datum("bee/1.jpg", 1, "wasp")]}, "bee/1.jpg is 'wasp'"),
        ({"train": [datum("ant/7.jpg", 0, "ant")]}, "ant/7.jpg is a test image"),
        ({"val": None}, "it has no val"),
    ):
        content = {split: data for split, data in {**CONTENT, **changes}.items() if data is not None}
        path = write(root / "dtd" / "split_fewshot" / PKL, dump(content))
        with pytest.raises(UserError) as error:
            load(root)
        assert f"{path} was sampled from another split; delete it" in str(error.value) and words in str(error.value)
