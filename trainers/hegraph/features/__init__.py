"""Features: the bank file, encoding a data set into one (`extract.py`), and importing the caches of Tip-Adapter."""

from __future__ import annotations

from .bank import FeatureBank, load_bank

__all__ = ["FeatureBank", "load_bank"]
