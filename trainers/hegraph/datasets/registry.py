"""Registry of data sets, read from `entries.yaml`. The comment at the top of that file explains the fields."""

from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Annotated, Any, ClassVar, NamedTuple

import yaml
from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationInfo

from . import layouts
from .splits import Pools, check_pools

# Default templates. The negative template is HeGraphAdapter's (section 3.1.1), from CLIPN (Wang et al., ICCV 2023).
DEFAULT_TEMPLATES = ("a photo of a {}.",)
DEFAULT_NEGATIVE_TEMPLATES = ("a photo of no {}.",)


class Sizes(NamedTuple):
    """Numbers of images in the three splits, and of classes."""

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
    """A file to download. The comment at the top of `entries.yaml` explains the attributes.

    `unpack` maps the end of a member's path in the archive to its target in the folder of the data set.
    """

    file: str
    urls: Annotated[tuple[str, ...], BeforeValidator(_with_hosts)]
    size: int | None = None
    checksum: str = ""
    unpack: Annotated[dict[str, str], BeforeValidator(_with_targets)] = field(default_factory=dict)
    inner: str = ""
    otherwise: "tuple[Source, ...]" = ()

    @property
    def targets(self) -> tuple[str, ...]:
        """Files and folders that this source provides, relative to the folder of the data set."""
        return tuple(self.unpack.values()) or (self.file,)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A data set of `entries.yaml`.

    It is stored in a `folder` of the data root in CoOp's layout, or read by a `loader` of `loading.LOADERS`.
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
    group_pattern: str = ""

    def read(self, folder: Path, rng: Random) -> Pools:
        """List all images of the data set by split. The function of its layout reads `folder`, but no split file.

        Args:
            folder: Folder of the data set in the data root.
            rng: Random generator of the split, if no official split exists.

        Raises:
            UserError: If a file is missing or damaged, or an image is listed in two splits or with two labels.
        """
        pools: Pools = getattr(layouts, f"read_{self.layout}")(folder, rng, self.images, **self.options)
        if self.split_file:
            check_pools(pools, "it")
        return pools


def _read_entries() -> list[Entry]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the first one, which some systems lack, takes a tenth
    content = yaml.load(Path(__file__).with_name("entries.yaml").read_bytes(), loader)
    rows = [{"name": name, **row} for name, row in content["entries"].items()]
    return TypeAdapter(list[Entry]).validate_python(rows, context=content["hosts"])


ENTRIES = {entry.name: entry for entry in _read_entries()}  # in the order of `datasets check`


def find_entry(name: str) -> Entry | None:
    """Find the entry for a `DATASET.NAME` or alias in any spelling; None for an unknown name."""
    return ENTRIES.get(canonical_name(name))


def is_published(name: str) -> bool:
    """Whether a `DATASET.NAME` or alias is the name of a data set of `entries.yaml`, not of own images."""
    entry = find_entry(name)
    return entry is not None and entry.loader != "own"


def stored_datasets() -> dict[str, Entry]:
    """Return the data sets with a folder in the data root, by CoOp's name."""
    return {name: entry for name, entry in ENTRIES.items() if entry.folder}


def canonical_name(name: str) -> str:
    """Return the exact name for a name or alias in any spelling; an unknown name is returned unchanged."""
    plain = _plain(name)
    return next((e.name for e in ENTRIES.values() if plain in map(_plain, (e.name, *e.aliases))), name)


def _plain(name: str) -> str:
    """Normalise a name for comparison: lower case, without `_` and `-`."""
    return name.lower().replace("_", "").replace("-", "")
