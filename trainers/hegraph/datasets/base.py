"""The class `Dataset`: class names, items of three splits, and access to the images."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ..utils.command_line import command
from ..utils.errors import UserError, first_line
from ..utils.files import hash_file, hash_json
from ..utils.progress import Progress
from ..utils.threads import MAX_THREADS, cores, in_batches
from .decoding import LazyImage
from .groups import SharedGroups
from .images import ImageSource, reason
from .splits import FewShotSample, Item, subsample_labels

CHECKED_TOGETHER = 64  # images of a batch of `unreadable_images`
MAX_NAMED = 3  # images or classes that a message lists


@dataclass(frozen=True)
class Dataset:
    """A labelled image data set, with its full splits or the splits of a few-shot task.

    Attributes:
        name: Name of the data set.
        classnames: The K class names in label order.
        train, val, test: Items of the splits; val and test may be empty.
        open: Function from the path of an item to its image.
        root: Folder that the paths are relative to; None if items are not files.
        class_ids: K ids in label order that identify classes across data sets; () if class names do.
        version: Function from the path of an item inside a larger file, such as a tar shard, to its size in bytes and a
            number that changes with the larger file; None for other items.
        stored: Function from the path of such an item to its encoded bytes.
        source: Function from the path of an item to its file, its bytes or its image, from which it may be decoded at a
            reduced scale; None for a published data set, which is always decoded by `open`.
        check_command: Command that lists all unreadable images; "" if there is none.
        pool: Images of train and val that a few-shot task did not sample (`load_few_shot`).
        groups: Groups of images (`groups.py`) by path; images without one are groups of their own.
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
    stored: Callable[[str], bytes] | None = None
    source: Callable[[str], ImageSource] | None = None
    check_command: str = ""
    pool: Sequence[Item] = ()
    groups: Mapping[str, str] = field(default_factory=dict)

    @property
    def ids(self) -> Sequence[str]:
        """Class ids, or class names if there are no ids."""
        return self.class_ids or self.classnames

    @property
    def splits(self) -> dict[str, list[Item]]:
        """Items by split, one of `SPLITS`."""
        return {"train": self.train, "val": self.val, "test": self.test}

    @property
    def val_is_test(self) -> bool:
        """Whether the validation images are the test images, as for ImageNet in CoOp."""
        return bool(self.val) and self.val == self.test

    @property
    def multilabel(self) -> bool:
        """Whether images have several labels each."""
        return any(isinstance(item.label, tuple) for items in self.splits.values() for item in items[:1])

    def select(self, sample: FewShotSample) -> Dataset:
        """Return the few-shot task of a sample, with all test images; val that equals test stays complete, too."""
        val = self.val if self.val_is_test else [self.val[i] for i in sample.val]
        return replace(self, train=[self.train[i] for i in sample.train], val=val)

    def groups_of(self, items: Sequence[Item]) -> list[str] | None:
        """Return the group of each item, its path if it has none; None without any groups."""
        return [self.groups.get(item.path, item.path) for item in items] if self.groups else None

    def shared_groups(self) -> SharedGroups | None:
        """Count the images of val and test whose groups occur in train; None without any groups."""
        if not self.groups:
            return None
        val = [] if self.val_is_test else self.val
        return SharedGroups.of(*(self.groups_of(items) or () for items in (self.train, val, self.test)))

    def subsample(self, which: str) -> Dataset:
        """Return the data set with all classes, or a half of them with new labels (see `splits.subsample_labels`)."""
        if which == "all":
            return self
        if self.multilabel:
            raise UserError(f"{self.name} has several labels per image: leave out DATASET.SUBSAMPLE_CLASSES {which}")
        labels = subsample_labels({item.label for item in self.train or self.test}, which)
        new = {label: position for position, label in enumerate(labels)}
        names = [self.classnames[label] for label in labels]
        ids = [self.ids[label] for label in labels]
        halved = self._filtered(lambda item: item.label in new, lambda item: item._replace(label=new[item.label]))
        return replace(halved, classnames=names, class_ids=ids)

    def only_test(self) -> Dataset:
        """Return the data set without training and validation images; UserError if there are no test images."""
        if not self.test:
            raise UserError(f"{self.name} has no test images, so no model can be tested on it")
        return replace(self, train=[], val=[])

    def without(self, paths: Collection[str]) -> Dataset:
        """Return the data set without the items at `paths`."""
        return self._filtered(lambda item: item.path not in paths)

    def _filtered(self, keep: Callable[[Item], bool], change: Callable[[Item], Item] = lambda item: item) -> Dataset:
        """Return the data set with the changed items for which `keep` is true."""
        changed: dict[str, Any] = {}
        for split, items in self.splits.items():
            changed[split] = [change(item) for item in items if keep(item)]
        return replace(self, **changed)

    def paths(self) -> list[str]:
        """Return the distinct paths of all items."""
        return list(dict.fromkeys(item.path for items in self.splits.values() for item in items))

    def file_version(self, path: str) -> tuple[int, int] | None:
        """Return values that change with the file of an item: size in bytes and modification time in ns.

        The function `version` replaces them, if there is one. None stands for an item that is not a file.

        Raises:
            UserError: If the file cannot be accessed.
        """
        try:
            if self.version is not None:
                return self.version(path)
            if self.root is None:
                return None
            status = (self.root / path).stat()
        except (UserError, OSError) as error:
            raise self.unreadable_error(path, first_line(error)) from error
        return status.st_size, status.st_mtime_ns

    def files_hash(self) -> str | None:
        """Hash the paths and versions (`file_version`) of all images, as keys of features have them.

        Returns:
            The hash; None if items are not files.

        Raises:
            UserError: If a file cannot be accessed.
        """
        if self.root is None and self.version is None:
            return None
        return hash_json([[path, *(self.file_version(path) or ())] for path in self.paths()])

    def check_files(self) -> None:
        """Raise UserError, with the number and examples, if files of items are missing."""
        if self.root is None:
            return
        paths = self.paths()
        missing = [path for path in paths if not (self.root / path).is_file()]
        if missing:
            problem = f"{len(missing)} of {len(paths)} images are missing below {self.root}"
            raise UserError(f"{self.name}: {problem}: {abbreviate(missing)}{self._hint()}")

    def files(self, split: str) -> list[Path]:
        """Return the image files of a split; [] if items are not files."""
        return [] if self.root is None else [self.root / item.path for item in self.splits[split]]

    def copies_in_test(self) -> dict[str, list[Any]]:
        """Return the images of "train" and "val" that are copies of test images, by split (only nonempty).

        They are files, or the paths of items inside larger files.
        """
        images: dict[str, list[Any]] = {split: self.files(split) for split in self.splits}
        keys: tuple[Callable, ...] = SIZE_AND_HASH
        if self.stored is not None and self.version is not None:
            stored = self.stored
            version = self.version
            for split, items in self.splits.items():
                images[split] = [item.path for item in items]
            keys = (lambda path: version(path)[0]), (lambda path: hashlib.sha256(stored(path)).digest())
        copies = {split: find_copies(images[split], images["test"], keys) for split in ("train", "val")}
        return {split: found for split, found in copies.items() if found}

    def refuse_copies(self) -> None:
        """Raise UserError if training or validation images are copies of test images, byte for byte."""
        for split, copies in self.copies_in_test().items():
            refuse_tested(copies, len(self.splits[split]), split)

    def read(self, path: str) -> Image.Image:
        """Open the image of an item as RGB; UserError if it cannot be read."""
        with self.explaining(path):
            image = self.open(path)
            return image if image.mode == "RGB" else image.convert("RGB")  # `convert` copies

    def read_lazily(self, path: str, decode: str) -> LazyImage:
        """Open the `source` of an item without decoding it; arguments as in `LazyImage.read`.

        Raises:
            UserError: If it cannot be read. Its pixels may still be damaged.
        """
        assert self.source is not None  # of own images
        with self.explaining(path):
            return LazyImage.read(self.source(path), decode)

    @contextmanager
    def explaining(self, path: str) -> Iterator[None]:
        """Context that reads the image of an item, and raises UserError if that fails."""
        try:
            yield
        except Exception as error:  # Pillow raises exceptions of many types on damaged bytes
            raise self.unreadable_error(path, reason(error)) from error

    def unreadable_images(self) -> dict[str, str]:
        """Decode all images in parallel, and return the path and the problem of each unreadable one."""

        def problem_of(path: str) -> str:
            try:
                self.open(path)
            except Exception as error:  # Pillow raises exceptions of many types on damaged bytes
                return reason(error)
            return ""

        paths = self.paths()
        problems: dict[str, str] = {}
        with Progress(len(paths), "reading images") as progress:
            for batch, results in in_batches(problem_of, paths, CHECKED_TOGETHER, min(cores(), MAX_THREADS)):
                problems |= zip(batch, results)
                progress.show(len(problems))
        return {path: problem for path, problem in problems.items() if problem}

    def unreadable_error(self, path: str, why: str) -> UserError:
        """Return the error for an unreadable image, with the command that lists all of them."""
        return UserError(f"cannot read the image {path} of {self.name}: {why}{self._hint()}")

    def _hint(self) -> str:
        return f"; list all: {self.check_command}" if self.check_command else ""


SIZE_AND_HASH = os.path.getsize, hash_file


def find_copies(images: list, other_images: list, keys: Sequence[Callable] = SIZE_AND_HASH) -> list:
    """Return the images with the same content as one of `other_images`, by default of two lists of files.

    Images are compared by each of the `keys` in turn. Contents are read only if sizes are equal.
    """
    for key in keys:
        values = {image: key(image) for image in images}
        other_values = {image: key(image) for image in other_images}
        common = {*values.values()} & {*other_values.values()}
        images = [image for image in images if values[image] in common]
        other_images = [image for image in other_images if other_values[image] in common]
    return images


def refuse_tested(copies: Sequence[object], count: int, part: str) -> None:
    """Raise UserError if any of the `count` images of a part, named in `copies`, are test images as well."""
    if copies:
        remedy = ", or give --unlabelled test for all test images" if part == "unlabelled" else " or from test"
        problem = f"{len(copies)} of {count} {part} images are test images as well, such as {copies[0]}"
        raise UserError(f"{problem}; test images must be new to the model: remove them from the {part} images{remedy}")


def abbreviate(names: Sequence[str], limit: int = MAX_NAMED) -> str:
    """Join up to `limit` names for a message."""
    return ", ".join([*names[:limit], *(["..."] if len(names) > limit else [])])


def check_command(name: str, root: str) -> str:
    """Return the command line that checks a data set in a data root, or your own images as `folder`."""
    return command(f"datasets check {name} --root {shlex.quote(root)}")


def check_classes(count: int, target: str = "") -> None:
    """Raise UserError if a data set, or the `target` data set, has fewer than two classes."""
    if count < 2:
        raise UserError(f"{target and f'{target}: '}expected at least two classes, got {count}", "classes.few")


def class_names(items: Sequence[Item], *other_splits: Sequence[Item]) -> list[str]:
    """Return the class names of training items in label order.

    Raises:
        UserError: If labels have a gap, a label has two names, or only `other_splits`, such as val, have a label.
    """
    names = {item.label: item.classname for item in reversed(items)}
    if absent := {*range(len(names))} - {*names}:
        raise UserError(f"labels must run from 0 without a gap, but no item has label {min(absent)}", "labels.gap")
    for path, label, name in (item for split in (items, *other_splits) for item in split):
        if names.get(label) != name:
            expected = names.get(label, "no class")
            raise UserError(f"{path} has label {label} for {name!r}, which is {expected} in training images")
    return [names[label] for label in range(len(names))]
