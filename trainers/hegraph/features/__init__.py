"""Features: the bank file, encoding images and sentences into one (`extract.py`), importing other people's caches."""

from __future__ import annotations

from .bank import FeatureBank, load_bank

__all__ = ["FeatureBank", "load_bank"]
