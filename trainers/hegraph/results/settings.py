"""Names for the settings in which runs of one method differ, such as the runs of a sensitivity sweep."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence

from .differences import differing_keys, shortest_names
from .methods import PLACE, Place, method, place

logger = logging.getLogger(__name__)


def name_settings(records: Sequence[dict]) -> tuple[list[dict], dict[str, str], list[str]]:
    """Names the setting of every run by configuration keys in which the runs of its method at its place differ.

    The usual value of a key is its most frequent one. A run's name has the keys that do not have their usual value, or
    all keys if there is none; so the runs of several sweeps around one point have short names. If the runs of one
    method differ in something, methods whose runs do not are left out. If no runs differ, all have one setting, "".

    Args:
        records: The runs.

    Returns:
        The records, each with a "setting" such as "ALPHA_PP=0.06" added; a dictionary of these settings, in the order
        of their keys and values, to the heads of their columns; a list with a note on the usual values, or empty.
    """
    groups = {group: runs for group, runs in _groups(records).items() if differing_keys(runs)}
    if not groups:
        return [record | {"setting": ""} for record in records], {"": "one setting"}, []
    swept = [record for runs in groups.values() for record in runs]
    if len(swept) < len(records):
        logger.warning(
            "%d of %d runs are of methods without a sweep and are left out", len(records) - len(swept), len(records)
        )
    keys = sorted({key for runs in groups.values() for key in differing_keys(runs)})
    configs = [record.get("config") or {} for record in swept]
    short = shortest_names(keys, set().union(*configs))
    usual = usual_values(swept, keys)
    named: list[dict] = []
    order: dict[str, list[tuple]] = {}
    for record, config in zip(swept, configs):
        shown = [key for key in keys if config.get(key) != usual[key]] or keys
        setting = ", ".join(f"{short[key]}={_text(config.get(key))}" for key in shown)
        order[setting] = [(keys.index(key), _sortable(config.get(key))) for key in shown]
        named.append(record | {"setting": setting})
    settings = {setting: setting for setting in sorted(order, key=order.__getitem__)}
    note = f"where not named, {', '.join(f'{short[key]}={_text(usual[key])}' for key in keys)}"
    return named, settings, [note] if len(keys) > 1 else []


def split_sweeps(records: Sequence[dict]) -> tuple[list[dict], list[list[dict]]]:
    """Splits runs into those with the usual value of every key, and sweeps, in each of which one key varies.

    A run that was made twice, as the middle of two sweeps, counts once. Every other run is in one of the lists.

    Args:
        records: The runs.

    Returns:
        The runs with usual values; for each method and key the runs in which that key alone varies, and for each method
        those that are in no such list, such as runs in which several keys vary, beside the usual ones.
    """
    plain: list[dict] = []
    sweeps: list[list[dict]] = []
    for runs in _groups(_without_repetitions(records)).values():
        keys = differing_keys(runs)
        usual = usual_values(runs, keys)
        unusual = [{key for key in keys if (run.get("config") or {}).get(key) != usual[key]} for run in runs]
        middle = [run for run, found in zip(runs, unusual) if not found]
        plain += middle
        alone = {key: [run for run, found in zip(runs, unusual) if found <= {key}] for key in keys}
        alone = {key: sweep for key, sweep in alone.items() if differing_keys(sweep)}
        sweeps += alone.values()
        if rest := [run for run, found in zip(runs, unusual) if found and not any(found <= {key} for key in alone)]:
            sweeps.append(middle + rest)
    return plain, sweeps


def usual_values(records: Sequence[dict], keys: Sequence[str]) -> dict[str, object]:
    """Key -> its most frequent value, or the first of equally frequent ones."""
    # Values are counted as JSON, since some are lists, which cannot be counted
    counts = {key: Counter(json.dumps((record.get("config") or {}).get(key)) for record in records) for key in keys}
    return {key: json.loads(count.most_common(1)[0][0]) for key, count in counts.items()}


def _groups(records: Sequence[dict]) -> dict[tuple[Place, str], list[dict]]:
    groups: dict[tuple[Place, str], list[dict]] = {}
    for record in records:
        groups.setdefault((place(record, PLACE), method(record)), []).append(record)
    return groups


def _without_repetitions(records: Sequence[dict]) -> list[dict]:
    """Keeps one run of those with the same place, method, configuration, seed and accuracy: if possible one that
    trained its own adapter.
    """
    first: dict[tuple, dict] = {}
    for record in sorted(records, key=lambda record: record.get("adapter_from") is not None):
        same = (place(record, PLACE), method(record), record.get("config_hash"), record["seed"], record["accuracy"])
        first.setdefault(same, record)
    return list(first.values())


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _sortable(value: object) -> tuple:
    return (0, value, "") if isinstance(value, (int, float)) else (1, 0, str(value))
