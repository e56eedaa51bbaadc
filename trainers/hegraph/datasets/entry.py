"""What the registry knows about a data set: one entry holds all of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .splits import Pools

if TYPE_CHECKING:
    from .base import Dataset

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


class ByHand(NamedTuple):
    """A file or folder that no mirror may give, and a sentence that says how to get it."""

    target: str
    instruction: str


class Member(NamedTuple):
    """A file or folder of an archive, and where it goes in the data set's folder.

    `path` is the end of its path. If several paths end so, the one nearest to the root is taken, so it does not matter
    how many folders an archive wraps around it.
    """

    path: str
    target: str


@dataclass(frozen=True)
class Source:
    """One file to fetch; the head of `entries.yaml` says what its fields are.

    An address is `https://...` or `gdrive:FILE_ID`, a checksum "md5:..." or "sha256:...".
    """

    file: str
    urls: tuple[str, ...]
    size: int | None = None
    checksum: str | None = None
    unpack: tuple[Member, ...] = ()
    inner: str = ""
    otherwise: tuple[Source, ...] = ()

    @property
    def targets(self) -> tuple[str, ...]:
        """What is in place once this source is fetched, relative to the data set's folder."""
        return tuple(member.target for member in self.unpack) or (self.file,)


@dataclass(frozen=True)
class Entry:
    """What is known about every data set, wherever its images are. The head of `entries.yaml` explains the fields.

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

    Attributes:
        read: Takes `folder` as a path and a random generator. Reads the items and, where there is no official split,
            draws one. Paths of the items are relative to `folder`.
        class_ids: Takes `folder` as a path and reads the WordNet id of every class, in label order; None where the
            class names tell the classes apart.
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
