"""Names for the cases of a sweep: combinations of configuration keys that are compared with each other."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..utils.errors import UserError
from ..utils.reading import read_yaml

logger = logging.getLogger(__name__)

CASE = "case"  # the key of a record that `name_cases` adds
Cases = dict[str, dict[str, Any]]  # name -> configuration keys with their values


def read_cases(path: Path) -> Cases:
    """The cases of a sweep's grid file, in its order, each with the keys that the file sets for all of them.

    Raises:
        UserError: If the file cannot be read, or names no cases.
    """
    tree = read_yaml(path, "a file of cases")
    cases = tree.get("cases") if isinstance(tree, dict) else None
    if not isinstance(cases, dict) or not all(isinstance(keys, dict) for keys in cases.values()):
        raise UserError(
            f"{path} names no cases; it must hold cases: NAME: {{KEY: VALUE, ...}} lines, as a sweep's grid"
        )
    of_all = tree.get("set") or {}
    if not isinstance(of_all, dict):
        raise UserError(f"{path}: set must hold KEY: ... lines, got {of_all!r:.80}")
    return {str(name): {**of_all, **keys} for name, keys in cases.items()}


def name_cases(records: Sequence[dict], cases: Cases) -> list[dict]:
    """The records of runs that belong to a case, each with its name as "case".

    A run belongs to the case whose values it has. Where it has those of several, it belongs to the one that names the
    most keys, since a case leaves at its default what it does not name.

    Args:
        records: The runs; those of no case are left out, and a warning says so.
        cases: From `read_cases`.

    Raises:
        UserError: If no run belongs to a case, or runs of several methods do.
    """
    named = []
    for record in records:
        config = record.get("config") or {}
        fitting = [name for name, keys in cases.items() if all(_same(config.get(key), keys[key]) for key in keys)]
        if fitting:
            named.append(record | {CASE: max(fitting, key=lambda name: len(cases[name]))})
    if not named:
        raise UserError(f"no run belongs to one of the cases {', '.join(cases)}; name runs of that sweep")
    methods = sorted({record["trainer"] for record in named})
    if len(methods) > 1:
        raise UserError(f"the runs of the cases are of several methods ({', '.join(methods)}); name the folders of one")
    if len(named) < len(records):
        logger.warning("%d of %d runs are of no case and are left out", len(records) - len(named), len(records))
    return named


def _same(value: object, wanted: object) -> bool:
    return value == (list(wanted) if isinstance(wanted, tuple) else wanted)
