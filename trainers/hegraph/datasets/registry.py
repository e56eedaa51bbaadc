"""The list of all data sets: what is known of each, and how one is found by its name.

CoOp's are rows of `entries.yaml`, whose head explains their fields.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from ..utils.errors import UserError, unknown
from . import layouts
from .digits import DOMAINS, HALVES, load_digits_dataset
from .own import NAME as OWN
from .own import load_own_images
from .splits import Pools

if TYPE_CHECKING:
    from .base import Dataset

FILE = Path(__file__).with_name("entries.yaml")

# What a data set without templates of its own gets. The negative one is HeGraphAdapter's (section 3.1.1), which takes
# it from CLIPN (Wang et al., ICCV 2023).
DEFAULT_TEMPLATES = ("a photo of a {}.",)
DEFAULT_NEGATIVE_TEMPLATES = ("a photo of no {}.",)

# The layouts of `entries.yaml`. A reader takes the folder, a random generator, the folder of images and options
READERS: dict[str, Callable[..., Pools]] = {
    "class_folders": layouts.split_class_folders,
    "pets": layouts.read_pets,
    "cars": layouts.read_cars,
    "flowers": layouts.read_flowers,
    "aircraft": layouts.read_aircraft,
    "sun": layouts.read_sun,
    "ucf": layouts.read_ucf,
    "imagenet": layouts.read_imagenet,
    "imagenet_v2": layouts.read_imagenet_v2,
    "test_folders": layouts.read_test_folders,
}
# Layout -> how the WordNet ids of the classes are read, in label order, where these tell the classes apart
CLASS_IDS: dict[str, Callable[..., list[str]]] = {
    "imagenet": lambda folder, images: layouts.class_ids(folder, f"{images}/train"),
    "imagenet_v2": lambda folder, images: list(layouts.class_names_by_id(folder)),
    "test_folders": layouts.class_ids,
}


class Sizes(NamedTuple):
    """Numbers of images of the three splits, and of classes."""

    train: int
    val: int
    test: int
    classes: int

    def __str__(self) -> str:
        return f"{self.train} train, {self.val} val and {self.test} test images of {self.classes} classes"


class ByHand(NamedTuple):
    """A file or folder that no mirror may give, and a sentence that says how to get it."""

    target: str
    instruction: str


@dataclass(frozen=True)
class Source:
    """One file to fetch from `https://...` or `gdrive:FILE_ID`; a checksum is "md5:..." or "sha256:...".

    `unpack` gives the end of a member's path in the archive -> its target in the data set's folder.
    """

    file: str
    urls: tuple[str, ...]
    size: int | None = None
    checksum: str = ""
    unpack: dict[str, str] = field(default_factory=dict)
    inner: str = ""
    otherwise: tuple[Source, ...] = ()

    @property
    def targets(self) -> tuple[str, ...]:
        """What is in place once this source is fetched, relative to the data set's folder."""
        return tuple(self.unpack.values()) or (self.file,)


@dataclass(frozen=True)
class Entry:
    """What is known about every data set, wherever its images are.

    A name is `DATASET.NAME`, which is CoOp's where CoOp has the data set. `describe_by_default` says whether
    `PROMPTS.SOURCE auto` uses the descriptions that ship.
    """

    name: str
    aliases: tuple[str, ...] = ()
    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    negative_templates: tuple[str, ...] = DEFAULT_NEGATIVE_TEMPLATES
    descriptions: str = ""
    describe_by_default: bool = True
    train_on: str = ""


@dataclass(frozen=True, kw_only=True)
class DatasetEntry(Entry):
    """A data set that has a folder of its own below the data root, in CoOp's layout.

    `read` takes `folder` as a path and a generator, from which it draws a split where none is official; the items'
    paths are relative to `folder`. `class_ids` reads the WordNet ids in label order, if these tell the classes apart.
    """

    folder: str
    images: str
    split_file: str | None = None
    read: Callable[[Path, random.Random], Pools]
    sizes: Sizes
    class_ids: Callable[[Path], list[str]] | None = None
    sources: tuple[Source, ...] = ()
    by_hand: ByHand | None = None

    @property
    def publishes_split(self) -> bool:
        """Whether `datasets download` fetches the split file, so that a split that is drawn here is another one."""
        return any(self.split_file in source.targets for source in self.sources)


@dataclass(frozen=True, kw_only=True)
class LoaderEntry(Entry):
    """A data set that `load` loads with its full splits, given `DATASET.ROOT`: an embedded one, or own images."""

    load: Callable[[str], Dataset]


def _digits() -> list[Entry]:
    """scikit-learn's digits: whole, as other domains, which have test images only, and in two halves."""
    prompts: dict[str, Any] = {
        "templates": ('a photo of the number: "{}".', "a photo of a handwritten {}.", "a photo of a {}."),
        "negative_templates": ('a photo of the number: no "{}".', "a photo of no handwritten {}.", "a photo of no {}."),
    }
    # mini, the backbone made for the digits, has read captions only: on their val rows, descriptions cost it 1.5 points
    # (71.5% with templates, 70.0% with both)
    found: list[Entry] = [
        LoaderEntry(
            name="Digits", load=load_digits_dataset, descriptions="digits", describe_by_default=False, **prompts
        )
    ]
    for name in (*DOMAINS, *HALVES):
        more: dict[str, Any] = {"train_on": "Digits"} if name in DOMAINS else prompts
        found.append(LoaderEntry(name=name, load=partial(load_digits_dataset, name=name), **more))
    return found


def _source(row: dict[str, Any], hosts: dict[str, str]) -> Source:
    unpack = row.get("unpack", {})
    changed = {
        "urls": tuple(url.format(**hosts) for url in row["urls"]),
        "unpack": unpack if isinstance(unpack, dict) else dict(zip(unpack, unpack)),
        "otherwise": tuple(_source(other, hosts) for other in row.get("otherwise", ())),
    }
    return Source(**(row | changed))


def _entry(name: str, row: dict[str, Any], hosts: dict[str, str]) -> DatasetEntry:
    layout, images = row.pop("layout"), row["images"]
    ids = CLASS_IDS.get(layout)
    row |= {key: tuple(row[key]) for key in ("aliases", "templates", "negative_templates") if key in row}
    row["read"] = partial(READERS[layout], images=images, **row.pop("options", {}))
    row["class_ids"] = partial(ids, images=images) if ids else None
    row["sizes"] = Sizes(*row["sizes"])
    row["sources"] = tuple(_source(source, hosts) for source in row.get("sources", ()))
    row["by_hand"] = ByHand(*row["by_hand"]) if "by_hand" in row else None
    return DatasetEntry(name=name, **row)


def _stored_entries() -> list[DatasetEntry]:
    content = yaml.load(FILE.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return [_entry(name, row, content["hosts"]) for name, row in content["entries"].items()]


def plain_name(name: str) -> str:
    """A name as it is compared: in lower case, without `_` and `-`."""
    return name.lower().replace("_", "").replace("-", "")


def spellings(entries: Iterable[Entry]) -> dict[str, str]:
    """Every name and alias in its `plain_name` form -> the exact name; UserError if one belongs to two entries."""
    owners: dict[str, str] = {}
    for entry in entries:
        for spelling in {plain_name(name) for name in (entry.name, *entry.aliases)}:
            if spelling in owners:
                both = f"{owners[spelling]} and {entry.name}"
                raise UserError(f"the data sets {both} are both called {spelling!r}; give each its own names")
            owners[spelling] = entry.name
    return owners


_ALL: list[Entry] = [*_digits(), LoaderEntry(name=OWN, aliases=("folder",), load=load_own_images), *_stored_entries()]
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
    """The exact name, one of `among`, that a name or alias stands for; else UserError, which names the nearest."""
    allowed = [ENTRIES[each] for each in among]
    found = canonical_name(name)
    if found not in [entry.name for entry in allowed]:
        raise unknown("data set", name, [each for entry in allowed for each in (entry.name, *entry.aliases)])
    return found
