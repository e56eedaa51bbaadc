"""The list of all data sets, `entries.yaml`, whose head explains the fields; and how one is found by its name."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import yaml
from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationInfo

from . import layouts
from .splits import Pools, check_pools

# What a data set without templates of its own gets. The negative one is HeGraphAdapter's (section 3.1.1), which takes
# it from CLIPN (Wang et al., ICCV 2023).
DEFAULT_TEMPLATES = ("a photo of a {}.",)
DEFAULT_NEGATIVE_TEMPLATES = ("a photo of no {}.",)


class Sizes(NamedTuple):
    """Numbers of images of the three splits, and of classes."""

    train: int
    val: int
    test: int
    classes: int

    def __str__(self) -> str:
        return f"{self.train} train, {self.val} val and {self.test} test images of {self.classes} classes"


NO_SIZES = Sizes(0, 0, 0, 0)


def _with_hosts(urls: list[str], info: ValidationInfo) -> list[str]:
    return [url.format(**(info.context or {})) for url in urls]


def _with_targets(members: Any) -> Any:
    return members if isinstance(members, dict) else dict(zip(members, members))


@dataclass(frozen=True)
class Source:
    """One file to fetch; the head of `entries.yaml` explains the fields.

    `unpack` gives the end of a member's path in the archive -> its target in the data set's folder.
    """

    file: str
    urls: Annotated[tuple[str, ...], BeforeValidator(_with_hosts)]
    size: int | None = None
    checksum: str = ""
    unpack: Annotated[dict[str, str], BeforeValidator(_with_targets)] = field(default_factory=dict)
    inner: str = ""
    otherwise: tuple[Source, ...] = ()

    @property
    def targets(self) -> tuple[str, ...]:
        """What is in place once this source is fetched, relative to the data set's folder."""
        return tuple(self.unpack.values()) or (self.file,)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A row of `entries.yaml`. One with a `folder` lies below the data root in CoOp's layout, and has been `stored`;
    any other has a `loader`, a row of `loading.LOADERS`.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: str
    aliases: tuple[str, ...] = ()
    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    negative_templates: tuple[str, ...] = DEFAULT_NEGATIVE_TEMPLATES
    descriptions: str = ""
    describe_by_default: bool = True
    train_on: str = ""
    loader: str = ""
    folder: str = ""
    images: str = ""
    split_file: str = ""
    layout: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    sizes: Sizes = NO_SIZES
    sources: tuple[Source, ...] = ()
    by_hand: str = ""
    class_ids: str = ""

    def read(self, folder: Path, rng: random.Random) -> Pools:
        """The full splits, with paths relative to the folder; a split that is not official is drawn from `rng`."""
        pools: Pools = getattr(layouts, f"read_{self.layout}")(folder, rng, self.images, **self.options)
        if self.split_file:
            check_pools(pools, "it")
        return pools


def _read_entries() -> list[Entry]:
    content = yaml.safe_load(Path(__file__).with_name("entries.yaml").read_bytes())
    rows = [{"name": name, **row} for name, row in content["entries"].items()]
    return TypeAdapter(list[Entry]).validate_python(rows, context=content["hosts"])


ENTRIES = {entry.name: entry for entry in _read_entries()}  # in the order in which `datasets check` looks at them


def find_entry(name: str) -> Entry | None:
    """The entry that a `DATASET.NAME` or an alias stands for, in any spelling; None if there is none."""
    return ENTRIES.get(canonical_name(name))


def stored_datasets() -> dict[str, Entry]:
    """CoOp's name -> entry, of the data sets that have a folder of their own below the data root."""
    return {name: entry for name, entry in ENTRIES.items() if entry.folder}


def canonical_name(name: str) -> str:
    """The exact name that a name or alias in any spelling stands for; the name as it came if none does."""
    plain = _plain(name)
    return next((e.name for e in ENTRIES.values() if plain in map(_plain, (e.name, *e.aliases))), name)


def _plain(name: str) -> str:
    """A name as it is compared: in lower case, without `_` and `-`."""
    return name.lower().replace("_", "").replace("-", "")
