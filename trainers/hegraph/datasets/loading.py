"""Data sets by name, and the few-shot task that a seed selects from one."""

from __future__ import annotations

import random
from dataclasses import replace

from ..utils.errors import UserError, unknown
from .base import Dataset
from .entry import DatasetEntry, LoaderEntry
from .registry import ENTRIES, find_entry
from .splits import select_few_shot
from .stored import load_stored, read_coop_selection


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
