"""Tables that compare methods: accuracy, training costs and calibration.

Rows are methods or the cases of a sweep. Columns are shots, data sets, backbones, protocols, targets, settings or
scores.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import pandas as pd

from ..datasets.registry import canonical_name
from ..utils.errors import UserError
from .records import COVERAGE, OPEN_SET_RATE, warn_skipped
from .scores import (
    MACRO,
    MEAN,
    PLACE,
    SOURCE,
    ZERO_SHOT,
    accuracies,
    cells,
    data_set,
    macro_accuracies,
    method,
    place,
    score,
    title,
    with_quotes,
)
from .settings import Cases, name_cases, name_settings
from .table import Table, add_mean_places, add_means

KEYS = list(PLACE)
ALL_IMAGES = -1  # number of shots of a run with all training images

CAPTION = "Accuracy on test (%)"
BASE = "DATASET.SUBSAMPLE_CLASSES"  # configuration key, "base" for runs on the first half of the classes

# Columns -> number of decimals
COSTS = {"epochs": 0, "seconds per epoch": 3, "seconds in all": 2, "trained parameters": 0, "peak memory (MB)": 0}
CALIBRATION = {
    "accuracy": 2, "macro F1": 2, "NLL": 3, "NLL at T": 3, "Brier": 3, "Brier at T": 3, "ECE": 2, "ECE at T": 2, "T": 2,
    "accepted": 2, "coverage": 2, "classes": 2,
}  # fmt: skip
# Column -> key of `records.ProbabilitiesRecord`
SCORES = {"accuracy": "accuracy", "macro F1": "macro_f1", "NLL": "nll", "Brier": "brier", "ECE": "ece"}

Frame = pd.DataFrame | None


def compare(
    records: Sequence[dict],
    by: str = "shots",
    quotes: Frame = None,
    intervals: bool = True,
    cases: Cases | None = None,
    macro: bool = False,
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
        cases: Cases of a sweep, from `settings.read_cases`, which become the rows. Runs of no case are skipped.
        macro: Whether to compare the macro accuracy, the mean of the accuracies of the classes. Runs without it, of
            earlier versions, are skipped.

    Raises:
        UserError: If runs of a cell are not comparable, no run belongs to a case, no run has targets, or no run has a
            macro accuracy.
    """
    if macro:
        records = _with_macro_accuracy(records, by, quotes)
    if cases is not None:
        records = name_cases(records, cases)
    if by == "target":
        return _compare_targets(records, quotes, intervals)
    notes = _source_notes(records)
    columns: dict[Any, str]
    if by == "setting":
        records, columns, note = name_settings(records)
        notes += [note] if note else []
    else:
        values = sorted({place(record)[by] for record in records}, key=lambda value: (value == ALL_IMAGES, value))
        columns = {value: "all" if value == ALL_IMAGES else str(value) for value in values}
    keys = [key for key in KEYS if key != by]
    rows = []
    for record in records:
        column = (record | place(record))[by]
        rows += macro_accuracies(record, column) if macro else accuracies(record, column)
    frame = cells(rows, keys)
    if by != "dataset":
        frame = add_mean_places(frame, keys)
    elif len(columns) > 1:
        frame = add_means(frame, "column", keys, list(columns), MEAN)
        columns[MEAN] = f"mean of {len(columns)}"
    frame = with_quotes(frame, quotes, keys, by, columns)
    name = "Macro accuracy" if macro else title(records)
    caption = "; ".join([f"{name} on test (%) by {PLACE.get(by, by)}", *notes])
    return Table(caption, keys, frame, columns, intervals=intervals, by=by, cases=list(cases or ()))


def _with_macro_accuracy(records: Sequence[dict], by: str, quotes: Frame) -> list[dict]:
    """Return the records with a macro accuracy, and warn about others; UserError if `compare` cannot compare it."""
    if by == "target":
        raise UserError("records have no macro accuracy of targets; leave out --macro or --by target")
    if quotes is not None:
        raise UserError("the paper has no macro accuracy; leave out --macro or --quote")
    with_macro = [record for record in records if record.get(MACRO) is not None]
    warn_skipped(records, with_macro, "without a macro accuracy")
    if not with_macro:
        raise UserError("expected runs with a macro accuracy, got none; repeat runs of earlier versions")
    return with_macro


def _compare_targets(records: Sequence[dict], quotes: Frame, intervals: bool) -> Table:
    records = [record for record in records if record.get("targets")]
    if not records:
        raise UserError("expected runs with DATASET.TARGET_DATASETS or DATASET.TARGET_DOMAINS, got none")
    rows = []
    targets: list[str] = []
    rules = set()
    for record in records:
        rows += _target_rows(record, SOURCE, record["targets"])
        for name, test in record["targets"].items():
            rules.add(test.get("rule") or "")
            if name not in targets:
                targets.append(name)
    frame = cells(rows, KEYS)
    sources = sorted(set(map(data_set, records)))
    columns = {SOURCE: f"{sources[0]} (source)" if len(sources) == 1 else "source"}
    columns |= {name: name for name in targets}
    if len(targets) > 1:
        frame = add_means(frame, "column", KEYS, targets, MEAN)
        columns[MEAN] = "mean of targets"
    frame = with_quotes(frame, quotes, KEYS, "target", columns)
    classes = " or ".join(sorted(rules - {""})) or "any classes"
    caption = f"{CAPTION}, targets with {classes}"
    return Table(caption, KEYS, frame, columns, intervals=intervals)


def base_to_new(records: Sequence[dict]) -> Table:
    """Compare the accuracy on the training classes (base), on the other classes (new), and their harmonic mean H.

    Only runs on base classes that were tested on the new classes of the same data set are part of the table.

    Raises:
        UserError: If runs of a cell are not comparable, or there is no such run.
    """
    rows = []
    for record in filter(on_base_classes, records):
        for name, test in (record.get("targets") or {}).items():
            dataset, _, half = name.rpartition(":")
            if half == "new" and canonical_name(dataset) == canonical_name(record["dataset"]):
                rows += _target_rows(record, "base", {"new": test})
    if not rows:
        advice = f"train with --target-datasets NAME:new {BASE} base, NAME the data set of the run"
        raise UserError(f"no run was trained on the base classes and tested on the new ones; {advice}")
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
    tested: dict[tuple[str, str], list[str]] = {}
    for rule, source, dataset in sorted(tests):
        tested.setdefault((rule, source), []).append(dataset)
    notes = []
    for (rule, source), datasets in tested.items():
        notes.append(f"{', '.join(datasets)} with models trained on {source} ({rule})")
    return notes


def _target_rows(record: dict, column: str, targets: dict[str, dict]) -> list[dict]:
    """Rows for the targets of a run (column -> test) and, in `column`, for the run's own test of the same methods."""
    rows = []
    for name, test in targets.items():
        rows += accuracies(record, name, test)
    names = {row["method"] for row in rows}
    own_rows = [row for row in accuracies(record, column) if row["method"] in names]
    return own_rows + rows


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
    rows = []
    for record in timed:
        rows += _costs(record)
    frame = cells(rows, KEYS, math.inf)
    frame = with_quotes(frame, quotes, KEYS, "metric", COSTS)
    return Table(f"Training costs, means over seeds, {machines.pop()}", KEYS, frame, decimals=COSTS)


def has_times(record: dict) -> bool:
    """Whether a record has the seconds of training."""
    return "training" in (record.get("seconds") or {})


def machine(record: dict) -> str:
    """Device and number of threads of a run, which training times depend on."""
    return f"{record.get('device')}, {record.get('threads')} threads"


def _costs(record: dict) -> list[dict]:
    """Rows with the training costs of a run."""
    epochs = record.get("epochs")
    seconds = record["seconds"]["training"]
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
        raise UserError("no run has several labels per image; `results compare` compares runs with one label per image")
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
    `OPEN_SET_RATE` accepts. The column "coverage" is the percentage of test images whose prediction set for `COVERAGE`
    contains their class, and "classes" the mean number of classes in a set.

    Raises:
        UserError: If no record has calibration scores, or runs of a row are not comparable.
    """
    calibrated = list(filter(has_calibration, records))
    if not calibrated:
        kind = "runs with several labels per image have none"
        raise UserError(f"expected runs with calibration scores, got none: {kind}; repeat runs of earlier versions")
    rows = []
    for record in calibrated:
        rows += _calibration(record)
    frame = add_mean_places(cells(rows, KEYS), KEYS)
    units = "NLL in nats, Brier score from 0 to 2, T the temperature, other columns in %"
    accepted = f"accepted: by the threshold for {OPEN_SET_RATE:.0%}"
    of_sets = f"coverage, classes: of prediction sets for {COVERAGE:.0%}"
    caption = f"Probabilities on test: {units}; {accepted}; {of_sets}"
    return Table(caption, KEYS, frame, decimals=CALIBRATION)


def has_calibration(record: dict) -> bool:
    """Whether a record has calibration scores of its method."""
    calibration = record.get("calibration") or {}
    parts = [calibration.get(part) or {} for part in ("before", "after")]
    return all(part.get("bins") for part in parts)


def _calibration(record: dict) -> list[dict]:
    """Rows with the calibration scores of a run's method, and of zero-shot CLIP without a temperature."""
    part = record["calibration"]
    name = method(record)
    sets = record.get("prediction_sets") or {}
    values = {
        (name, "T"): part["temperature"],
        (name, "accepted"): (record.get("rejection") or {}).get("accepted"),
        (name, "coverage"): sets.get("coverage"),
        (name, "classes"): sets.get("mean_size"),
    }
    for column, key in SCORES.items():
        values[name, column] = part["before"][key]
        if part.get("zero_shot"):  # a run without class texts has none
            values[ZERO_SHOT, column] = part["zero_shot"][key]
        values[name, f"{column} at T"] = part["after"][key]
    return [score(record, *cell, value) for cell, value in values.items() if cell[1] in CALIBRATION]
