"""Data sets by name, and the few-shot task that a seed selects from one.

The names are imported when they are first used, so that a command of this folder can be interrupted at any time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import Dataset
    from .loading import check_trainable, load_dataset, load_few_shot, load_test_images
    from .splits import Item, Selection, select_few_shot, subsample_labels

_OF_SPLITS = ("Item", "Selection", "select_few_shot", "subsample_labels")
__all__ = [
    "Dataset", "Item", "Selection", "check_trainable", "load_dataset", "load_few_shot", "load_test_images",
    "select_few_shot", "subsample_labels",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = ".base" if name == "Dataset" else ".splits" if name in _OF_SPLITS else ".loading"
    return getattr(importlib.import_module(home, __name__), name)
