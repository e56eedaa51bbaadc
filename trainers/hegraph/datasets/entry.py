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
    """A file or folder of an archive.

    Attributes:
        path: The end of its path in the archive. If several paths end so, the one nearest to the root is taken, so it
            does not matter how many folders an archive wraps around it.
        target: Where it goes, relative to the data set's folder.
    """

    path: str
    target: str


@dataclass(frozen=True)
class Source:
    """One file to fetch.

    Attributes:
        file: Its name in the data set's folder while it is there. An archive is removed once it is unpacked.
        urls: Mirrors of the same bytes, in the order in which they are tried: `https://...` or `gdrive:FILE_ID`.
        size: In bytes, where it is known.
        checksum: "md5:..." or "sha256:...", where it is known.
        unpack: Which member of an archive goes where; empty for a file that stays as it is.
        inner: The archive within the archive that holds the members; empty if there is none.
        otherwise: Other archives with the same members, which are tried when no mirror of this one works. Other missing
            parts of the data set that they hold are unpacked as well.
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
    """What is known about every data set, wherever its images are.

    Attributes:
        name: `DATASET.NAME`, which is CoOp's name where CoOp has the data set.
        aliases: Other names that people use for it.
        templates: Positive prompt templates, each with one `{}` for the class name.
        negative_templates: Templates of sentences that say that the class is not in the picture.
        descriptions: Name of its file in `prompts/descriptions`, without ".json"; "" if none ships.
        describe_by_default: Whether `PROMPTS.SOURCE auto` uses those descriptions.
        train_on: For a data set that has only test images, the name of the data set to train on; "" for all others.
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
        folder: Its folder below the data root.
        images: The folder, below `folder`, that the paths in the split file are relative to; may be "".
        split_file: The file with CoOp's split; None where the split is official and needs no file.
        read: Takes `folder` as a path and a random generator. Reads the items and, where there is no official split,
            draws one. Paths of the items are relative to `folder`.
        sizes: The published sizes.
        class_ids: Takes `folder` as a path and reads the WordNet id of every class, in label order; None where the
            class names tell the classes apart.
        sources: The files to fetch, none of which depends on another.
        by_hand: What cannot be fetched; None if everything can.
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
