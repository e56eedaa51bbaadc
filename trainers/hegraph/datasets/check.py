"""What a data set below the data root still needs, in words for the user."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from ..utils.commands import command
from ..utils.errors import UserError
from ..utils.files import absolute
from .entry import DatasetEntry, Sizes
from .pools import MALFORMED, pools_class_names, read_drawn, read_pools
from .registry import stored_datasets
from .splits import SPLITS, Pools


@dataclass(frozen=True)
class State:
    """What `check_dataset` found.

    Attributes:
        ready: Whether the data set can be used.
        lines: What there is; or what is missing, where it was expected and how to get it.
    """

    ready: bool
    lines: list[str]


def check_dataset(name: str, root: str) -> State:
    """Finds out whether a data set is whole. No image is opened and nothing is written.

    Args:
        name: One of `stored_datasets`.
        root: The folder that holds all data sets.
    """
    entry = stored_datasets()[name]
    folder = absolute(root) / entry.folder
    remedy = [f"get it: {command(f'datasets download {name} --root {root}')}"] if entry.sources else []
    if entry.by_hand:
        remedy.append(f"by hand: {entry.by_hand.instruction}")
    if not (folder / entry.images).is_dir():
        return State(False, [f"missing: the images, expected in {folder / entry.images}", *remedy])
    try:
        pools = read_pools(entry, folder, seed=1, rng=random.Random(1), write=False)
        pools_class_names(entry, pools)
    except UserError as error:
        return State(False, [f"missing or damaged: {error}", *remedy])
    except MALFORMED as error:
        return State(False, [f"damaged: a file in {folder} has another structure ({error!r})", *remedy])
    paths = {item.path for split in SPLITS for item in pools[split]}
    absent = sorted(path for path in paths if not (folder / path).is_file())
    if absent:
        return State(False, [f"missing: {len(absent)} of {len(paths)} images, {folder / absent[0]}", *remedy])
    warning = _split_warning(entry, folder)
    return State(True, [*_count_lines(entry, pools), *([warning, *remedy] if warning else [])])


def _count_lines(entry: DatasetEntry, pools: Pools) -> list[str]:
    num_classes = len({item.label for item in pools["test"]})
    sizes = Sizes(len(pools["train"]), len(pools["val"]), len(pools["test"]), num_classes)
    lines = [describe_sizes(sizes)]
    if sizes != entry.sizes:
        lines.append(f"published are {describe_sizes(entry.sizes)}")
    return lines


def describe_sizes(sizes: Sizes) -> str:
    """The numbers of images and of classes in words."""
    train, val, test, classes = sizes
    return f"{train} train, {val} val and {test} test images of {classes} classes"


def _split_warning(entry: DatasetEntry, folder: Path) -> str:
    """What to say of a split that is not the published one; "" if it is, or if none was published."""
    if entry.split_file is None or not entry.publishes_split:
        return ""
    split_file = folder / entry.split_file
    if not split_file.is_file():
        return (
            f"without {split_file}: the first run will draw a split and write it, as CoOp does, but it is not the "
            "split of published numbers"
        )
    drawn = read_drawn(split_file)
    if drawn is None:
        return ""
    return (
        f"{split_file} was drawn here with seed {drawn['seed']}: it is not the split of published numbers; to "
        "get that, delete the file"
    )
