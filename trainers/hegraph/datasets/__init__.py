"""Data sets by name."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import unknown
from .base import Dataset
from .digits import load_digits_dataset
from .splits import Item, Selection, read_split_file, select_few_shot

__all__ = ["DATASETS", "Dataset", "Item", "Selection", "load_dataset", "read_split_file", "select_few_shot"]

# name -> function of the data root
DATASETS: dict[str, Callable[[str], Dataset]] = {"Digits": load_digits_dataset}


def load_dataset(name: str, root: str = "") -> Dataset:
    """Loads a data set's splits; no image is opened.

    Args:
        name: `DATASET.NAME`.
        root: The folder that holds all data sets.

    Raises:
        UserError: If the name is not known.
    """
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    return DATASETS[name](root)
