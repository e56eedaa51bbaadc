"""Which row of a table a run belongs to, in which order rows stand, and what keeps experiments of one method apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..baselines import METHODS
from .cases import CASE

OURS = "HeGraphAdapter"
TEXT = f"{OURS}(T)"  # our text classifier without the cache
ZERO_SHOT = "zero-shot"  # CLIP without training; every run tells its accuracy

# Rows stand in this order: the other methods as in their registry, a method that neither tuple names, our variants
BASELINES = tuple(ZERO_SHOT if name == "ZeroShot" else name for name in METHODS)
VARIANTS = (f"{OURS}(base)", f"{OURS}(free)", f"{OURS}(T-N)", f"{OURS}(T-P)", TEXT, OURS)

# The keys of a record that tell experiments of one method apart, each with the head of its column in a table
PLACE = {"dataset": "data set", "backbone": "backbone", "shots": "shots"}

Place = tuple[Any, ...]  # the values of some keys of PLACE


def method(record: dict) -> str:
    """The name of the row that a run belongs to: its method and, for HeGraphAdapter, the variant.

    A run that `name_cases` has named belongs to the row of its case.
    """
    if CASE in record:
        return record[CASE]
    if record["trainer"] == "ZeroShot":
        return ZERO_SHOT
    if record["trainer"] != OURS:
        return record["trainer"]
    return OURS if record["variant"] == "full" else f"{OURS}({record['variant']})"


def method_order(name: str, cases: Sequence[str] = ()) -> tuple[int, int, str]:
    """The key by which the names of rows are sorted; cases stand last, in their order."""
    if name in cases:
        return 3, cases.index(name), name
    if name in VARIANTS:
        return 2, VARIANTS.index(name), name
    return (0, BASELINES.index(name), name) if name in BASELINES else (1, 0, name)


def place(record: dict, keys: Iterable[str]) -> Place:
    """The values that a record has for some keys of `PLACE`."""
    return tuple(record[key] for key in keys)
