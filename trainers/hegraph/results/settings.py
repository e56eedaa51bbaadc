"""Rows and columns of a comparison that come from configurations: cases of a sweep, and settings.

A case is named in the grid file of a sweep. A setting is a combination of the configuration keys in which runs of one
method differ.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import Field

from ..config_files import convert_value
from ..utils.errors import UserError
from ..utils.reading import LenientModel, read_yaml, validate
from .records import main_score, warn_skipped
from .scores import CASE, method, place

Cases = dict[str, dict[str, Any]]  # name of a case of a sweep -> configuration keys and values


# Cases of a sweep as rows


class _Grid(LenientModel):
    """Cases in the grid file of a sweep; `sweep.grid.Grid` is the whole schema."""

    cases: Annotated[dict[Any, dict[str, Any]], Field(min_length=1)]
    set: dict[str, Any] | None = None


def read_cases(path: Path) -> Cases:
    """Read the cases of a grid file, each with the keys that the file sets for all cases."""
    grid = validate(_Grid, read_yaml(path, "a file of cases"), f"{path} names no cases, as the grid of a sweep does")
    return {str(name): {**(grid.set or {}), **keys} for name, keys in grid.cases.items()}


def name_cases(records: Sequence[dict], cases: Cases) -> list[dict]:
    """Add the key "case" to records, and skip records of no case with a warning.

    A run belongs to a case if it has the values of all its keys. If several cases match, the one with the most keys
    applies, because a case leaves other keys at their defaults.

    Raises:
        UserError: If no run belongs to a case, or runs of several methods do.
    """
    named = []
    for record in records:
        config = record.get("config") or {}
        matching = [name for name, keys in cases.items() if _has_values(config, keys)]
        if matching:
            named.append(record | {CASE: max(matching, key=lambda name: len(cases[name]))})
    if not named:
        raise UserError(f"no run belongs to one of the cases {', '.join(cases)}; name runs of that sweep")
    methods = sorted({record["trainer"] for record in named})
    if len(methods) > 1:
        raise UserError(f"expected cases of one method, got runs of {', '.join(methods)}; name the folder of one")
    warn_skipped(records, named, "of no case")
    return named


def _has_values(config: dict[str, Any], keys: dict[str, Any]) -> bool:
    """Whether the configuration of a record has the values of all keys of a case, as the sweep converts them."""
    return all(_has_value(config, key, value) for key, value in keys.items())


def _has_value(config: dict[str, Any], key: str, value: Any) -> bool:
    if key not in config:
        return value == ""  # a record has some keys only if they are not empty
    try:
        return convert_value(key, value, config[key]) == config[key]
    except UserError:  # of another type than the recorded value
        return False


# Settings: configuration keys in which runs of one method differ


def name_settings(records: Sequence[dict]) -> tuple[list[dict], dict[str, str], str]:
    """Name the setting of every run by the configuration keys in which runs of its method and place differ.

    The name has the keys with another value than the most common one, or all keys if there is none, so that runs of
    several sweeps around one point have short names. If runs of any method differ, methods whose runs do not differ are
    skipped. If no runs differ, all have the setting "".

    Returns:
        Records with the key "setting", such as "ALPHA_PP=0.06"; settings in the order of keys and values -> header of
        the column; and a note on the most common values, or "".
    """
    configs, groups = _differing(records)
    if configs.empty:
        return [record | {"setting": ""} for record in records], {"": "one setting"}, ""
    in_sweep = (configs.groupby(groups).transform("nunique") > 1).any(axis=1)
    swept = [record for record, is_swept in zip(records, in_sweep) if is_swept]
    warn_skipped(records, swept, "of methods without a sweep")
    keys = [str(key) for key in configs]
    short = shortest_names(keys, set().union(*(record.get("config") or {} for record in swept)))
    common = {key: _most_common(configs.loc[in_sweep, key]) for key in keys}
    named: list[dict] = []
    order: dict[str, list[tuple]] = {}
    for record, config in zip(swept, configs[in_sweep].to_dict("records")):
        named_keys = [key for key in keys if config[key] != common[key]] or keys
        setting = ", ".join(f"{short[key]}={_value_text(config[key])}" for key in named_keys)
        order[setting] = [(key, _sort_key(json.loads(config[key]))) for key in named_keys]
        named.append(record | {"setting": setting})
    settings = {setting: setting for setting in sorted(order, key=order.__getitem__)}
    if len(common) == 1:
        return named, settings, ""
    values = [f"{short[key]}={_value_text(common[key])}" for key in keys]
    return named, settings, f"where not named, {', '.join(values)}"


def split_sweeps(records: Sequence[dict]) -> tuple[list[dict], list[list[dict]]]:
    """Separate the runs of sweeps from the other runs.

    Runs with equal place, method, configuration, seed and accuracy, such as the middle of two sweeps, count once. A run
    that trained its own adapter is preferred.

    Returns:
        Runs with the most common value of every key; and for each method and place with other values, all its runs.
    """
    unique: dict[tuple, dict] = {}
    for record in sorted(records, key=lambda record: record.get("adapter_from") is not None):
        key = (*place(record).values(), method(record), record.get("config_hash"), record["seed"], main_score(record))
        unique.setdefault(key, record)
    runs = list(unique.values())
    plain: list[dict] = []
    sweeps = []
    configs, groups = _differing(runs)
    for _, rows in configs.groupby(groups):
        is_plain = (rows == [_most_common(rows[key]) for key in rows]).all(axis=1)
        plain += [runs[i] for i in rows.index[is_plain]]
        sweeps += [] if is_plain.all() else [[runs[i] for i in rows.index]]
    return plain, sweeps


def _differing(records: Sequence[dict]) -> tuple[pd.DataFrame, pd.Series]:
    """Frame with a line per run and a column for each key in which runs of one method and place differ.

    Values are JSON, because lists cannot be hashed. The series has the number of the method and place of each run.
    """
    groups = pd.DataFrame([place(record) | {"method": method(record)} for record in records])
    number = groups.groupby(list(groups), sort=False).ngroup()
    configs: list[dict] = [record.get("config") or {} for record in records]
    keys = sorted(set().union(*configs))
    rows = []
    for config in configs:
        rows.append([json.dumps(config.get(key)) for key in keys])
    values = pd.DataFrame(rows, columns=keys)
    differs = (values.groupby(number).nunique() > 1).any()
    return values.loc[:, differs], number


def shortest_names(keys: Sequence[str], all_keys: set[str]) -> dict[str, str]:
    """Shorten each dotted key to the shortest suffix that no other key of `all_keys` ends with."""
    names = {}
    for key in keys:
        parts = key.split(".")
        for start in range(len(parts) - 1, -1, -1):
            end = ".".join(parts[start:])
            matching = [other for other in all_keys if other == end or other.endswith(f".{end}")]
            if matching == [key]:
                names[key] = end
                break
    return names


def _most_common(values: pd.Series) -> str:
    """Most common value, the first one of equally common ones."""
    return Counter(values).most_common(1)[0][0]


def _value_text(encoded: str) -> str:
    value = json.loads(encoded)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _sort_key(value: object) -> tuple:
    return (0, value, "") if isinstance(value, (int, float)) else (1, 0, str(value))
