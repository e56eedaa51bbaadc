"""Methods side by side: rows are methods, columns are shots, data sets, backbones, targets, settings or costs."""

from __future__ import annotations

import json
import logging
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ..utils.errors import UserError
from ..utils.reading import read_yaml
from ..utils.schema import OpenPart, check
from .paper import Quote, with_quotes
from .scores import (
    CASE,
    MEAN,
    PLACE,
    SOURCE,
    accuracies,
    add_mean_column,
    add_mean_place,
    cells,
    differing_keys,
    in_words,
    method,
    place,
    shortest_names,
)
from .table import Table, tabulate

logger = logging.getLogger(__name__)

BY = (*PLACE, "target", "setting")
ALL_IMAGES = -1  # the number of shots of a run that takes all training images
CAPTION = "Accuracy on test (%)"
BASE = "DATASET.SUBSAMPLE_CLASSES"  # the key that is "base" for a run on the first half of the classes

Cases = dict[str, dict[str, Any]]  # name of a case of a sweep -> configuration keys with their values


def compare(
    records: Sequence[dict],
    by: str = "shots",
    quotes: Sequence[Quote] = (),
    intervals: bool = True,
    cases: Cases | None = None,
) -> Table:
    """Accuracy on test of every method, by one of `BY`.

    By "target", there is a column for the data set of training and one for each further data set that the runs tested
    their models on; by "setting", one for each combination of the configuration keys in which runs of one method
    differ. The test of a trained model on another data set (--eval-only) stands at the data set of the test, and the
    caption says where it was trained.

    Args:
        records: The runs, all with test images.
        by: What the columns are.
        quotes: The paper's numbers; those of the same task get rows of their own.
        intervals: Whether means are shown with their intervals.
        cases: From `read_cases`; rows are these cases then, and runs of none are left out.

    Raises:
        UserError: If a cell would mix runs, if no run is of a case, or by "target" if no run was tested on one.
    """
    if cases is not None:
        records = name_cases(records, cases)
    if by == "target":
        return compare_targets(records, quotes, intervals)
    notes = _sources(records)
    columns: dict[Any, str]
    if by == "setting":
        records, columns, of_settings = name_settings(records)
        notes += of_settings
    else:
        values = sorted({place(record)[by] for record in records}, key=lambda value: (value == ALL_IMAGES, value))
        columns = {value: "all" if value == ALL_IMAGES else in_words(by, value) for value in values}
    keys = [key for key in PLACE if key != by]
    frame = cells((row for record in records for row in accuracies(record, (record | place(record))[by])), keys)
    datasets = list(columns) if by == "dataset" else []
    if len(datasets) > 1:
        frame = add_mean_column(frame, keys, datasets)
        columns[MEAN] = f"mean of {len(datasets)}"
    elif by != "dataset":
        frame = add_mean_place(frame, keys)
    frame = with_quotes(frame, quotes, keys, by, list(columns), datasets)
    caption = "; ".join([f"{CAPTION} by {PLACE.get(by, by)}", *notes])
    unit = "shots" if by == "shots" else ""
    return tabulate(caption, keys, frame, columns, intervals=intervals, unit=unit, cases=list(cases or ()))


def compare_targets(records: Sequence[dict], quotes: Sequence[Quote] = (), intervals: bool = True) -> Table:
    """`compare` by "target"."""
    records = [record for record in records if record.get("targets")]
    if not records:
        raise UserError('no record has "targets": tests of the trained model on other data sets; nothing to compare')
    keys = list(PLACE)
    frame = cells((row for record in records for row in _beside(record, SOURCE, record["targets"])), keys)
    sources = sorted({record["dataset"] for record in records})
    targets = list(dict.fromkeys(name for record in records for name in record["targets"]))
    columns = {SOURCE: f"{sources[0]} (source)" if len(sources) == 1 else "source", **{name: name for name in targets}}
    if len(targets) > 1:
        frame = add_mean_column(frame, keys, targets)
        columns[MEAN] = "mean of targets"
    frame = with_quotes(frame, quotes, keys, "target", list(columns), targets)
    rules = sorted({test.get("rule") or "" for record in records for test in record["targets"].values()} - {""})
    caption = f"{CAPTION}, targets with {' or '.join(rules) or 'any classes'}"
    return tabulate(caption, keys, frame, columns, intervals=intervals)


def base_to_new(records: Sequence[dict]) -> Table:
    """Accuracy on the classes of training (base), on the others (new), and the harmonic mean H of the two.

    On new classes, HeGraphAdapter predicts with the part that can be used there: the text classifier without its
    class-wise biases. Other runs are left out. Raises UserError if a cell would mix runs, or no run is left.
    """
    keys, rows = list(PLACE), []
    for record in records:
        test = (record.get("targets") or {}).get(f"{record['dataset']}:new")
        if test and on_base_classes(record):
            rows += _beside(record, "base", {"new": test})
    if not rows:
        raise UserError(f'no record is of {BASE} base with a target "<data set>:new"; nothing to compare')
    frame = add_mean_place(cells(rows, keys), keys)
    frame = add_mean_column(frame, keys, ("base", "new"), "H", statistics.harmonic_mean)
    caption = f"{CAPTION} of base and new classes and their harmonic mean H (of each seed)"
    return tabulate(caption, keys, frame, {column: column for column in ("base", "new", "H")})


def on_base_classes(record: dict) -> bool:
    """Whether a run was trained on the first half of the classes alone."""
    return (record.get("config") or {}).get(BASE) == "base"


def _sources(records: Sequence[dict]) -> list[str]:
    """For the caption: which data sets were tested with models that were trained on another."""
    tested: dict[tuple[str, str], set[str]] = {}
    for record in records:
        if record.get("rule"):
            source = record.get("trained_on") or "another data set"
            tested.setdefault((record["rule"], source), set()).add(record["dataset"])
    return [
        f"{', '.join(sorted(datasets))} with models trained on {source} ({rule})"
        for (rule, source), datasets in sorted(tested.items())
    ]


def _beside(record: dict, column: str, targets: dict[str, dict]) -> list[dict]:
    """What a run tells of its targets (column -> test) and, in `column`, of its own test images for the same rows."""
    found = [row for name, test in targets.items() for row in accuracies(record, name, test)]
    names = {row["method"] for row in found}
    return [row for row in accuracies(record, column) if row["method"] in names] + found


# Rows that are the cases of a sweep


class _Grid(OpenPart):
    """What the file of a sweep says of cases; the sweep reads the rest."""

    cases: Annotated[dict[Any, dict[str, Any]], Field(min_length=1)]
    set: dict[str, Any] | None = None


def read_cases(path: Path) -> Cases:
    """The cases of a sweep's grid file, in its order, each with the keys that the file sets for all of them."""
    grid = check(_Grid, read_yaml(path, "a file of cases"), f"{path} names no cases, as the grid of a sweep does")
    return {str(name): {**(grid.set or {}), **keys} for name, keys in grid.cases.items()}


def name_cases(records: Sequence[dict], cases: Cases) -> list[dict]:
    """The records of runs that belong to a case, each with its name as "case".

    A run belongs to the case whose values it has and, of several, to the one that names the most keys, since a case
    leaves at its default what it does not name. Runs of no case are left out with a warning. Raises UserError if no run
    belongs to a case, or runs of several methods do.
    """
    named = []
    for record in records:
        config = record.get("config") or {}
        fitting = [name for name, keys in cases.items() if all(config.get(key) == keys[key] for key in keys)]
        if fitting:
            named.append(record | {CASE: max(fitting, key=lambda name: len(cases[name]))})
    if not named:
        raise UserError(f"no run belongs to one of the cases {', '.join(cases)}; name runs of that sweep")
    if len(methods := sorted({record["trainer"] for record in named})) > 1:
        raise UserError(f"the runs of the cases are of several methods ({', '.join(methods)}); name the folders of one")
    _warn_of_the_rest(records, named, "of no case")
    return named


def _warn_of_the_rest(records: Sequence[dict], kept: Sequence[dict], what: str) -> None:
    if len(kept) < len(records):
        logger.warning("%d of %d runs are %s and are left out", len(records) - len(kept), len(records), what)


# Settings: the configuration keys in which runs of one method differ


def name_settings(records: Sequence[dict]) -> tuple[list[dict], dict[str, str], list[str]]:
    """Names the setting of every run by configuration keys in which the runs of its method at its place differ.

    A run's name has the keys that do not have their usual value, or all keys if there is none; so the runs of several
    sweeps around one point have short names. If the runs of one method differ in something, methods whose runs do not
    are left out. If no runs differ, all have one setting, "".

    Returns:
        The records, each with a "setting" such as "ALPHA_PP=0.06" added; a dictionary of these settings, in the order
        of their keys and values, to the heads of their columns; a list with a note on the usual values, or empty.
    """
    groups = [runs for runs in _groups(records) if differing_keys(_configs(runs))]
    if not groups:
        return [record | {"setting": ""} for record in records], {"": "one setting"}, []
    swept = [record for runs in groups for record in runs]
    _warn_of_the_rest(records, swept, "of methods without a sweep")
    keys = sorted({key for runs in groups for key in differing_keys(_configs(runs))})
    short = shortest_names(keys, set().union(*_configs(swept)))
    usual = usual_values(swept, keys)
    named: list[dict] = []
    order: dict[str, list[tuple]] = {}
    for record, config in zip(swept, _configs(swept)):
        shown = [key for key in keys if config.get(key) != usual[key]] or keys
        setting = ", ".join(f"{short[key]}={_text(config.get(key))}" for key in shown)
        order[setting] = [(keys.index(key), _sortable(config.get(key))) for key in shown]
        named.append(record | {"setting": setting})
    settings = {setting: setting for setting in sorted(order, key=order.__getitem__)}
    note = f"where not named, {', '.join(f'{short[key]}={_text(usual[key])}' for key in keys)}"
    return named, settings, [note] if len(keys) > 1 else []


def split_sweeps(records: Sequence[dict]) -> tuple[list[dict], list[list[dict]]]:
    """Splits runs into those with the usual value of every key, and sweeps.

    A sweep has the runs of a method in which one key alone varies; a last one has those in which several vary, beside
    the usual ones. A run that was made twice, as the middle of two sweeps, counts once: of those with the same place,
    method, configuration, seed and accuracy, if possible one that trained its own adapter.
    """
    once: dict[tuple, dict] = {}
    for record in sorted(records, key=lambda record: record.get("adapter_from") is not None):
        made = (*place(record).values(), method(record), record.get("config_hash"), record["seed"], record["accuracy"])
        once.setdefault(made, record)
    plain: list[dict] = []
    sweeps: list[list[dict]] = []
    for runs in _groups(list(once.values())):
        keys = differing_keys(_configs(runs))
        usual = usual_values(runs, keys)
        unusual = [{key for key in keys if config.get(key) != usual[key]} for config in _configs(runs)]
        middle = [run for run, found in zip(runs, unusual) if not found]
        alone = {key: [run for run, found in zip(runs, unusual) if found <= {key}] for key in keys}
        alone = {key: sweep for key, sweep in alone.items() if differing_keys(_configs(sweep))}
        rest = [run for run, found in zip(runs, unusual) if found and not any(found <= {key} for key in alone)]
        plain += middle
        sweeps += [*alone.values(), *([middle + rest] if rest else [])]
    return plain, sweeps


def usual_values(records: Sequence[dict], keys: Sequence[str]) -> dict[str, object]:
    """Key -> its most frequent value, or the first of equally frequent ones."""
    # Values are counted as JSON, since some are lists, which cannot be counted
    counts = {key: Counter(json.dumps(config.get(key)) for config in _configs(records)) for key in keys}
    return {key: json.loads(count.most_common(1)[0][0]) for key, count in counts.items()}


def _configs(records: Sequence[dict]) -> list[dict]:
    return [record.get("config") or {} for record in records]


def _groups(records: Sequence[dict]) -> list[list[dict]]:
    """The runs of one method at one place, for each of these."""
    groups: dict[tuple, list[dict]] = {}
    for record in records:
        groups.setdefault((*place(record).values(), method(record)), []).append(record)
    return list(groups.values())


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _sortable(value: object) -> tuple:
    return (0, value, "") if isinstance(value, (int, float)) else (1, 0, str(value))
