"""Data sets by name, and the few-shot task that a seed selects from one."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from ..utils.errors import UserError, unknown
from .base import Dataset
from .catalog import CATALOG, load_pools, read_coop_selection
from .digits import DOMAINS, HALVES, load_digits_dataset
from .folder import load_image_folder
from .splits import Item, Selection, select_few_shot, subsample_labels

__all__ = [
    "DATASETS", "Dataset", "Item", "Selection", "check_trainable", "load_dataset", "load_few_shot", "select_few_shot",
    "subsample_labels",
]  # fmt: skip

# Those outside the catalog: name -> function of --root
OTHERS: dict[str, Callable[[str], Dataset]] = {
    "Digits": load_digits_dataset,
    **{name: partial(load_digits_dataset, name=name) for name in (*DOMAINS, *HALVES)},
    "ImageFolder": load_image_folder,
}
DATASETS = (*OTHERS, *CATALOG)


def load_dataset(name: str, root: str = "", seed: int = 1, rng: random.Random | None = None) -> Dataset:
    """Loads a data set's full splits; no image is opened.

    Args:
        name: `DATASET.NAME`.
        root: The folder that holds all data sets; of ImageFolder, the folder or CSV file itself.
        seed: What a missing split is drawn with.
        rng: Goes on with this generator, which was made from `seed`; None makes one.

    Raises:
        UserError: If the name is not known, or something is missing on disk.
    """
    if name in OTHERS:
        return OTHERS[name](root)
    if name in CATALOG:
        return load_pools(name, root, seed, rng or random.Random(seed))
    raise unknown("data set", name, DATASETS)


def load_few_shot(name: str, root: str, shots: int, seed: int, subsample: str = "all") -> Dataset:
    """The few-shot task that CoOp's protocol selects; images are known to exist, and are not opened.

    Args:
        name: `DATASET.NAME`.
        root: As for `load_dataset`.
        shots: Training images per class; -1: all.
        seed: From 0.
        subsample: "all", "base" or "new" classes.

    Raises:
        UserError: If the name is not known, something is missing on disk, or the data set has only test images.
    """
    if seed < 0:
        raise UserError(f"the few-shot protocol needs a seed from 0, got {seed}")
    rng = random.Random(seed)
    dataset = load_dataset(name, root, seed, rng)
    check_trainable(dataset)
    drawn = read_coop_selection(dataset, shots, seed) if name in CATALOG else None
    if drawn is not None:
        dataset = replace(dataset, **drawn)
    else:
        labels = ([item.label for item in items] for items in (dataset.train, dataset.val))
        dataset = dataset.select(select_few_shot(*labels, shots, rng))
    dataset = dataset.subsample(subsample)
    dataset.check_files()
    return dataset


def check_trainable(dataset: Dataset) -> None:
    """Raises UserError if a data set has only test images; the message says what to train on."""
    if not dataset.train:
        name, source = dataset.name, "Digits" if dataset.name in DOMAINS else "ImageNet"
        raise UserError(f"{name} has only test images: train on {source} with --target-domains {name}")
