"""The list of all data sets, and how one is found by its name. CoOp's are rows of `entries.yaml`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from ..utils.errors import UserError, unknown
from . import imagenet, layouts
from .digits import DOMAINS, HALVES, load_digits_dataset
from .entry import ByHand, DatasetEntry, Entry, LoaderEntry, Member, Sizes, Source
from .own import NAME as OWN
from .own import load_own_images
from .splits import Pools

FILE = Path(__file__).with_name("entries.yaml")

# The layouts of `entries.yaml`. A reader takes the folder, a random generator, the folder of images and options
READERS: dict[str, Callable[..., Pools]] = {
    "class_folders": layouts.split_class_folders,
    "pets": layouts.read_pets,
    "cars": layouts.read_cars,
    "flowers": layouts.read_flowers,
    "aircraft": layouts.read_aircraft,
    "sun": layouts.read_sun,
    "ucf": layouts.read_ucf,
    "imagenet": imagenet.read_imagenet,
    "imagenet_v2": imagenet.read_imagenet_v2,
    "test_folders": imagenet.read_test_folders,
}
# Layout -> how the WordNet ids of the classes are read, where these tell the classes apart
CLASS_IDS: dict[str, Callable[..., list[str]]] = {
    "imagenet": imagenet.read_training_ids,
    "imagenet_v2": imagenet.read_all_class_ids,
    "test_folders": imagenet.read_class_ids,
}

DIGIT_PROMPTS: dict[str, Any] = {
    "templates": ('a photo of the number: "{}".', "a photo of a handwritten {}.", "a photo of a {}."),
    "negative_templates": ('a photo of the number: no "{}".', "a photo of no handwritten {}.", "a photo of no {}."),
}


def _digits() -> list[Entry]:
    """scikit-learn's digits: whole, as other domains, which have test images only, and in two halves."""
    # mini, the backbone made for the digits, has read captions only: on their val rows, descriptions cost it 1.5 points
    # (71.5% with templates, 70.0% with both)
    whole = LoaderEntry(
        name="Digits", load=load_digits_dataset, descriptions="digits", describe_by_default=False, **DIGIT_PROMPTS
    )
    loads = {name: partial(load_digits_dataset, name=name) for name in (*DOMAINS, *HALVES)}
    domains = [LoaderEntry(name=name, load=loads[name], train_on="Digits") for name in DOMAINS]
    return [whole, *domains, *(LoaderEntry(name=name, load=loads[name], **DIGIT_PROMPTS) for name in HALVES)]


def _source(row: dict[str, Any], hosts: dict[str, str]) -> Source:
    unpack = row.get("unpack", [])
    pairs = unpack.items() if isinstance(unpack, dict) else zip(unpack, unpack)
    return Source(
        file=row["file"],
        urls=tuple(url.format(**hosts) for url in row["urls"]),
        size=row.get("size"),
        checksum=row.get("checksum"),
        unpack=tuple(Member(*pair) for pair in pairs),
        inner=row.get("inner", ""),
        otherwise=tuple(_source(other, hosts) for other in row.get("otherwise", [])),
    )


def _entry(name: str, row: dict[str, Any], hosts: dict[str, str]) -> DatasetEntry:
    layout, images = row.pop("layout"), row["images"]
    ids = CLASS_IDS.get(layout)
    texts: dict[str, Any] = {
        key: tuple(row.pop(key)) for key in ("aliases", "templates", "negative_templates") if key in row
    }
    return DatasetEntry(
        name=name,
        read=partial(READERS[layout], images=images, **row.pop("options", {})),
        class_ids=partial(ids, images=images) if ids else None,
        sizes=Sizes(*row.pop("sizes")),
        sources=tuple(_source(source, hosts) for source in row.pop("sources", [])),
        by_hand=ByHand(*row.pop("by_hand")) if "by_hand" in row else None,
        **texts,
        **row,
    )


def read_entries(path: Path = FILE) -> list[DatasetEntry]:
    """The entries of a file such as `entries.yaml`, which explains itself."""
    with path.open("rb") as file:
        content = yaml.load(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return [_entry(name, row, content["hosts"]) for name, row in content["entries"].items()]


def plain_name(name: str) -> str:
    """A name as it is compared: in lower case, without `_` and `-`."""
    return name.lower().replace("_", "").replace("-", "")


def spellings(entries: Iterable[Entry]) -> dict[str, str]:
    """Every name and alias in its `plain_name` form -> the exact name.

    Raises:
        UserError: If one belongs to two entries, since one would be read in the place of the other.
    """
    owners: dict[str, str] = {}
    for entry in entries:
        for spelling in {plain_name(name) for name in (entry.name, *entry.aliases)}:
            if spelling in owners:
                both = f"{owners[spelling]} and {entry.name}"
                raise UserError(f"the data sets {both} are both called {spelling!r}; give each its own names")
            owners[spelling] = entry.name
    return owners


_ALL: list[Entry] = [*_digits(), LoaderEntry(name=OWN, aliases=("folder",), load=load_own_images), *read_entries()]
spellings(_ALL)  # checks them
ENTRIES = {entry.name: entry for entry in _ALL}  # in the order in which `datasets check` looks at them


def find_entry(name: str) -> Entry | None:
    """The entry that a `DATASET.NAME` or an alias stands for, in any spelling; None if there is none."""
    return ENTRIES.get(canonical_name(name))


def stored_datasets() -> dict[str, DatasetEntry]:
    """CoOp's name -> entry, of the data sets that have a folder of their own below the data root."""
    return {name: entry for name, entry in ENTRIES.items() if isinstance(entry, DatasetEntry)}


def canonical_name(name: str) -> str:
    """The exact name that a name or alias in any spelling stands for; the name as it came if none does."""
    return spellings(ENTRIES.values()).get(plain_name(name), name)


def resolve_name(name: str, among: Iterable[str]) -> str:
    """The exact name, one of `among`, that a name or alias in any spelling stands for.

    Raises:
        UserError: If there is none. The message suggests the nearest.
    """
    entries = [ENTRIES[allowed] for allowed in among]
    found = canonical_name(name)
    if found not in [entry.name for entry in entries]:
        raise unknown("data set", name, [spelling for entry in entries for spelling in (entry.name, *entry.aliases)])
    return found
