"""Loading a data set by its name, and the few-shot task that a seed, or CoOp itself before, selects from it.

A split is read from CoOp's split file. Where that is missing, the split is drawn from the seed and written there, as
CoOp does. A file beside it (`.drawn`) keeps the seed and the state of the random generator after drawing, so that a
later run with this seed selects what the first run did.
"""

from __future__ import annotations

import logging
import random
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..utils.commands import command
from ..utils.errors import UserError, unknown
from ..utils.files import absolute
from .base import Dataset, class_names
from .entry import DatasetEntry, LoaderEntry
from .images import open_image
from .layouts import is_folder
from .registry import ENTRIES, find_entry
from .split_files import check_pools, read_coop_pickle, read_drawn, read_split_file, write_drawn
from .splits import SPLITS, Pools, select_few_shot

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

MALFORMED = (KeyError, TypeError, ValueError, IndexError)  # what reading a file of an unexpected structure may raise


def load_dataset(name: str, root: str = "", seed: int = 1, rng: random.Random | None = None) -> Dataset:
    """Loads a data set with its full splits. No image is opened.

    Args:
        name: `DATASET.NAME`.
        root: The folder that holds all data sets. For ImageFolder, the folder or CSV file itself.
        seed: The seed that a missing split is drawn with.
        rng: A generator that was made from `seed`, to draw from and go on with; None makes one.

    Raises:
        UserError: If the name is not known, or something is missing on disk.
    """
    entry = find_entry(name)
    if isinstance(entry, LoaderEntry):
        return entry.load(root)
    if isinstance(entry, DatasetEntry):
        return load_stored(entry, root, seed, rng or random.Random(seed))
    raise unknown("data set", name, ENTRIES)


def load_few_shot(name: str, root: str, shots: int, seed: int, subsample: str = "all") -> Dataset:
    """Loads the few-shot task that CoOp's protocol selects. All image files exist then; none was opened.

    Args:
        name, root: As for `load_dataset`.
        shots: Training images per class; -1 for all.
        seed: The seed of the selection, from 0.
        subsample: "all", "base" or "new" classes.

    Raises:
        UserError: If the name is not known, something is missing on disk, or the data set has only test images.
    """
    if seed < 0:
        raise UserError(f"the few-shot protocol needs a seed from 0, got {seed}")
    rng = random.Random(seed)
    dataset = load_dataset(name, root, seed, rng)
    check_trainable(dataset)
    entry = find_entry(name)
    drawn = read_coop_selection(dataset, entry.folder, shots, seed) if isinstance(entry, DatasetEntry) else None
    if drawn is not None:
        val, test = drawn.get("val", dataset.val), drawn.get("test", dataset.test)
        dataset = replace(dataset, train=drawn["train"], val=val, test=test)
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


def check_trainable(dataset: Dataset) -> None:
    """Raises UserError if a data set has only test images. The message says what to train on instead."""
    if not dataset.train:
        name, entry = dataset.name, find_entry(dataset.name)
        source = entry.train_on if entry and entry.train_on else "another data set"
        raise UserError(f"{name} has only test images: train on {source} with --target-domains {name}")


# --- data sets that have a folder below the data root


def load_stored(entry: DatasetEntry, root: str, seed: int, rng: random.Random) -> Dataset:
    """Loads a data set with its full splits from the folder of all data sets. No image is opened.

    A missing split is drawn from `rng`, which was made from `seed`; the few-shot protocol draws from it afterwards.
    """
    name = entry.name
    base = absolute(root)
    folder = base / entry.folder
    check = command(f"datasets check {name} --root {root or '.'}")
    hint = f"see {check}"
    if not is_folder(folder):
        raise UserError(f"{name} is not in {folder}; set --root to the folder that holds {entry.folder}/, or {hint}")
    try:
        pools = read_pools(entry, folder, seed, rng)
        classnames = pools_class_names(entry, pools)
        ids = entry.class_ids(folder) if entry.class_ids else ()
    except MALFORMED as error:  # a UserError is a ValueError
        reason = str(error) if isinstance(error, UserError) else f"a file there has another structure ({error!r})"
        raise UserError(f"{name}: {reason}; {hint}") from error
    items = {split: [item._replace(path=f"{entry.folder}/{item.path}") for item in pools[split]] for split in SPLITS}
    if pools["val"] is pools["test"]:
        items["val"] = items["test"]
    train, val, test = (items[split] for split in SPLITS)
    return Dataset(name, classnames, train, val, test, open=partial(open_stored, base), root=base, class_ids=ids)


def open_stored(base: Path, path: str) -> Image.Image:
    """Opens an image below the data root, as Dassl reads it."""
    return open_image(base / path, as_stored=True)


def read_pools(entry: DatasetEntry, folder: Path, seed: int, rng: random.Random, write: bool = True) -> Pools:
    """The full splits of a data set, with paths relative to its folder.

    Args:
        seed: The seed that `rng` was made from. If the split file was drawn with it, `rng` is set to its state then.
        rng: The generator that a missing split is drawn from.
        write: Whether a split that had to be drawn is written to the split file.
    """
    if entry.split_file is None:
        return entry.read(folder, rng)
    split_file = folder / entry.split_file
    prefix = f"{entry.images}/" if entry.images else ""
    if split_file.is_file():
        drawn = read_drawn(split_file)
        if drawn is not None and drawn["seed"] == seed:
            rng.setstate(drawn["state"])
        pools = read_split_file(split_file)
        return {split: [item._replace(path=prefix + item.path) for item in pools[split]] for split in SPLITS}
    try:
        pools = entry.read(folder, rng)
    except UserError as error:
        raise UserError(f"{split_file} is missing, and no split can be drawn instead: {error}") from error
    pools_class_names(entry, pools)  # checks the split before it is written
    check_pools(pools, str(folder))
    if write:
        listed = {split: [item._replace(path=item.path[len(prefix) :]) for item in pools[split]] for split in SPLITS}
        _write_split(entry, split_file, listed, seed, rng)
    return pools


def _write_split(entry: DatasetEntry, split_file: Path, pools: Pools, seed: int, rng: random.Random) -> None:
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


def pools_class_names(entry: DatasetEntry, pools: Pools) -> list[str]:
    """The class names in label order; UserError if a split is empty, or they do not agree on what a label means."""
    needed = ("test",) if entry.train_on else ("train", "test")
    empty = next((split for split in needed if not pools[split]), None)
    if empty is not None:
        raise UserError(f"there is no {empty} image")
    if entry.train_on:
        return class_names(pools["test"])
    return class_names(pools["train"], pools["val"], pools["test"])


def read_coop_selection(dataset: Dataset, folder: str, shots: int, seed: int) -> Pools | None:
    """The few-shot task that CoOp selected in this data root for these shots and this seed; None if it did not.

    CoOp keeps its selection as a pickle in `folder` and takes it in every later run, so it is taken here as well. One
    that was drawn from another split than the one that is here is an error.
    """
    if shots < 1 or dataset.root is None:
        return None  # CoOp keeps no selection of all images
    path = dataset.root / folder / "split_fewshot" / f"shot_{shots}-seed_{seed}.pkl"
    if not path.is_file():
        return None
    logger.info("%s: CoOp's own few-shot selection is used", path)
    drawn = read_coop_pickle(path, folder)
    remedy = f"{path} was drawn from another split; delete it to draw anew"
    if "val" not in drawn and not dataset.val_is_test:
        raise UserError(f"{remedy} (it has no val)")
    names, test = dict(enumerate(dataset.classnames)), {item.path for item in dataset.test}
    for item in (item for items in drawn.values() for item in items):
        if names.get(item.label) != item.classname:
            raise UserError(f"{remedy} ({item.path} has label {item.label}, {item.classname!r})")
        if item.path in test:
            raise UserError(f"{remedy} ({item.path} is a test image)")
    return drawn
