"""The configuration keys and package versions in which runs differ."""

from __future__ import annotations

from collections.abc import Sequence

from ..utils.files import hash_json


def differing_keys(records: Sequence[dict], part: str = "config") -> list[str]:
    """The keys of one part of the records that do not have the same value in all; a missing key counts as a value.

    Args:
        records: The runs.
        part: The key of the record that holds the part: "config" or "versions".
    """
    parts = [record.get(part) or {} for record in records]
    return sorted(key for key in set().union(*parts) if len({hash_json(p.get(key)) for p in parts}) > 1)


def shortest_names(keys: Sequence[str], all_keys: set[str]) -> dict[str, str]:
    """Short names of dotted keys: of each, the shortest last part that no other key ends with.

    Args:
        keys: The keys to name, such as "TRAINER.HEGRAPHADAPTER.ALPHA_PP".
        all_keys: Every key from which the names must tell them apart.
    """
    names = {}
    for key in keys:
        parts = key.split(".")
        ends = (".".join(parts[i:]) for i in range(len(parts) - 1, -1, -1))
        names[key] = next(end for end in ends if [k for k in all_keys if k == end or k.endswith(f".{end}")] == [key])
    return names
