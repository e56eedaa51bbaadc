"""What a data set is: its class names in label order, three lists of items, and a function that opens an item."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from ..utils.errors import UserError, first_line
from ..utils.files import hash_file, hash_rows
from ..utils.threads import MAX_THREADS, cores
from .images import reason
from .splits import FewShotSample, Item, subsample_labels

MAX_NAMED = 3  # a message names at most so many images or classes


@dataclass(frozen=True)
class Dataset:
    """A labelled image data set: its full splits, or those of a few-shot task.

    Attributes:
        classnames: The K class names in label order.
        train, val, test: Its items; val and test may be empty.
        open: Takes the path of an item and returns the image.
        root: The folder that the paths of the items are relative to; None if they are not files.
        class_ids: The K ids, in label order, by which a class is recognised in another data set; () if class names do.
        version: Takes the path of an item that is no file of its own, as in a tar shard; returns its size in bytes, and
            a number that changes with its source. None if items are files, or nothing is known of them.
        check_command: The command that lists every image that cannot be read; "" if there is none.
    """

    name: str
    classnames: Sequence[str]
    train: list[Item]
    val: list[Item]
    test: list[Item]
    open: Callable[[str], Image.Image]
    root: Path | None = None
    class_ids: Sequence[str] = ()
    version: Callable[[str], tuple[int, int]] | None = None
    check_command: str = ""

    @property
    def ids(self) -> Sequence[str]:
        """The class ids, or the class names where there are none."""
        return self.class_ids or self.classnames

    @property
    def splits(self) -> dict[str, list[Item]]:
        """Split, one of `SPLITS` -> its items."""
        return {"train": self.train, "val": self.val, "test": self.test}

    @property
    def val_is_test(self) -> bool:
        """Whether the validation images are the test images, as those of ImageNet are in CoOp."""
        return bool(self.val) and self.val == self.test

    def select(self, selection: FewShotSample) -> Dataset:
        """The few-shot task of a selection. Test is kept whole, and so is val where it is the same images."""
        val = self.val if self.val_is_test else [self.val[i] for i in selection.val]
        return replace(self, train=[self.train[i] for i in selection.train], val=val)

    def subsample(self, which: str) -> Dataset:
        """The data set of all its classes, or of a half of them with new labels (see `splits.subsample_labels`)."""
        if which == "all":
            return self
        kept = subsample_labels({item.label for item in self.train or self.test}, which)
        relabelled = {label: new for new, label in enumerate(kept)}
        splits = {
            split: [item._replace(label=relabelled[item.label]) for item in items if item.label in relabelled]
            for split, items in self.splits.items()
        }
        names, ids = ([all_of[label] for label in kept] for all_of in (self.classnames, self.ids))
        return replace(self.with_splits(splits), classnames=names, class_ids=ids)

    def with_splits(self, splits: Mapping[str, Any]) -> Dataset:
        """The data set with other items in some of its splits."""
        return replace(self, **splits)

    def without(self, paths: Collection[str]) -> Dataset:
        """The data set without the items that have one of these paths."""
        left = {split: [item for item in items if item.path not in paths] for split, items in self.splits.items()}
        return self.with_splits(left)

    def paths(self) -> list[str]:
        """The paths of all items, each once."""
        return list(dict.fromkeys(item.path for items in self.splits.values() for item in items))

    def file_version(self, path: str) -> tuple[int, int] | None:
        """What tells versions of an item apart: its size in bytes, and the time of the last change in ns or what
        `version` says. None if the item is no file."""
        try:
            if self.version is not None:
                return self.version(path)
            if self.root is None:
                return None
            status = (self.root / path).stat()
        except (UserError, OSError) as error:
            raise self.unreadable(path, first_line(error)) from error
        return status.st_size, status.st_mtime_ns

    def file_sizes(self) -> str | None:
        """Hash of the sizes in bytes of all images, which is the same for a copy of them. None if they have none."""
        if self.root is None and self.version is None:
            return None
        return hash_rows([path, (self.file_version(path) or (0,))[0]] for path in self.paths())

    def check_files(self) -> None:
        """Raises UserError if files of items are missing. The message counts them and names some."""
        if self.root is None:
            return
        paths = self.paths()
        missing = [path for path in paths if not (self.root / path).is_file()]
        if missing:
            counted = f"{len(missing)} of {len(paths)} images are missing below {self.root}"
            raise UserError(f"{self.name}: {counted}: {abbreviate(missing)}{self._how_to_list()}")

    def files(self, split: str) -> list[Path]:
        """The files of the images of a split; [] if they are no files of their own."""
        return [] if self.root is None else [self.root / item.path for item in self.splits[split]]

    def copies_in_test(self) -> dict[str, list[Path]]:
        """Of "train" and "val", the files that are test files as well; a split without any is left out."""
        test = self.files("test")
        found = {split: find_copies(self.files(split), test) for split in ("train", "val")}
        return {split: files for split, files in found.items() if files}

    def refuse_copies(self) -> None:
        """Raises UserError if selected training or validation files are test files as well, byte for byte."""
        for split, found in self.copies_in_test().items():
            raise UserError(
                f"{len(found)} of {len(self.splits[split])} {split} images are test images as well, such as {found[0]}"
                f", so the test would say nothing about new images; keep one copy of each, in {split} or in test"
            )

    def read(self, path: str) -> Image.Image:
        """The image of an item, as RGB; UserError, which names the file and how all such are found, if it has none."""
        try:
            return self.open(path).convert("RGB")
        except Exception as error:  # on damaged bytes, Pillow raises whatever they lead to
            raise self.unreadable(path, reason(error)) from error

    def unreadable_images(self) -> dict[str, str]:
        """The path of every image that cannot be read -> why. All are decoded, by all cores."""

        def problem_of(path: str) -> str:
            try:
                self.open(path)
            except Exception as error:  # on damaged bytes, Pillow raises whatever they lead to
                return reason(error)
            return ""

        paths = self.paths()
        with ThreadPoolExecutor(min(cores(), MAX_THREADS)) as pool:
            problems = list(tqdm(pool.map(problem_of, paths), "reading images", len(paths), unit="img", disable=None))
        return {path: problem for path, problem in zip(paths, problems) if problem}

    def unreadable(self, path: str, why: str) -> UserError:
        """The error for an image that cannot be read; it says why, and how all such images are found."""
        return UserError(f"cannot read the image {path} of {self.name}: {why}{self._how_to_list()}")

    def _how_to_list(self) -> str:
        return f"; list all: {self.check_command}" if self.check_command else ""


def find_copies(files: list[Path], others: list[Path]) -> list[Path]:
    """The files whose content is that of another one. Only those of equal size are read."""
    for tell in (os.path.getsize, hash_file):
        told, told_of_others = ({path: tell(path) for path in paths} for paths in (files, others))
        both = set(told.values()) & set(told_of_others.values())
        files = [path for path in files if told[path] in both]
        others = [path for path in others if told_of_others[path] in both]
    return files


def abbreviate(names: Sequence[str], most: int = MAX_NAMED) -> str:
    """The first of many names, for a message."""
    return ", ".join([*names[:most], *(["..."] if len(names) > most else [])])


def check_classes(count: int, target: str = "") -> None:
    """Raises UserError if there are fewer than two classes, here or in a target: an image could be of no other one."""
    if count < 2:
        raise UserError(f"{target and f'{target}: '}there must be at least two classes to tell apart, got {count}")


def class_names(items: Sequence[Item], *others: Sequence[Item]) -> list[str]:
    """The class names in label order, as items state them; `others`, such as val and test, must agree with them.

    Raises UserError if a label has two names, or only one of `others` has it, or the labels have a gap.
    """
    names = {item.label: item.classname for item in reversed(items)}
    if absent := {*range(len(names))} - {*names}:
        raise UserError(f"labels must run from 0 without a gap, but no item has label {min(absent)}")
    for path, label, name in (item for each in (items, *others) for item in each):
        if names.get(label) != name:
            known = names.get(label, "no class")
            raise UserError(f"{path} has label {label} for {name!r}, which stands for {known} in training images")
    return [names[label] for label in range(len(names))]
