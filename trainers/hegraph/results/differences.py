"""In which configuration keys and versions runs differ."""

from __future__ import annotations

from collections.abc import Sequence

from ..utils.files import hash_json


def differing_keys(records: Sequence[dict], part: str = "config") -> list[str]:
    """The keys of a part of the records whose values are not all the same; a missing one counts as a value."""
    parts = [record.get(part) or {} for record in records]
    return sorted(key for key in set().union(*parts) if len({hash_json(p.get(key)) for p in parts}) > 1)


def shortest_names(keys: Sequence[str], all_keys: set[str]) -> dict[str, str]:
    """For each dotted key the shortest end of it that is the end of no other."""
    names = {}
    for key in keys:
        parts = key.split(".")
        ends = (".".join(parts[i:]) for i in range(len(parts) - 1, -1, -1))
        names[key] = next(end for end in ends if [k for k in all_keys if k == end or k.endswith(f".{end}")] == [key])
    return names
