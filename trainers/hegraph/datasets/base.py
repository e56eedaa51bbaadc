"""What a data set is: class names in label order, three lists of items, and how to open one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from ..utils.errors import UserError
from ..utils.files import hash_json
from .splits import Item, Selection, subsample_labels

MAX_NAMED = 3  # missing images that a message names


@dataclass(frozen=True)
class Dataset:
    """A labelled image data set: its full splits, or those of a few-shot task.

    Attributes:
        name: As in `DATASET.NAME`.
        classnames: The K class names in label order.
        train: The pool from which few-shot training images are drawn, or what was drawn.
        val: The same for validation; may be empty.
        test: The test images; may be empty.
        open: Takes an item's path, returns the image.
        root: The folder that the items' paths are relative to; None if they are not files.
        class_ids: What tells that a class here is one of another data set, in label order; (): the class names do.
    """

    name: str
    classnames: Sequence[str]
    train: list[Item]
    val: list[Item]
    test: list[Item]
    open: Callable[[str], Image.Image]
    root: Path | None = None
    class_ids: Sequence[str] = ()

    @property
    def ids(self) -> Sequence[str]:
        return self.class_ids or self.classnames

    @property
    def val_is_test(self) -> bool:
        """True where a data set has no validation images and names its test images instead, as ImageNet in CoOp."""
        return bool(self.val) and self.val == self.test

    def select(self, selection: Selection) -> Dataset:
        """The few-shot task that the protocol selects; test is kept whole, and so is val if it is test."""
        val = self.val if self.val_is_test else [self.val[i] for i in selection.val]
        return replace(self, train=[self.train[i] for i in selection.train], val=val)

    def subsample(self, which: str) -> Dataset:
        """All classes, or one half of them with labels from 0: see `splits.subsample_labels`."""
        if which == "all":
            return self
        kept = subsample_labels({item.label for item in self.train or self.test}, which)
        relabelled = {label: new for new, label in enumerate(kept)}

        def keep(items: list[Item]) -> list[Item]:
            return [item._replace(label=relabelled[item.label]) for item in items if item.label in relabelled]

        names = [self.classnames[label] for label in kept]
        ids = [self.ids[label] for label in kept]
        lists = {"train": keep(self.train), "val": keep(self.val), "test": keep(self.test)}
        return replace(self, classnames=names, class_ids=ids, **lists)

    def file_version(self, path: str) -> tuple[int, int] | None:
        """Size in bytes and time of change of an item's file: they change with its content. None without a file."""
        if self.root is None or not (self.root / path).is_file():
            return None
        status = (self.root / path).stat()
        return status.st_size, status.st_mtime_ns

    def file_sizes(self) -> str | None:
        """Hash of the sizes in bytes of all files, None if items are no files. Copying or touching files keeps it."""
        if self.root is None:
            return None
        return hash_json([[path, (self.root / path).stat().st_size] for path in self._paths()])

    def check_files(self) -> None:
        """Raises UserError if the file of an item is missing; the message counts them and names some."""
        if self.root is None:
            return
        paths = self._paths()
        missing = [path for path in paths if not (self.root / path).is_file()]
        if missing:
            named = ", ".join(missing[:MAX_NAMED])
            raise UserError(
                f"{self.name}: {len(missing)} of {len(paths)} images are missing below {self.root}: "
                f"{named}{', ...' if len(missing) > MAX_NAMED else ''}"
            )

    def _paths(self) -> list[str]:
        return list(dict.fromkeys(item.path for item in (*self.train, *self.val, *self.test)))


def class_names(items: Sequence[Item], *others: Sequence[Item]) -> list[str]:
    """The names that items give their labels, in label order.

    Args:
        items: Those that have every label: the training images, if there are any.
        others: Further items, such as val and test, that must agree with them.

    Raises:
        UserError: If a label has two names, labels do not run from 0 without a gap, or another item has a label that
            none of `items` has.
    """
    names: dict[int, str] = {}
    for item in items:
        if names.setdefault(item.label, item.classname) != item.classname:
            raise UserError(f"label {item.label} is both {names[item.label]!r} and {item.classname!r} ({item.path})")
    if sorted(names) != list(range(len(names))):
        absent = next(label for label in range(len(names)) if label not in names)
        raise UserError(f"labels must run from 0 without a gap, but no item has label {absent}")
    for item in (item for further in others for item in further):
        if item.label not in names:
            raise UserError(f"{item.path} has label {item.label} ({item.classname!r}), and no training image has")
        if item.classname != names[item.label]:
            raise UserError(
                f"label {item.label} is {names[item.label]!r} in training and {item.classname!r} for {item.path}"
            )
    return [names[label] for label in range(len(names))]
