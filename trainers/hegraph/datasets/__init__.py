"""Data sets by name, and the few-shot task that a seed selects from one. A name is imported when it is first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import Dataset
    from .loading import check_trainable, load_dataset, load_few_shot, load_test_images
    from .splits import FewShotSample, Item, sample_few_shot, subsample_labels

__all__ = [
    "Dataset", "FewShotSample", "Item", "check_trainable", "load_dataset", "load_few_shot", "load_test_images",
    "sample_few_shot", "subsample_labels",
]  # fmt: skip
_MODULES = {"Dataset": "base"} | dict.fromkeys(
    ("Item", "FewShotSample", "sample_few_shot", "subsample_labels"), "splits"
)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES.get(name, 'loading')}", __name__), name)
