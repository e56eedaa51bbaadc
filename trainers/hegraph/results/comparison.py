"""Methods side by side: rows are methods, columns are shots, data sets, backbones, targets, settings or costs."""

from __future__ import annotations

import json
import logging
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import Field

from ..utils.errors import UserError
from ..utils.reading import LenientModel, read_yaml, validate
from .records import OPEN_SET_RATE
from .scores import CASE, MEAN, PLACE, SOURCE, ZERO_SHOT, accuracies, cells, method, place, score, with_quotes
from .table import Table, add_mean_places, add_means

logger = logging.getLogger(__name__)

KEYS = list(PLACE)
ALL_IMAGES = -1  # the number of shots of a run that takes all training images
CAPTION = "Accuracy on test (%)"
BASE = "DATASET.SUBSAMPLE_CLASSES"  # the key that is "base" for a run on the first half of the classes

# Columns, each with the decimals that it shows
COSTS = {"epochs": 0, "seconds per epoch": 3, "seconds in all": 2, "trained parameters": 0, "peak memory (MB)": 0}
HONESTY = {
    "accuracy": 2, "macro F1": 2, "NLL": 3, "NLL at T": 3, "Brier": 3, "Brier at T": 3, "ECE": 2, "ECE at T": 2, "T": 2,
    "accepted": 2,
}  # fmt: skip
SCORES = {"accuracy": "accuracy", "macro F1": "macro_f1", "NLL": "nll", "Brier": "brier", "ECE": "ece"}  # in a record

Cases = dict[str, dict[str, Any]]  # name of a case of a sweep -> configuration keys with their values


def compare(
    records: Sequence[dict],
    by: str = "shots",
    quotes: pd.DataFrame | None = None,
    intervals: bool = True,
    cases: Cases | None = None,
) -> Table:
    """Accuracy on test of every method, by one of `scores.BY`.

    By "target", there is a column for the data set of training and one for each further data set that the runs tested
    their models on; by "setting", one for each combination of the configuration keys in which runs of one method
    differ. The test of a trained model on another data set (--eval-only) stands at the data set of the test, and the
    caption says where it was trained. All `records` have test images. With `cases`, from `read_cases`, rows are these
    cases, and runs of none are left out.

    Raises UserError if a cell would mix runs, if no run is of a case, or by "target" if no run was tested on one.
    """
    if cases is not None:
        records = name_cases(records, cases)
    if by == "target":
        return _compare_targets(records, quotes, intervals)
    notes = _sources(records)
    columns: dict[Any, str]
    if by == "setting":
        records, columns, of_settings = name_settings(records)
        notes += of_settings
    else:
        values = sorted({place(record)[by] for record in records}, key=lambda value: (value == ALL_IMAGES, value))
        columns = {value: "all" if value == ALL_IMAGES else str(value) for value in values}
    keys = [key for key in KEYS if key != by]
    frame = cells((row for record in records for row in accuracies(record, (record | place(record))[by])), keys)
    if by != "dataset":
        frame = add_mean_places(frame, keys)
    elif len(columns) > 1:
        frame = add_means(frame, "column", keys, list(columns), MEAN)
        columns[MEAN] = f"mean of {len(columns)}"
    frame = with_quotes(frame, quotes, keys, by, columns)
    caption = "; ".join([f"{CAPTION} by {PLACE.get(by, by)}", *notes])
    return Table(caption, keys, frame, columns, intervals=intervals, by=by, cases=list(cases or ()))


def _compare_targets(records: Sequence[dict], quotes: pd.DataFrame | None, intervals: bool) -> Table:
    records = [record for record in records if record.get("targets")]
    if not records:
        raise UserError('no record has "targets": tests of the trained model on other data sets; nothing to compare')
    frame = cells((row for record in records for row in _beside(record, SOURCE, record["targets"])), KEYS)
    sources = sorted({record["dataset"] for record in records})
    targets = list(dict.fromkeys(name for record in records for name in record["targets"]))
    columns = {SOURCE: f"{sources[0]} (source)" if len(sources) == 1 else "source", **{name: name for name in targets}}
    if len(targets) > 1:
        frame = add_means(frame, "column", KEYS, targets, MEAN)
        columns[MEAN] = "mean of targets"
    frame = with_quotes(frame, quotes, KEYS, "target", columns)
    rules = sorted({test.get("rule") or "" for record in records for test in record["targets"].values()} - {""})
    caption = f"{CAPTION}, targets with {' or '.join(rules) or 'any classes'}"
    return Table(caption, KEYS, frame, columns, intervals=intervals)


def base_to_new(records: Sequence[dict]) -> Table:
    """Accuracy on the classes of training (base), on the others (new), and the harmonic mean H of the two.

    On new classes, HeGraphAdapter predicts with the part that can be used there: the text classifier without its
    class-wise biases. Other runs are left out. Raises UserError if a cell would mix runs, or no run is left.
    """
    rows = []
    for record in filter(on_base_classes, records):
        if test := (record.get("targets") or {}).get(f"{record['dataset']}:new"):
            rows += _beside(record, "base", {"new": test})
    if not rows:
        raise UserError(f'no record is of {BASE} base with a target "<data set>:new"; nothing to compare')
    frame = add_mean_places(cells(rows, KEYS), KEYS)
    frame = add_means(frame, "column", KEYS, ("base", "new"), "H", statistics.harmonic_mean)
    caption = f"{CAPTION} of base and new classes and their harmonic mean H (of each seed)"
    return Table(caption, KEYS, frame, {column: column for column in ("base", "new", "H")})


def on_base_classes(record: dict) -> bool:
    """Whether a run was trained on the first half of the classes alone."""
    return (record.get("config") or {}).get(BASE) == "base"


def _sources(records: Sequence[dict]) -> list[str]:
    """For the caption: which data sets were tested with models that were trained on another."""
    away = {(r["rule"], r.get("trained_on") or "another data set", r["dataset"]) for r in records if r.get("rule")}
    return [
        f"{', '.join(dataset for *_, dataset in tested)} with models trained on {source} ({rule})"
        for (rule, source), tested in groupby(sorted(away), key=itemgetter(0, 1))
    ]


def _beside(record: dict, column: str, targets: dict[str, dict]) -> list[dict]:
    """What a run tells of its targets (column -> test) and, in `column`, of its own test images for the same rows."""
    found = [row for name, test in targets.items() for row in accuracies(record, name, test)]
    names = {row["method"] for row in found}
    return [row for row in accuracies(record, column) if row["method"] in names] + found


# What runs tell beside accuracy


def complexity(records: Sequence[dict], quotes: pd.DataFrame | None = None) -> Table:
    """What training took, as means over seeds. All runs must have been timed on one kind of machine.

    Seconds are those of training alone, since features are encoded once for all methods. A method without epochs has
    "seconds in all" only. A method that chose on val has no seconds per epoch: its seconds are those of all candidates,
    its epochs those of the one that was chosen. Memory is the peak of the whole process. Runs without times, and those
    that tested another run's adapter, are left out. Raises UserError if no run has times, the machines differ, or a row
    would mix runs.
    """
    timed = [record for record in records if has_times(record) and not record.get("adapter_from")]
    if not timed:
        raise UserError("the records hold no times of training (`collect` leaves them out); name output folders")
    machines = {machine(record) for record in timed}
    if len(machines) > 1:
        raise UserError(f"times on different machines ({'; '.join(sorted(machines))}); name runs on one")
    frame = cells((row for record in timed for row in _costs(record)), KEYS, math.inf)
    frame = with_quotes(frame, quotes, KEYS, "metric", COSTS)
    caption = f"What training takes, means over seeds, {machines.pop()}"
    return Table(caption, KEYS, frame, decimals=COSTS)


def has_times(record: dict) -> bool:
    """Whether a record tells how long the training took."""
    return "training" in (record.get("seconds") or {})


def machine(record: dict) -> str:
    """The machine of a run, as far as its times depend on it: device and number of threads."""
    return f"{record.get('device')}, {record.get('threads')} threads"


def _costs(record: dict) -> list[dict]:
    epochs, seconds = record.get("epochs"), record["seconds"]["training"]
    each = seconds / epochs if epochs and record["selected_on"] != "val" else None
    values = (epochs or None, each, seconds, record.get("num_parameters"), record.get("peak_memory_mb"))
    return [score(record, method(record), column, value) for column, value in zip(COSTS, values)]


def calibration_table(records: Sequence[dict]) -> Table:
    """The scores of each method before and after calibration, as means over seeds, and what the threshold for `KEEP` of
    the images of known classes keeps of the test images, which are all of known classes.

    Raises UserError if no run tells them, or a row would mix runs.
    """
    known = list(filter(has_calibration, records))
    if not known:
        raise UserError("no record holds calibration, which runs of earlier versions did not measure; run it again")
    frame = add_mean_places(cells((row for record in known for row in _honesty(record)), KEYS), KEYS)
    caption = (
        f"Probabilities on test: NLL in nats, T the temperature, else %; kept by the threshold for {OPEN_SET_RATE:.0%}"
    )
    return Table(caption, KEYS, frame, decimals=HONESTY)


def has_calibration(record: dict) -> bool:
    """Whether a record tells how honest the probabilities of its method and of zero-shot CLIP are."""
    found = record.get("calibration") or {}
    return bool(found.get("zero_shot")) and all((found.get(part) or {}).get("bins") for part in ("before", "after"))


def _honesty(record: dict) -> list[dict]:
    """The numbers that a run tells about its method, and about zero-shot CLIP without a temperature."""
    found, name = record["calibration"], method(record)
    values = {(name, "T"): found["temperature"], (name, "accepted"): (record.get("rejection") or {}).get("accepted")}
    for column, key in SCORES.items():
        values |= {(name, column): found["before"][key], (ZERO_SHOT, column): found["zero_shot"][key]}
        values[name, f"{column} at T"] = found["after"][key]
    return [score(record, *of, value) for of, value in values.items() if of[1] in HONESTY]


# Rows that are the cases of a sweep


class _Grid(LenientModel):
    """What the file of a sweep says of cases; the sweep reads the rest."""

    cases: Annotated[dict[Any, dict[str, Any]], Field(min_length=1)]
    set: dict[str, Any] | None = None


def read_cases(path: Path) -> Cases:
    """The cases of a sweep's grid file, in its order, each with the keys that the file sets for all of them."""
    grid = validate(_Grid, read_yaml(path, "a file of cases"), f"{path} names no cases, as the grid of a sweep does")
    return {str(name): {**(grid.set or {}), **keys} for name, keys in grid.cases.items()}


def name_cases(records: Sequence[dict], cases: Cases) -> list[dict]:
    """The records of runs that belong to a case, each with its name as "case".

    A run belongs to the case whose values it has and, of several, to the one that names the most keys, since a case
    leaves at its default what it does not name. Runs of no case are left out with a warning. Raises UserError if no run
    belongs to a case.
    """
    named = []
    for record in records:
        config = record.get("config") or {}
        fitting = [name for name, keys in cases.items() if all(config.get(key) == keys[key] for key in keys)]
        if fitting:
            named.append(record | {CASE: max(fitting, key=lambda name: len(cases[name]))})
    if not named:
        raise UserError(f"no run belongs to one of the cases {', '.join(cases)}; name runs of that sweep")
    warn_of_the_rest(records, named, "of no case")
    return named


def warn_of_the_rest(records: Sequence[dict], kept: Sequence[dict], what: str) -> None:
    """Logs how many of some runs are left out, and what they are."""
    if len(kept) < len(records):
        logger.warning("%d of %d runs are %s and are left out", len(records) - len(kept), len(records), what)


# Settings: the configuration keys in which runs of one method differ


def name_settings(records: Sequence[dict]) -> tuple[list[dict], dict[str, str], list[str]]:
    """Names the setting of every run by configuration keys in which the runs of its method at its place differ.

    A run's name has the keys that do not have their usual value, or all keys if there is none; so the runs of several
    sweeps around one point have short names. If the runs of one method differ in something, methods whose runs do not
    are left out. If no runs differ, all have one setting, "".

    Returns the records, each with a "setting" such as "ALPHA_PP=0.06" added; a dictionary of these settings, in the
    order of their keys and values, to the heads of their columns; a list with a note on the usual values, or empty.
    """
    configs, groups = _differing(records)
    if configs.empty:
        return [record | {"setting": ""} for record in records], {"": "one setting"}, []
    in_sweep = (configs.groupby(groups).transform("nunique") > 1).any(axis=1)
    swept = [record for record, is_swept in zip(records, in_sweep) if is_swept]
    warn_of_the_rest(records, swept, "of methods without a sweep")
    keys = [str(key) for key in configs]
    short = shortest_names(keys, {key for record in swept for key in record.get("config") or {}})
    usual = {key: _most_common(configs.loc[in_sweep, key]) for key in keys}
    named: list[dict] = []
    order: dict[str, list[tuple]] = {}
    for record, config in zip(swept, configs[in_sweep].to_dict("records")):
        shown = [key for key in keys if config[key] != usual[key]] or keys
        setting = ", ".join(f"{short[key]}={_text(config[key])}" for key in shown)
        order[setting] = [(key, _sortable(json.loads(config[key]))) for key in shown]
        named.append(record | {"setting": setting})
    settings = {setting: setting for setting in sorted(order, key=order.__getitem__)}
    note = f"where not named, {', '.join(f'{short[key]}={_text(usual[key])}' for key in keys)}"
    return named, settings, [note] if len(usual) > 1 else []


def split_sweeps(records: Sequence[dict]) -> tuple[list[dict], list[list[dict]]]:
    """The runs with the usual value of every key, and of each method at each place with other runs all its runs.

    A run that was made twice, as the middle of two sweeps, counts once: of those with the same place, method,
    configuration, seed and accuracy, if possible one that trained its own adapter.
    """
    once: dict[tuple, dict] = {}
    for record in sorted(records, key=lambda record: record.get("adapter_from") is not None):
        made = (*place(record).values(), method(record), record.get("config_hash"), record["seed"], record["accuracy"])
        once.setdefault(made, record)
    runs = list(once.values())
    plain: list[dict] = []
    sweeps = []
    configs, groups = _differing(runs)
    for _, rows in configs.groupby(groups):
        is_usual = (rows == [_most_common(rows[key]) for key in rows]).all(axis=1)
        plain += [runs[i] for i in rows.index[is_usual]]
        sweeps += [] if is_usual.all() else [[runs[i] for i in rows.index]]
    return plain, sweeps


def _differing(records: Sequence[dict]) -> tuple[pd.DataFrame, pd.Series]:
    """A line for each run: the values of the keys in which runs of one method at one place differ, as JSON since some
    are lists, in a column for each; and the number of its method at its place.
    """
    groups = pd.DataFrame([place(record) | {"method": method(record)} for record in records])
    number = groups.groupby(list(groups), sort=False).ngroup()
    configs: list[dict] = [record.get("config") or {} for record in records]
    keys = sorted({key for config in configs for key in config})
    found = pd.DataFrame([[json.dumps(config.get(key)) for key in keys] for config in configs], columns=keys)
    differs = (found.groupby(number).nunique() > 1).any()
    return found.loc[:, differs], number


def shortest_names(keys: Sequence[str], all_keys: set[str]) -> dict[str, str]:
    """Short names of dotted keys: of each, the shortest last part that none of `all_keys` ends with as well."""
    names = {}
    for key in keys:
        parts = key.split(".")
        ends = (".".join(parts[i:]) for i in range(len(parts) - 1, -1, -1))
        names[key] = next(end for end in ends if [k for k in all_keys if k == end or k.endswith(f".{end}")] == [key])
    return names


def _most_common(values: pd.Series) -> str:
    """Of equally frequent ones, the first."""
    return Counter(values).most_common(1)[0][0]


def _text(value: str) -> str:
    found = json.loads(value)
    return f"{found:g}" if isinstance(found, float) else str(found)


def _sortable(value: object) -> tuple:
    return (0, value, "") if isinstance(value, (int, float)) else (1, 0, str(value))
