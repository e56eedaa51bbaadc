"""What a data set is: its class names in label order, three lists of items, and a function that opens an item."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..utils.errors import UserError
from ..utils.files import hash_rows
from .images import reason
from .splits import Item, Selection, subsample_labels

if TYPE_CHECKING:
    from PIL import Image

MAX_NAMED = 3  # a message names at most so many missing images


@dataclass(frozen=True)
class Dataset:
    """A labelled image data set: its full splits, or those of a few-shot task.

    Attributes:
        name: As in `DATASET.NAME`.
        classnames: The K class names in label order.
        train: All training images, or those that a few-shot task has drawn from them.
        val: The same of the validation images; may be empty.
        test: The test images; may be empty.
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

    def select(self, selection: Selection) -> Dataset:
        """The few-shot task of a selection. Test is kept whole, and so is val where it is the same images."""
        val = self.val if self.val_is_test else [self.val[i] for i in selection.val]
        return replace(self, train=[self.train[i] for i in selection.train], val=val)

    def subsample(self, which: str) -> Dataset:
        """The data set of all its classes, or of a half of them with new labels (see `splits.subsample_labels`)."""
        if which == "all":
            return self
        kept = subsample_labels({item.label for item in self.train or self.test}, which)
        relabelled = {label: new for new, label in enumerate(kept)}

        def keep(items: list[Item]) -> list[Item]:
            return [item._replace(label=relabelled[item.label]) for item in items if item.label in relabelled]

        names = [self.classnames[label] for label in kept]
        ids = [self.ids[label] for label in kept]
        train, val, test = keep(self.train), keep(self.val), keep(self.test)
        return replace(self, classnames=names, class_ids=ids, train=train, val=val, test=test)

    def without(self, paths: Collection[str]) -> Dataset:
        """The data set without the items that have one of these paths."""
        train, val, test = ([item for item in items if item.path not in paths] for items in self.splits.values())
        return replace(self, train=train, val=val, test=test)

    def file_version(self, path: str) -> tuple[int, int] | None:
        """Size in bytes and time of the last change (ns) of an item's file, which tell versions of it apart.

        What `version` says, if there is one; None if the item is no file.

        Raises:
            UserError: If the source of an item that is no file has no image there.
        """
        if self.version is not None:
            return self._version_of(self.version, path)
        if self.root is None or not (self.root / path).is_file():
            return None
        status = (self.root / path).stat()
        return status.st_size, status.st_mtime_ns

    def file_sizes(self) -> str | None:
        """Hash of the sizes in bytes of all images, which is the same for a copy of them. None if they have none."""
        version = self.version
        if version is not None:
            return hash_rows([path, self._version_of(version, path)[0]] for path in self.paths())
        if self.root is None:
            return None
        root = self.root
        return hash_rows([path, (root / path).stat().st_size] for path in self.paths())

    def check_files(self) -> None:
        """Raises UserError if files of items are missing. The message counts them and names some."""
        if self.root is None:
            return
        paths = self.paths()
        missing = [path for path in paths if not (self.root / path).is_file()]
        if missing:
            named = ", ".join(missing[:MAX_NAMED])
            raise UserError(
                f"{self.name}: {len(missing)} of {len(paths)} images are missing below {self.root}: "
                f"{named}{', ...' if len(missing) > MAX_NAMED else ''}{self._how_to_list()}"
            )

    def paths(self) -> list[str]:
        """The paths of all items, each once."""
        return list(dict.fromkeys(item.path for item in (*self.train, *self.val, *self.test)))

    def read(self, path: str) -> Image.Image:
        """The image of an item, as RGB.

        Raises:
            UserError: If it cannot be read; the message names the file, and how all such files are found.
        """
        try:
            return self.open(path).convert("RGB")
        except Exception as error:  # on damaged bytes, Pillow raises whatever they lead to
            raise self.unreadable(path, reason(error)) from error

    def unreadable(self, path: str, reason: str) -> UserError:
        """The error for an image that cannot be read; it says why, and how all such images are found."""
        return UserError(f"cannot read the image {path} of {self.name}: {reason}{self._how_to_list()}")

    def _how_to_list(self) -> str:
        return f"; list all: {self.check_command}" if self.check_command else ""

    def _version_of(self, version: Callable[[str], tuple[int, int]], path: str) -> tuple[int, int]:
        try:
            return version(path)
        except (UserError, OSError) as error:
            raise self.unreadable(path, getattr(error, "strerror", None) or str(error)) from error


def check_classes(count: int, target: str = "") -> None:
    """Raises UserError if there are fewer than two classes, here or in a target: an image could be of no other one."""
    if count < 2:
        of = f"{target}: " if target else ""
        raise UserError(f"{of}there must be at least two classes to tell apart, got {count}")


def class_names(items: Sequence[Item], *others: Sequence[Item]) -> list[str]:
    """The class names in label order, as items state them.

    Args:
        items: Items of all classes: the training images, if there are any.
        others: Further lists of items, such as val and test, which must agree with them.

    Raises:
        UserError: If a label has two names, if the labels do not run from 0 without a gap, or if one of `others` has a
            label that none of `items` has.
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
