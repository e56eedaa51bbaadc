"""Data sets by name, and the few-shot task that a seed selects from one."""

from .base import Dataset
from .loading import check_trainable, load_dataset, load_few_shot, load_test_images
from .splits import Item, Selection, select_few_shot, subsample_labels

__all__ = [
    "Dataset", "Item", "Selection", "check_trainable", "load_dataset", "load_few_shot", "load_test_images",
    "select_few_shot", "subsample_labels",
]  # fmt: skip
