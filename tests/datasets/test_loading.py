"""Registry, published split files, parity with CoOp, the few-shot protocol, split files and CoOp's pickles.

golden_fewshot.json has the samples of the real CoOp and Dassl on the tree of make_data.py; README.md in the same folder
describes the run. Pickles are written with a class of the name and module of Dassl's, which reproduces the pickles of
the real CoOp (ff61507) byte for byte.
"""

import errno
import hashlib
import json
import logging
import os
import pickle
import random
import subprocess
import sys
import threading
import time
import types
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml
from dataset_files import make, write

from trainers.hegraph.datasets import layouts, splits
from trainers.hegraph.datasets.base import Dataset
from trainers.hegraph.datasets.digits import DOMAINS, HALVES
from trainers.hegraph.datasets.loading import LOADERS, load_dataset, load_few_shot, read_stored
from trainers.hegraph.datasets.registry import ENTRIES, Entry, canonical_name, find_entry, stored_datasets
from trainers.hegraph.datasets.splits import (
    FewShotSample,
    Item,
    read_coop_pickle,
    read_random_split,
    read_split_file,
    sample_few_shot,
    subsample_labels,
    write_split,
)
from trainers.hegraph.features.prompts.sentences import DESCRIPTIONS
from trainers.hegraph.utils.errors import UserError
from trainers.hegraph.utils.file_lock import FileLock

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

EMBEDDED = ("Digits", "DigitScenes")


# --- the list of all data sets


def test_each_data_set_has_a_configuration_file():
    assert set(ENTRIES) == {*STORED, *EMBEDDED, "ImageFolder", *DOMAINS, *HALVES} and len(STORED) == 15  # CoOp's
    files = (Path(__file__).parents[2] / "configs" / "datasets").glob("*.yaml")
    names = {path.stem: yaml.safe_load(path.read_text())["DATASET"]["NAME"] for path in files}
    assert sorted(names.values()) == sorted([*STORED, *EMBEDDED, "ImageFolder", "ImageFolder", *HALVES])
    for given, name in {
        **names, "Oxford-Pets": "OxfordPets", "pets": "OxfordPets", "cars": "StanfordCars", "fgvc": "FGVCAircraft",
        "Flowers102": "OxfordFlowers", "DTD": "DescribableTextures", "imagenet_v2": "ImageNetV2",
    }.items():  # fmt: skip
        assert canonical_name(given) == canonical_name(name.upper()) == find_entry(given).name == name
    assert (canonical_name("OxfordPet"), find_entry("OxfordPet"), find_entry("")) == ("OxfordPet", None, None)
    with pytest.raises(UserError, match="unknown data set 'OxfordPet'; did you mean 'OxfordPets'"):
        load_dataset("OxfordPet")


def test_entries_are_complete_and_names_unique():
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
    assert [name for name, entry in ENTRIES.items() if not entry.describe_by_default] == [*EMBEDDED]
    assert {ENTRIES[name].train_on for name in DOMAINS} == {"Digits"}
    names = [name.lower().replace("_", "") for entry in ENTRIES.values() for name in (entry.name, *entry.aliases)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", REAL)
def test_published_split_file_matches_its_entry(name, shared, tmp_path):
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
    """The generated tree, which tests must not change."""
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
    for split in dataset.splits.keys() & expected.keys():
        assert rows(dataset, split) == expected[split]
    test = rows(dataset, "test")
    if "test" in expected:
        assert list(dataset.classnames) == expected["classnames"]
    else:
        assert (len(test), hashlib.sha1(json.dumps(test).encode()).hexdigest()) == (
            expected["n_test"], expected["test_sha1"],
        )  # fmt: skip
    assert all(item.classname == dataset.classnames[item.label] for item in (*dataset.train, *dataset.test))


@pytest.mark.parametrize("name", GOLDEN)
def test_few_shot_tasks_equal_those_of_coop(name, golden, new_root):
    scenarios = ("presplit", "fresh_sorted") if name != "imagenet" else ("fresh_sorted",)
    groups = [(scenario, "all", golden["fewshot"][scenario][name]) for scenario in scenarios]
    groups += [("", which, by_shots) for which, by_shots in golden["subsample"][name].items()]
    tasks = [
        (scenario or expected["scenario"], which, shots, seed, expected)
        for scenario, which, by_shots in groups
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


def test_random_split_is_written_with_a_warning(golden, new_root, caplog, disk_full_after):
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


@pytest.mark.parametrize("round_number", range(4))
def test_runs_that_start_together_get_one_split(tmp_path, monkeypatch, round_number):
    """Locks are those of the operating system, which also separate threads."""
    make(tmp_path, *(f"food-101/images/{name}/{number}.jpg" for name in ("ant", "bee") for number in range(9)))
    read = Entry.read

    def read_slowly(entry: Entry, folder: Path, rng: random.Random) -> dict[str, list[Item]]:
        pools = read(entry, folder, rng)
        time.sleep(0.02)  # so that the others start meanwhile
        return pools

    monkeypatch.setattr(Entry, "read", read_slowly)
    seeds = [1, 2, 1, 3]
    together = threading.Barrier(len(seeds))

    def load(seed: int) -> Dataset:
        together.wait()
        return load_few_shot("Food101", str(tmp_path), 2, seed)

    with ThreadPoolExecutor(len(seeds)) as threads:
        tasks = list(threads.map(load, seeds))
    assert all(task.test == tasks[0].test for task in tasks)
    assert [task.splits for task in tasks] == [
        load_few_shot("Food101", str(tmp_path), 2, seed).splits for seed in seeds
    ]
    left = {path.name for path in (tmp_path / "food-101").iterdir()}
    assert left == {"images", "split_zhou_Food101.json", "split_zhou_Food101.json.drawn"}


def test_split_is_written_after_its_record(tmp_path, monkeypatch):
    """A process that finds the split draws the few-shot task of the process that wrote it."""
    path = tmp_path / "split.json"
    write_json = splits.write_json

    def check(file: Path, value: object) -> None:
        assert not path.exists()
        write_json(file, value)

    monkeypatch.setattr(splits, "write_json", check)
    write_split(path, "", {"train": [], "val": [], "test": []}, 5, random.Random(5).getstate())
    assert read_random_split(path).seed == 5


def test_split_of_an_unwritable_folder_is_drawn_by_each_seed(tmp_path, monkeypatch, caplog):
    make(tmp_path, *(f"food-101/images/{name}/{number}.jpg" for name in ("ant", "bee") for number in range(9)))
    refusal = OSError(errno.EACCES, os.strerror(errno.EACCES))
    monkeypatch.setattr(FileLock, "acquire", Mock(side_effect=refusal))
    first, second = (load_few_shot("Food101", str(tmp_path), 2, seed) for seed in (1, 2))
    assert first.test != second.test and [path.name for path in (tmp_path / "food-101").iterdir()] == ["images"]
    assert all("Permission denied" in line and "each seed will have its own" in line for line in caplog.messages)


def test_split_of_another_seed_keeps_the_generator(tmp_path):
    make(tmp_path, *(f"food-101/images/{name}/{number}.jpg" for name in ("ant", "bee") for number in range(9)))
    load_few_shot("Food101", str(tmp_path), 2, seed=1)  # writes the split
    generator = random.Random(2)
    read_stored(find_entry("Food101"), tmp_path / "food-101", 2, generator)
    assert generator.getstate() == random.Random(2).getstate()


@pytest.mark.parametrize("name", VARIANTS)
def test_imagenet_variant_has_items_of_coop(name, golden_tree):
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


@pytest.mark.parametrize(("name", "seed", "code", "words"), [
    ("Food101", 1, "", "/food-101; set --root to the folder"),
    ("Food101", -1, "seed", "needs a seed from 0, got -1"),
    ("DigitsNoisy", 0, "", "DigitsNoisy has only test images: train on Digits with --target-domains"),
    ("DescribableTextures", 1, "dataset.incomplete", "DescribableTextures: there is no train image; see"),
])  # fmt: skip
def test_unloadable_data_sets_are_refused(name, seed, code, words, tmp_path, refused):
    (tmp_path / "dtd" / "images").mkdir(parents=True)  # as an interrupted download leaves it
    with refused(code, words):
        load_few_shot(name, str(tmp_path), 1, seed)
    assert [path.name for path in (tmp_path / "dtd").iterdir()] == ["images"]


# --- the protocol


def select(train: list[int], val: list[int], shots: int, seed: int) -> FewShotSample:
    return sample_few_shot(train, val, shots, random.Random(seed))


def test_classes_are_sampled_in_order_of_appearance():
    train, val = [2, 0, 2, 1, 0, 2, 1, 1], [1, 1, 0, 2, 0, 2]
    rng = random.Random(5)  # as after Dassl's set_random_seed(5)
    expected_train = rng.sample([0, 2, 5], 2) + rng.sample([1, 4], 2) + rng.sample([3, 6, 7], 2)
    expected_val = rng.sample([0, 1], 2) + rng.sample([2, 4], 2) + rng.sample([3, 5], 2)
    state = random.getstate()
    assert select(train, val, shots=2, seed=5) == FewShotSample(expected_train, expected_val)
    assert random.getstate() == state  # the global generator is not touched
    assert [(len(s.train), len(s.val)) for s in (select([0] * 9, [0] * 9, n, 1) for n in (4, 8))] == [(4, 4), (8, 4)]


def test_small_class_contributes_all_items(caplog):
    rng = random.Random(3)
    expected = [0, 4, *rng.sample([1, 2, 3, 5], 3), *rng.sample([6, 7, 8], 3)]  # 3 of 3 are sampled, as in CoOp
    assert select([1, 0, 0, 0, 1, 0, 2, 2, 2], [], shots=3, seed=3).train == expected
    assert caplog.messages == ["1 of 3 classes have fewer than 3 training images (minimum: 2), all of which are used"]


def test_minus_one_shots_select_all(caplog, refused):
    rng = random.Random(1)
    assert sample_few_shot([1, 0, 1], [0, 1], -1, rng) == FewShotSample([0, 1, 2], [0, 1])
    assert (rng.getstate(), caplog.messages) == (random.Random(1).getstate(), [])
    with refused("shots", "-1 for all, got 0"):
        select([0, 1], [], 0, seed=1)


def test_base_and_new_halve_the_labels(refused):
    assert [subsample_labels([9, 2, 0, 1, 5, 2], half) for half in ("base", "new")] == [[0, 1, 2], [5, 9]]
    with refused("", "SUBSAMPLE_CLASSES new is empty: there are 1 classes"):
        subsample_labels([3, 3], "new")
    with refused("unknown", "'basis'; did you mean 'base'"):
        subsample_labels([3, 4], "basis")


# --- split files


GOOD = '["a/1.jpg", 0, "ant"], ["b/1.jpg", 1, "bee"]'
FORM = "is not a split file: expected train, val and test"


@pytest.mark.parametrize(("train", "test", "words"), [
    ("0", "", FORM), ('["a", 0]', "", FORM), ('["a", true, "ant"]', "", FORM), ('["a", -1, "ant"]', "", FORM),
    ('], "train": [', "", r"split\.json is damaged or not JSON"),
    (GOOD, '["./a/1.jpg", 0, "ant"]', "lists ./a/1.jpg in train with the label 0 and in test with the label 0"),
    (f'{GOOD}, ["b/../a/1.jpg", 1, "bee"]', "", "/a/1.jpg in train with the label 0 and in train with the label 1"),
])  # fmt: skip
def test_invalid_split_files_are_refused(tmp_path, train, test, words):
    write(tmp_path / "split.json", f'{{"train": [{train}], "val": [], "test": [{test}]}}')
    with pytest.raises(UserError, match=words):
        read_split_file(tmp_path / "split.json", "")


def test_split_file_is_read_with_a_prefix(tmp_path):
    write(tmp_path / "split.json", f'{{"train": [{GOOD}], "val": [], "test": []}}')
    expected = {"train": [("x/a/1.jpg", 0, "ant"), ("x/b/1.jpg", 1, "bee")], "val": [], "test": []}
    assert read_split_file(tmp_path / "split.json", "x/") == expected


def test_record_of_random_split_follows_its_file(tmp_path):
    path, rng = tmp_path / "split.json", random.Random(5)
    rng.random()
    rng.gauss(0, 1)  # changes the state for the next number
    assert read_random_split(path) is None
    write_split(path, "", {"train": [Item("a.jpg", 0, "ant")], "val": [], "test": []}, 5, rng.getstate())
    record = read_random_split(path)
    assert (record.seed, record.state) == (5, rng.getstate())
    record_file = tmp_path / "split.json.drawn"
    content = json.loads(record_file.read_text())
    record_file.write_text(json.dumps(content | {"state": [3, [1, 2], None]}))
    with pytest.raises(UserError, match=r"split\.json\.drawn is damaged .*; delete it, and also the split file"):
        read_random_split(path)
    record_file.write_text(json.dumps(content))
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
    """Object that is pickled as a call of a function."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


Datum.__module__ = Subclass.__module__ = MODULE


def dump(content: Any, protocol: int = 5) -> bytes:
    """Pickle as in a process that has imported Dassl."""
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


def test_coop_pickle_is_read_in_order(tmp_path):
    for protocol in (2, 5):
        assert read(tmp_path, dump(CONTENT, protocol)) == READ
    for path in ("/dtd/backup/dtd/images/a.jpg", "C:\\data\\dtd\\images\\a.jpg"):
        assert read(tmp_path, dump({"train": [Datum(path, 0, "ant")]})) == {"train": [("dtd/images/a.jpg", 0, "ant")]}


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("place", ["whole", "path", "split"])
def test_calls_in_pickles_are_refused(tmp_path, place, protocol):
    trace = tmp_path / "it-ran"
    call = Calls(os.system, f"touch {trace}")
    contents = {"whole": call, "path": {"train": [Datum(call, 0, "ant")]}, "split": {**CONTENT, "more": call}}
    with pytest.raises(UserError, match="nothing in it was run"):
        read(tmp_path, dump(contents[place], protocol))
    assert not trace.exists()
    pickle.loads(pickle.dumps(call))  # and it would have been made
    assert trace.exists()


def _text(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


@pytest.mark.parametrize(("content", "words"), [
    ({"train": [OrderedDict()]}, "collections.OrderedDict"),
    ({"train": [Datum("/dtd/a.jpg", "0", "ant")]}, "lacks path, label or name"),
    ({"train": [Datum("/dtdx/a.jpg", 0, "ant")]}, "/dtdx/a.jpg is not in a folder dtd"),
    ({"train": [datum("../dtd/a.jpg", 0, "ant")]}, "../dtd/a.jpg is not in a folder dtd"),
    ({"train": [*CONTENT["train"], datum("ant/1.jpg", 1, "bee")]}, f"{PKL} lists"),
    ([1, 2], "it contains no training images"),
    ({"train": [Subclass("/dtd/a.jpg", 0, "ant")]}, f"it contains {MODULE}.Subclass"),
    (dump(CONTENT).replace(MODULE.encode(), b"x" * len(MODULE)), f"it contains {'x' * len(MODULE)}.Datum"),
    (b"\x80\x04" + _text(MODULE) + _text("Datum.__init__.__globals__") + b"\x93.", "Datum.__init__"),
    (dump(CONTENT)[:-20], ""),
    (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f", ""),  # a text of 2**63 bytes
    (b"Psomething\n.", ""),  # a persistent id
], ids=range(12))  # fmt: skip
def test_invalid_pickles_are_refused(tmp_path, content, words, refused):
    code, first = (
        ("", "") if words == f"{PKL} lists" else ("file.damaged", f"{tmp_path}/{PKL} is damaged or not a pickle")
    )
    with refused(code, first, words):
        read(tmp_path, content if isinstance(content, bytes) else dump(content))


# --- in a data root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """CoOp's DTD with two classes of images 1 to 4 for training, 5 and 6 for val, 7 and 8 for testing."""
    numbers = {"train": (1, 2, 3, 4), "val": (5, 6), "test": (7, 8)}
    classes = [(0, "ant"), (1, "bee")]
    rows = {split: [[f"{name}/{n}.jpg", y, name] for y, name in classes for n in of] for split, of in numbers.items()}
    write(tmp_path / "dtd" / "split_zhou_DescribableTextures.json", json.dumps(rows))
    return make(tmp_path, *(f"dtd/images/{path}" for split in rows.values() for path, *_ in split))


def load(root: Path, shots: int = 1, seed: int = 1) -> Dataset:
    return load_few_shot("DescribableTextures", str(root), shots, seed)


def test_stored_sample_of_coop_has_priority(root, caplog):
    tasks = [(1, 1), (1, 2), (2, 1), (-1, 1)]
    sampled = {task: load(root, *task) for task in tasks}
    path = write(root / "dtd" / "split_fewshot" / PKL, dump(CONTENT))
    caplog.set_level(logging.INFO)
    for task in tasks:
        expected = READ | {"test": sampled[task].test} if task == (1, 1) else sampled[task].splits
        assert load(root, *task).splits == expected
    assert sampled[1, 1].train != READ["train"]
    assert caplog.messages.count(f"{path}: using CoOp's few-shot sample") == 1


def test_stored_sample_of_coop_is_not_unequal(root):
    write(root / "dtd" / "split_fewshot" / PKL, dump(CONTENT))
    numbers = ",".join("1" * len(load_dataset("DescribableTextures", str(root)).classnames))
    assert load_few_shot("DescribableTextures", str(root), 1, 1, shots_per_class=numbers).train != READ["train"]


def test_pool_of_a_half_has_its_classes_only():
    task = load_few_shot("Digits", "", 4, 1, "base", pool=True)
    assert {item.classname for item in task.pool} == {*task.classnames} == {"zero", "one", "two", "three", "four"}


@pytest.mark.parametrize(("changes", "words"), [
    ({"train": [datum(*ANT), datum("bee/1.jpg", 7, "bee")]}, "bee/1.jpg is 'bee'"),
    ({"val": [datum("bee/1.jpg", 1, "wasp")]}, "bee/1.jpg is 'wasp'"),
    ({"train": [datum("ant/7.jpg", 0, "ant")]}, "ant/7.jpg is a test image"),
    ({"val": None}, "it has no val"),
])  # fmt: skip
def test_coop_sample_of_another_split_is_refused(root, changes, words, refused):
    content = {split: data for split, data in {**CONTENT, **changes}.items() if data is not None}
    path = write(root / "dtd" / "split_fewshot" / PKL, dump(content))
    with refused("split.sample", f"{path} was sampled from another split; delete it", words):
        load(root)
