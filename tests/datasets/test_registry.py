"""The registry: every entry is whole and agrees with the configuration files, and every other name finds its entry."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from trainers.hegraph.datasets import layouts, load_dataset
from trainers.hegraph.datasets.digits import DOMAINS, HALVES
from trainers.hegraph.datasets.loading import LOADERS
from trainers.hegraph.datasets.registry import ENTRIES, canonical_name, find_entry, stored_datasets
from trainers.hegraph.prompts.sentences import DESCRIPTIONS
from trainers.hegraph.utils.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs" / "datasets"

OURS = {"digits": "Digits", "folder": "ImageFolder", "digits_low": "DigitsLow", "digits_high": "DigitsHigh"}

# Train, val, test, classes; as published with CoOp, of those that have no real split file in test_loading.py
SIZES = {
    "Food101": (50500, 20200, 30300, 101), "SUN397": (15880, 3970, 19850, 397),
    "FGVCAircraft": (3334, 3333, 3333, 100),
}  # fmt: skip

STORED = stored_datasets()


def test_there_is_one_configuration_file_per_data_set_and_its_name_and_that_of_the_data_set_mean_the_same():
    assert set(ENTRIES) == {*STORED, *OURS.values(), *DOMAINS, *HALVES}
    names = {path.stem: yaml.safe_load(path.read_text())["DATASET"]["NAME"] for path in CONFIGS.glob("*.yaml")}
    assert sorted(names.values()) == sorted([*STORED, *OURS.values()]) and len(STORED) == 15  # CoOp's
    for stem, name in names.items():
        assert canonical_name(stem) == canonical_name(name) == canonical_name(name.upper()) == name


def test_an_entry_is_complete_and_its_names_are_no_others():
    for entry in ENTRIES.values():
        assert entry.templates and len(entry.templates) == len(entry.negative_templates)
        assert all(template.count("{}") == 1 for template in (*entry.templates, *entry.negative_templates))
        assert not entry.descriptions or (DESCRIPTIONS / f"{entry.descriptions}.json").is_file()
        assert not entry.train_on or find_entry(entry.train_on).train_on == ""
        assert (entry.loader in LOADERS) == (entry.name not in STORED)
    for entry in STORED.values():
        assert entry.descriptions and entry.sources and hasattr(layouts, f"read_{entry.layout}")
        assert entry.split_file in ("", f"split_zhou_{entry.name}.json")
        assert entry.publishes_split == bool(entry.split_file)
        assert entry.sizes.test > 0 and entry.sizes.classes > 0
        assert bool(entry.train_on) == (entry.sizes.train == 0)
        assert bool(entry.class_ids) == entry.name.startswith("ImageNet")
    assert {name: STORED[name].sizes for name in SIZES} == SIZES
    assert [name for name, entry in ENTRIES.items() if not entry.describe_by_default] == ["Digits"]
    assert {ENTRIES[name].train_on for name in DOMAINS} == {"Digits"}
    names = [name.lower().replace("_", "") for entry in ENTRIES.values() for name in (entry.name, *entry.aliases)]
    assert len(set(names)) == len(names)


def test_the_names_that_people_use_find_their_data_set_and_of_a_name_that_is_none_the_nearest_is_told():
    for given, name in {
        "Oxford-Pets": "OxfordPets", "pets": "OxfordPets", "cars": "StanfordCars", "Flowers102": "OxfordFlowers",
        "DTD": "DescribableTextures", "fgvc": "FGVCAircraft", "imagenet_v2": "ImageNetV2", "folder": "ImageFolder",
    }.items():  # fmt: skip
        assert canonical_name(given) == find_entry(given).name == name
    assert (canonical_name("OxfordPet"), find_entry("OxfordPet"), find_entry("")) == ("OxfordPet", None, None)
    with pytest.raises(UserError, match="unknown data set 'OxfordPet'; did you mean 'OxfordPets'"):
        load_dataset("OxfordPet")
