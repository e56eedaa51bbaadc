"""What a data set still needs: the state of each on disk, in the user's words."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from ..utils.errors import UserError
from .catalog import CATALOG, MALFORMED, SPLITS, pools_class_names, read_drawn, read_pools
from .fetch.sources import BY_HAND


@dataclass(frozen=True)
class State:
    """What `check_dataset` found.

    Attributes:
        ready: Whether it can be used.
        lines: What there is, or what is missing, where it was expected and how to get it.
    """

    ready: bool
    lines: list[str]


def check_dataset(name: str, root: str) -> State:
    """Looks whether a data set of the catalog is whole; no image is opened and nothing is written.

    Args:
        name: A key of `CATALOG`.
        root: The folder that holds all data sets.
    """
    entry = CATALOG[name]
    folder = Path(root).expanduser().absolute() / entry.folder
    remedy = [f"get it: python -m trainers.hegraph.datasets download {name} --root {root}"]
    if name in BY_HAND:
        remedy.append(f"by hand: {BY_HAND[name][1]}")
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

    counts = (*(len(pools[split]) for split in SPLITS), len({item.label for item in pools["test"]}))
    lines = [_counts(counts)]
    if counts != entry.sizes:
        lines.append(f"published are {_counts(entry.sizes)}")
    if entry.split_file is not None:
        split_file = folder / entry.split_file
        if not split_file.is_file():
            lines.append(
                f"without {split_file}: the first run will draw a split and write it, as CoOp does, but it is not the "
                "split of published numbers"
            )
            lines += remedy
        elif (drawn := read_drawn(split_file)) is not None:
            lines.append(
                f"{split_file} was drawn here with seed {drawn['seed']}: it is not the split of published numbers; to "
                "get that, delete the file"
            )
            lines += remedy
    return State(True, lines)


def _counts(sizes: tuple[int, ...]) -> str:
    train, val, test, classes = sizes
    return f"{train} train, {val} val and {test} test images of {classes} classes"
