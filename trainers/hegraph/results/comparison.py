"""Tables that compare methods: accuracy, training costs and calibration.

Rows are methods or the cases of a sweep. Columns are shots, data sets, backbones, protocols, targets, settings or
scores.
"""

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
from .records import OPEN_SET_RATE, main_score
from .scores import (
    CASE,
    MEAN,
    PLACE,
    SOURCE,
    ZERO_SHOT,
    accuracies,
    cells,
    data_set,
    method,
    place,
    score,
    title,
    with_quotes,
)
from .table import Table, add_mean_places, add_means

logger = logging.getLogger(__name__)

KEYS = list(PLACE)
ALL_IMAGES = -1  # number of shots of a run with all training images

CAPTION = "Accuracy on test (%)"
BASE = "DATASET.SUBSAMPLE_CLASSES"  # configuration key, "base" for runs on the first half of the classes

# Columns -> number of decimals
COSTS = {"epochs": 0, "seconds per epoch": 3, "seconds in all": 2, "trained parameters": 0, "peak memory (MB)": 0}
CALIBRATION = {
    "accuracy": 2, "macro F1": 2, "NLL": 3, "NLL at T": 3, "Brier": 3, "Brier at T": 3, "ECE": 2, "ECE at T": 2, "T": 2,
    "accepted": 2,
}  # fmt: skip
# Column -> key of `records.ProbabilitiesRecord`
SCORES = {"accuracy": "accuracy", "macro F1": "macro_f1", "NLL": "nll", "Brier": "brier", "ECE": "ece"}

Cases = dict[str, dict[str, Any]]  # name of a case of a sweep -> configuration keys and values
Frame = pd.DataFrame | None


def compare(
    records: Sequence[dict], by: str = "shots", quotes: Frame = None, intervals: bool = True, cases: Cases | None = None
) -> Table:
    """Compare the test accuracy of methods.

    A run with --eval-only counts for the data set that it is tested on, and the caption names the training data set.

    Args:
        records: Records of runs with test images.
        by: Key of the columns, one of `scores.BY`. "target" has a column for the training data set and one for each
            other data set of `RunRecord.targets`. "setting" has one for each combination of the configuration keys in
            which runs of one method differ.
        quotes: Numbers of the paper, from `scores.read_quotes`.
        intervals: Whether to print intervals over seeds.
        cases: Cases of a sweep, from `read_cases`, which become the rows. Runs of no case are skipped.

    Raises:
        UserError: If runs of a cell are not comparable, no run belongs to a case, or no run has targets.
    """
    if cases is not None:
        records = name_cases(records, cases)
    if by == "target":
        return _compare_targets(records, quotes, intervals)
    notes = _source_notes(records)
    columns: dict[Any, str]
    if by == "setting":
        records, columns, setting_notes = name_settings(records)
        notes += setting_notes
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
    caption = "; ".join([f"{title(records)} on test (%) by {PLACE.get(by, by)}", *notes])
    return Table(caption, keys, frame, columns, intervals=intervals, by=by, cases=list(cases or ()))


def _compare_targets(records: Sequence[dict], quotes: Frame, intervals: bool) -> Table:
    records = [record for record in records if record.get("targets")]
    if not records:
        raise UserError("expected runs with DATASET.TARGET_DATASETS or DATASET.TARGET_DOMAINS, got none")
    frame = cells((row for record in records for row in _target_rows(record, SOURCE, record["targets"])), KEYS)
    sources = sorted(set(map(data_set, records)))
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
    """Compare the accuracy on the training classes (base), on the other classes (new), and their harmonic mean H.

    Only runs on base classes that were tested on the new classes of the same data set are part of the table.

    Raises:
        UserError: If runs of a cell are not comparable, or there is no such run.
    """
    rows = []
    for record in filter(on_base_classes, records):
        if test := (record.get("targets") or {}).get(f"{record['dataset']}:new"):
            rows += _target_rows(record, "base", {"new": test})
    if not rows:
        raise UserError(f'expected runs with {BASE} base and a target "<data set>:new", got none; name such runs')
    frame = add_mean_places(cells(rows, KEYS), KEYS)
    frame = add_means(frame, "column", KEYS, ("base", "new"), "H", statistics.harmonic_mean)
    caption = f"{CAPTION} of base and new classes and their harmonic mean H (of each seed)"
    return Table(caption, KEYS, frame, {column: column for column in ("base", "new", "H")})


def on_base_classes(record: dict) -> bool:
    """Whether a run was trained on the first half of the classes only."""
    return (record.get("config") or {}).get(BASE) == "base"


def _source_notes(records: Sequence[dict]) -> list[str]:
    """Notes for the caption on models that were trained on another data set than they are tested on."""
    tests = {(r["rule"], r.get("trained_on") or "another data set", data_set(r)) for r in records if r.get("rule")}
    return [
        f"{', '.join(dataset for *_, dataset in tested)} with models trained on {source} ({rule})"
        for (rule, source), tested in groupby(sorted(tests), key=itemgetter(0, 1))
    ]


def _target_rows(record: dict, column: str, targets: dict[str, dict]) -> list[dict]:
    """Rows for the targets of a run (column -> test) and, in `column`, for the run's own test of the same methods."""
    rows = [row for name, test in targets.items() for row in accuracies(record, name, test)]
    names = {row["method"] for row in rows}
    return [row for row in accuracies(record, column) if row["method"] in names] + rows


# Training costs and calibration


def complexity(records: Sequence[dict], quotes: Frame = None) -> Table:
    """Compare the training costs of methods, as means over seeds.

    - Seconds exclude the encoding of features, which all methods share.
    - A method without epochs has "seconds in all" only.
    - A method with hyperparameters selected on val has no seconds per epoch: its seconds cover all candidates, but its
      epochs are those of the selected one.
    - Memory is the peak of the whole process.

    Runs without times, and runs that evaluated the adapter of another run, are skipped.

    Raises:
        UserError: If no run has times, runs were timed on different machines, or runs of a row are not comparable.
    """
    timed = [record for record in records if has_times(record) and not record.get("adapter_from")]
    if not timed:
        raise UserError("the records have no training times (files of `collect` have none); name output folders")
    machines = {machine(record) for record in timed}
    if len(machines) > 1:
        raise UserError(f"the runs were timed on different machines ({'; '.join(sorted(machines))}); name runs on one")
    frame = cells((row for record in timed for row in _costs(record)), KEYS, math.inf)
    frame = with_quotes(frame, quotes, KEYS, "metric", COSTS)
    return Table(f"Training costs, means over seeds, {machines.pop()}", KEYS, frame, decimals=COSTS)


def has_times(record: dict) -> bool:
    """Whether a record has the seconds of training."""
    return "training" in (record.get("seconds") or {})


def machine(record: dict) -> str:
    """Device and number of threads of a run, which training times depend on."""
    return f"{record.get('device')}, {record.get('threads')} threads"


def _costs(record: dict) -> list[dict]:
    epochs, seconds = record.get("epochs"), record["seconds"]["training"]
    per_epoch = seconds / epochs if epochs and record["selected_on"] != "val" else None
    values = (epochs or None, per_epoch, seconds, record.get("num_parameters"), record.get("peak_memory_mb"))
    return [score(record, method(record), column, value) for column, value in zip(COSTS, values)]


def multilabel_table(records: Sequence[dict]) -> Table:
    """Compare methods for several labels per image by mAP, F1, and average precision of each class.

    Raises:
        UserError: If no run has several labels per image, or runs of a row are not comparable.
    """
    several = [record for record in records if record.get("average_precision")]
    if not several:
        raise UserError("expected runs with several labels per image, got none; name such runs")
    columns = {"map": "mAP", "macro_f1": "macro F1", "micro_f1": "micro F1"}
    rows = []
    for record in several:
        values = {key: record.get(key) for key in columns}
        values |= {f"AP {name}": value for name, value in record["average_precision"].items()}
        rows += [score(record, method(record), column, value) for column, value in values.items()]
    columns |= {row["column"]: row["column"] for row in rows if row["column"] not in columns}
    caption = "mAP, F1 at the thresholds of the method, and AP of each class on test (%)"
    return Table(caption, KEYS, cells(rows, KEYS), columns, intervals=False)


def calibration_table(records: Sequence[dict]) -> Table:
    """Compare the probabilities of methods before and after calibration, as means over seeds.

    The column "accepted" is the percentage of test images, all of known classes, that the open-set threshold for
    `OPEN_SET_RATE` accepts.

    Raises:
        UserError: If no record has calibration scores, or runs of a row are not comparable.
    """
    calibrated = list(filter(has_calibration, records))
    if not calibrated:
        kind = "runs with several labels per image have none"
        raise UserError(f"expected runs with calibration scores, got none: {kind}; repeat runs of earlier versions")
    frame = add_mean_places(cells((row for record in calibrated for row in _calibration(record)), KEYS), KEYS)
    units = "NLL in nats, T the temperature, other columns in %"
    caption = f"Probabilities on test: {units}; accepted: by the threshold for {OPEN_SET_RATE:.0%}"
    return Table(caption, KEYS, frame, decimals=CALIBRATION)


def has_calibration(record: dict) -> bool:
    """Whether a record has calibration scores of its method and of zero-shot CLIP."""
    calibration = record.get("calibration") or {}
    parts = [calibration.get(part) or {} for part in ("before", "after")]
    return bool(calibration.get("zero_shot")) and all(part.get("bins") for part in parts)


def _calibration(record: dict) -> list[dict]:
    """Rows with the calibration scores of a run's method, and of zero-shot CLIP without a temperature."""
    part, name = record["calibration"], method(record)
    values = {(name, "T"): part["temperature"], (name, "accepted"): (record.get("rejection") or {}).get("accepted")}
    for column, key in SCORES.items():
        values |= {(name, column): part["before"][key], (ZERO_SHOT, column): part["zero_shot"][key]}
        values[name, f"{column} at T"] = part["after"][key]
    return [score(record, *cell, value) for cell, value in values.items() if cell[1] in CALIBRATION]


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
        matching = [name for name, keys in cases.items() if all(config.get(key) == keys[key] for key in keys)]
        if matching:
            named.append(record | {CASE: max(matching, key=lambda name: len(cases[name]))})
    if not named:
        raise UserError(f"no run belongs to one of the cases {', '.join(cases)}; name runs of that sweep")
    if len(methods := sorted({record["trainer"] for record in named})) > 1:
        raise UserError(f"expected cases of one method, got runs of {', '.join(methods)}; name the folder of one")
    warn_skipped(records, named, "of no case")
    return named


def warn_skipped(records: Sequence, selected: Sequence, description: str) -> None:
    """Log a warning with the number of runs that are not selected, such as runs "of no case"."""
    if len(selected) < len(records):
        logger.warning("%d of %d runs are %s and are skipped", len(records) - len(selected), len(records), description)


# Settings: configuration keys in which runs of one method differ


def name_settings(records: Sequence[dict]) -> tuple[list[dict], dict[str, str], list[str]]:
    """Name the setting of every run by the configuration keys in which runs of its method and place differ.

    The name has the keys with another value than the most common one, or all keys if there is none, so that runs of
    several sweeps around one point have short names. If runs of any method differ, methods whose runs do not differ are
    skipped. If no runs differ, all have the setting "".

    Returns:
        Records with the key "setting", such as "ALPHA_PP=0.06"; settings in the order of keys and values -> header of
        the column; and a list with a note on the most common values, or an empty list.
    """
    configs, groups = _differing(records)
    if configs.empty:
        return [record | {"setting": ""} for record in records], {"": "one setting"}, []
    in_sweep = (configs.groupby(groups).transform("nunique") > 1).any(axis=1)
    swept = [record for record, is_swept in zip(records, in_sweep) if is_swept]
    warn_skipped(records, swept, "of methods without a sweep")
    keys = [str(key) for key in configs]
    short = shortest_names(keys, {key for record in swept for key in record.get("config") or {}})
    common = {key: _most_common(configs.loc[in_sweep, key]) for key in keys}
    named: list[dict] = []
    order: dict[str, list[tuple]] = {}
    for record, config in zip(swept, configs[in_sweep].to_dict("records")):
        named_keys = [key for key in keys if config[key] != common[key]] or keys
        setting = ", ".join(f"{short[key]}={_value_text(config[key])}" for key in named_keys)
        order[setting] = [(key, _sort_key(json.loads(config[key]))) for key in named_keys]
        named.append(record | {"setting": setting})
    settings = {setting: setting for setting in sorted(order, key=order.__getitem__)}
    note = f"where not named, {', '.join(f'{short[key]}={_value_text(common[key])}' for key in keys)}"
    return named, settings, [note] if len(common) > 1 else []


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
    keys = sorted({key for config in configs for key in config})
    values = pd.DataFrame([[json.dumps(config.get(key)) for key in keys] for config in configs], columns=keys)
    differs = (values.groupby(number).nunique() > 1).any()
    return values.loc[:, differs], number


def shortest_names(keys: Sequence[str], all_keys: set[str]) -> dict[str, str]:
    """Shorten each dotted key to the shortest suffix that no other key of `all_keys` ends with."""
    names = {}
    for key in keys:
        parts = key.split(".")
        ends = (".".join(parts[i:]) for i in range(len(parts) - 1, -1, -1))
        names[key] = next(end for end in ends if [k for k in all_keys if k == end or k.endswith(f".{end}")] == [key])
    return names


def _most_common(values: pd.Series) -> str:
    """Most common value, the first one of equally common ones."""
    return Counter(values).most_common(1)[0][0]


def _value_text(encoded: str) -> str:
    value = json.loads(encoded)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _sort_key(value: object) -> tuple:
    return (0, value, "") if isinstance(value, (int, float)) else (1, 0, str(value))
