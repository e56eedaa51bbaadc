"""Loading a data set by its name, and the few-shot task that a seed, or CoOp itself before, selects from it.

A split is read from CoOp's split file. Where that is missing, the split is drawn from the seed and written there, as
CoOp does. A file beside it (`.drawn`) keeps the seed and the state of the random generator after drawing, so that a
later run with this seed selects what the first run did.
"""

from __future__ import annotations

import csv
import logging
import os
import random
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..utils.commands import command
from ..utils.errors import UserError, first_line, unknown
from ..utils.files import absolute
from ..utils.reading import reading
from ..utils.schema import check
from .base import Dataset, class_names
from .digits import load_digits_dataset
from .images import is_image, open_below
from .layouts import class_ids
from .own import load_own_images
from .registry import ENTRIES, Entry, find_entry
from .splits import (
    SPLITS,
    Item,
    Pools,
    check_pools,
    read_coop_pickle,
    read_drawn,
    read_split_file,
    select_few_shot,
    write_drawn,
)

logger = logging.getLogger(__name__)

# The data sets that need no folder below the data root: what loads them, given `DATASET.ROOT` and their name
LOADERS: dict[str, Callable[[str, str], Dataset]] = {"digits": load_digits_dataset, "own": load_own_images}


def load_dataset(name: str, root: str = "", seed: int = 1, rng: random.Random | None = None) -> Dataset:
    """Loads a data set with its full splits. No image is opened. A missing split is drawn from `rng`, which was made
    from `seed` and goes on after that; None makes one.
    """
    entry = find_entry(check(str, name, "name"))
    check(Path, root, "root", convert=True)
    if entry is None:
        raise unknown("data set", name, ENTRIES)
    if entry.loader:
        return LOADERS[entry.loader](root, entry.name)
    return _load_stored(entry, root, seed, rng or random.Random(seed))


def load_few_shot(name: str, root: str, shots: int, seed: int, subsample: str = "all") -> Dataset:
    """Loads the few-shot task that CoOp's protocol selects. All image files exist then; none was opened.

    `shots` are training images per class, -1 for all; `subsample` is "all", "base" or "new" classes.
    """
    shots, seed = check(int, shots, "shots", convert=True), check(int, seed, "seed", convert=True)
    if seed < 0:
        raise UserError(f"the few-shot protocol needs a seed from 0, got {seed}")
    rng = random.Random(seed)
    dataset = load_dataset(name, root, seed, rng)
    check_trainable(dataset)
    entry = find_entry(name)
    drawn = read_coop_selection(dataset, entry.folder, shots, seed) if entry and entry.folder else None
    if drawn is not None:
        dataset = dataset.with_splits(drawn)
    else:
        train_labels, val_labels = ([item.label for item in items] for items in (dataset.train, dataset.val))
        dataset = dataset.select(select_few_shot(train_labels, val_labels, shots, rng))
    dataset = dataset.subsample(subsample)
    dataset.check_files()
    return dataset


def load_test_images(name: str, root: str, seed: int, subsample: str = "all") -> Dataset:
    """Loads the test images of a data set, without its others; as `load_few_shot`."""
    dataset = replace(load_dataset(name, root, seed).subsample(subsample), train=[], val=[])
    dataset.check_files()
    return dataset


def load_pool(name: str, root: str, seed: int, subsample: str, used: Collection[str]) -> Dataset:
    """The training and validation images of a data set as test images, without those whose paths are `used`; otherwise
    as `load_few_shot`. Where the validation images are the test images, as ImageNet's, they are not taken.
    """
    whole = load_dataset(name, root, seed).subsample(subsample)
    items = [*whole.train, *([] if whole.val_is_test else whole.val)]
    return replace(whole, train=[], val=[], test=[item for item in items if item.path not in used])


def load_unlabelled(source: Path) -> Dataset:
    """Images without labels as the test images of a data set without classes; UserError if there is none. None is
    opened. `source` is a folder, which is walked into, or a CSV file with the column `path`, relative to its folder.
    """
    if source.is_dir():
        base = source
        found = (Path(folder) / name for folder, _, names in os.walk(source) for name in names if is_image(name))
        paths = sorted(path.relative_to(base).as_posix() for path in found)
    else:
        base = source.parent
        with reading(source, "a CSV file with a column path"), source.open(encoding="utf-8-sig", newline="") as file:
            paths = [row["path"] for row in csv.DictReader(file)]
    if not paths:
        raise UserError(f"{source} holds no image")
    items = [Item(path, 0, "") for path in paths]
    dataset = Dataset(str(source), [], [], [], items, partial(open_below, base), absolute(base))
    dataset.check_files()
    return dataset


def check_trainable(dataset: Dataset) -> None:
    """Raises UserError if a data set has only test images. The message says what to train on instead."""
    if not dataset.train:
        name, entry = dataset.name, find_entry(dataset.name)
        source = entry.train_on if entry and entry.train_on else "another data set"
        raise UserError(f"{name} has only test images: train on {source} with --target-domains {name}")


# --- data sets that have a folder below the data root


def _load_stored(entry: Entry, root: str, seed: int, rng: random.Random) -> Dataset:
    """A data set below the folder of all data sets. A missing split is drawn from `rng`, which was made from `seed`."""
    name, base = entry.name, absolute(root)
    folder = base / entry.folder
    hint = "see " + command(f"datasets check {name} --root {root or '.'}")
    if not folder.is_dir():
        raise UserError(f"{name} is not in {folder}; set --root to the folder that holds {entry.folder}/, or {hint}")
    try:
        pools, names = read_stored(entry, folder, seed, rng)
        ids = class_ids(folder, entry.class_ids) if entry.class_ids else ()
    except UserError as error:
        raise UserError(f"{name}: {error}; {hint}") from error
    train, val, test = (
        [item._replace(path=f"{entry.folder}/{item.path}") for item in pools[split]] for split in SPLITS
    )
    return Dataset(name, names, train, val, test, partial(open_below, base, as_stored=True), base, ids)


def read_stored(
    entry: Entry, folder: Path, seed: int, rng: random.Random, write: bool = True
) -> tuple[Pools, list[str]]:
    """The full splits of a data set, with paths relative to its folder, and its class names in label order.

    A missing split is drawn from `rng`, which was made from `seed`, and written if `write`. If the split file was drawn
    with this seed, `rng` is set to its state after that.
    """
    split_file = folder / entry.split_file  # the folder itself where the split is official
    prefix = f"{entry.images}/" if entry.images else ""  # of paths, which the split file leaves out
    listed = split_file.is_file()
    if listed:
        drawn = read_drawn(split_file)
        if drawn is not None and drawn.seed == seed:
            rng.setstate(drawn.state)
        pools = {
            split: [item._replace(path=prefix + item.path) for item in items]
            for split, items in read_split_file(split_file).items()
        }
    else:
        try:
            pools = entry.read(folder, rng)
        except (LookupError, TypeError, ValueError) as error:  # what a list of another structure leads to
            missing = f"{split_file} is missing, and " if entry.split_file else ""
            raise UserError(f"{missing}no split can be made of what is in {folder}: {first_line(error)}") from error
    needed = ("test",) if entry.train_on else ("train", "test")
    if empty := next((split for split in needed if not pools[split]), ""):
        raise UserError(f"there is no {empty} image")
    names = class_names(*(pools[split] for split in (SPLITS if not entry.train_on else ("test",))))
    if entry.split_file and not listed:
        check_pools(pools, str(folder))
        if write:
            cut = len(prefix)
            shown = {split: [item._replace(path=item.path[cut:]) for item in pools[split]] for split in SPLITS}
            _write_split(entry, split_file, shown, seed, rng)
    return pools, names


def _write_split(entry: Entry, split_file: Path, pools: Pools, seed: int, rng: random.Random) -> None:
    try:
        write_drawn(split_file, pools, seed, rng.getstate())
    except UserError as error:
        logger.warning("%s; every seed will draw a split, and a test set, of its own", error)
        return
    more = ""
    if entry.publishes_split:
        fetch = command(f"datasets download {entry.name} --root {split_file.parent.parent}")
        more = f". It is not the split of published numbers; to get that, delete the file and run {fetch}"
    logger.warning("%s was missing: drawn with seed %d and written, as CoOp does%s", split_file, seed, more)


def read_coop_selection(dataset: Dataset, folder: str, shots: int, seed: int) -> Pools | None:
    """The few-shot task that CoOp selected in this data root for these shots and this seed; None if it did not.

    CoOp keeps its selection as a pickle in `folder` and takes it in every later run, so it is taken here as well. One
    that was drawn from another split than the one that is here is an error.
    """
    assert dataset.root is not None  # it lies below the data root
    path = dataset.root / folder / "split_fewshot" / f"shot_{shots}-seed_{seed}.pkl"
    if not path.is_file():
        return None
    logger.info("%s: CoOp's own few-shot selection is used", path)
    drawn = read_coop_pickle(path, folder)
    known, test = set(enumerate(dataset.classnames)), {item.path for item in dataset.test}
    why = "" if "val" in drawn or dataset.val_is_test else "it has no val"
    for item in (item for items in drawn.values() for item in items):
        if item[1:] not in known or item.path in test:
            why = f"{item.path} is {'a test image' if item.path in test else repr(item.classname)}"
    if why:
        raise UserError(f"{path} was drawn from another split; delete it to draw anew ({why})")
    return drawn
