"""The list of all data sets, and how one is found by its name. Adding a data set adds one row here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..utils.errors import UserError, unknown
from .entries import (
    caltech101,
    digits,
    dtd,
    eurosat,
    fgvc_aircraft,
    folder,
    food101,
    imagenet,
    imagenet_a,
    imagenet_r,
    imagenet_sketch,
    imagenetv2,
    oxford_flowers,
    oxford_pets,
    stanford_cars,
    sun397,
    ucf101,
)
from .entry import DatasetEntry, Entry


def plain_name(name: str) -> str:
    """A name as it is compared: in lower case, without `_` and `-`."""
    return name.lower().replace("_", "").replace("-", "")


def by_name(entries: Sequence[Entry]) -> dict[str, Entry]:
    """Entries by their names.

    Raises:
        UserError: If a name or alias belongs to two of them.
    """
    _names_by_spelling(entries)
    return {entry.name: entry for entry in entries}


def _names_by_spelling(entries: Iterable[Entry]) -> dict[str, str]:
    """Every name and alias in its `plain_name` form -> the exact name.

    Raises:
        UserError: If one belongs to two entries, since one would be read in the place of the other.
    """
    owners: dict[str, str] = {}
    for entry in entries:
        for spelling in {plain_name(name) for name in (entry.name, *entry.aliases)}:
            if spelling in owners:
                raise UserError(
                    f"the data sets {owners[spelling]} and {entry.name} are both called {spelling!r}; give each its own"
                    " names"
                )
            owners[spelling] = entry.name
    return owners


# CoOp's name -> entry. `datasets check` looks at the data sets in this order.
ENTRIES: dict[str, Entry] = by_name(
    (
        *digits.ENTRIES,
        folder.ENTRY,
        imagenet.ENTRY,
        caltech101.ENTRY,
        oxford_pets.ENTRY,
        stanford_cars.ENTRY,
        oxford_flowers.ENTRY,
        food101.ENTRY,
        fgvc_aircraft.ENTRY,
        sun397.ENTRY,
        dtd.ENTRY,
        eurosat.ENTRY,
        ucf101.ENTRY,
        imagenetv2.ENTRY,
        imagenet_sketch.ENTRY,
        imagenet_a.ENTRY,
        imagenet_r.ENTRY,
    )
)


def find_entry(name: str) -> Entry | None:
    """The entry with exactly this name, `DATASET.NAME`; None if there is none."""
    return ENTRIES.get(name)


def stored_datasets() -> dict[str, DatasetEntry]:
    """The data sets that have a folder below the data root (CoOp's fifteen), by name and in the registry's order."""
    return {name: entry for name, entry in ENTRIES.items() if isinstance(entry, DatasetEntry)}


def resolve_name(name: str, among: Iterable[str] | None = None) -> str:
    """The exact name of the data set that a user means.

    Args:
        name: Its name or one of its aliases; case, `_` and `-` are ignored.
        among: Exact names of the data sets that it may be; None allows all.

    Raises:
        UserError: If it is none of them. The message suggests the nearest.
    """
    entries = [ENTRIES[allowed] for allowed in (ENTRIES if among is None else among)]
    found = canonical_name(name)
    if found not in [entry.name for entry in entries]:
        raise unknown("data set", name, [spelling for entry in entries for spelling in (entry.name, *entry.aliases)])
    return found


def canonical_name(name: str) -> str:
    """As `resolve_name`, but a name that is not known is returned as it came."""
    return names_by_spelling().get(plain_name(name), name)


def names_by_spelling() -> dict[str, str]:
    """Every name and alias in its `plain_name` form -> the exact name."""
    return _names_by_spelling(ENTRIES.values())
