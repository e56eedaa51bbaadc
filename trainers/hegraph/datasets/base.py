"""The class `Dataset`: class names, items of three splits, and access to the images."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ..utils.command_line import command
from ..utils.errors import UserError, first_line
from ..utils.files import hash_json
from ..utils.progress import Progress
from ..utils.threads import MAX_THREADS, cores, in_batches
from .copies import Read, content_keys
from .decoding import FACTORS, REDUCED, LazyImage
from .groups import SharedGroups
from .images import ImageSource, reason
from .splits import FewShotSample, Item, subsample_labels

logger = logging.getLogger(__name__)

CHECKED_TOGETHER = 64  # images of a batch of `unreadable_images`
MAX_NAMED = 3  # images or classes that a message lists


class Copies(NamedTuple):
    """Images of one split with copies in another one: their files, or paths inside larger files."""

    split: str
    other: str
    images: list[Any]


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
        excluded = set(paths)
        return self._filtered(lambda item: item.path not in excluded)

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

    def name_of(self, path: str) -> Any:
        """Return the file of an item, for messages; its path if items are no files."""
        return path if self.root is None else self.root / path

    def readers(self, items: Sequence[Item]) -> list[Read]:
        """Return a function for each item, which returns its file or its bytes; [] for images in memory."""
        if self.stored is not None:
            return [partial(self.stored, item.path) for item in items]
        if self.root is None:
            return []
        return [partial(self.root.joinpath, item.path) for item in items]

    def copies(self) -> list[Copies]:
        """Find the images of train and val with copies in test, and those of val with copies in train.

        An image of val that is in train and in test is listed once, with test.
        """
        splits = self.splits
        if sum(map(bool, splits.values())) < 2:
            return []
        keys = iter(content_keys(self.readers([item for items in splits.values() for item in items])))
        keys_of = {}
        for split, items in splits.items():
            own_paths = [item.path for item in items]
            keys_of[split] = dict(zip(own_paths, keys))
        found = []
        listed: set[str] = set()
        for split, other in (("train", "test"), ("val", "test"), ("val", "train")):
            others = {*keys_of[other].values()}
            paths = [path for path, key in keys_of[split].items() if key in others and path not in listed]
            listed.update(paths)
            found.append(Copies(split, other, [self.name_of(path) for path in paths]))
        return [copies for copies in found if copies.images]

    def refuse_copies(self) -> None:
        """Raise UserError if training or validation images are copies of test images (see `copies.py`).

        Validation images that are copies of training images get a warning.
        """
        for split, other, images in self.copies():
            if other == "test":
                refuse_tested(images, len(self.splits[split]), split)
            count = f"{len(images)} of {len(self.splits[split])} {split} images"
            warning = "%s are training images as well, such as %s; scores on %s are too high: keep one copy of each"
            logger.warning(warning, count, images[0], split)

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
                if self.source is None:
                    self.open(path)
                else:  # at the smallest scale, which reads all bytes as well
                    LazyImage.read(self.source(path), REDUCED).decoded(FACTORS[-1])
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
