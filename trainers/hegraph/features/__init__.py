"""Features: the bank file, encoding images and sentences into one, importing other people's caches."""

from __future__ import annotations

from .bank import FeatureBank, load_bank
from .extract import ImageViews, encode_prompts, encode_task, encode_test, training_augmentation

__all__ = [
    "FeatureBank", "ImageViews", "encode_prompts", "encode_task", "encode_test", "load_bank", "training_augmentation",
]  # fmt: skip
