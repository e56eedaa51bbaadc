"""Records as a table of pandas, one row for each run and score, and the two rules of what may be averaged.

First, never average unlike runs: those of a cell are alike in `OF_TEST` and `OF_RUN`, stand at one `PLACE` and have
different seeds; `check_alike` and `check_averaged` refuse anything else. Second, a mean over data sets or columns has
none of them missing; `_mean` sees to it. A new kind of run is kept apart in all tables by one more row of `PLACE`.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from ..baselines import OTHERS
from ..utils.errors import UserError, shortened
from ..utils.files import hash_json
from .records import SAME_CLASSES

OURS = "HeGraphAdapter"
TEXT = f"{OURS}(T)"  # our text classifier without the cache
ZERO_SHOT = "zero-shot"  # CLIP without training; every run tells its accuracy

PAPER = f"{OURS}(paper)"  # the full variant by the paper's recipe, a configuration *_paper
# What no recipe of ours has at once: all of `W` from Glorot's start, no noise and no messages in closed form
OF_THE_PAPER = {"TEXT_W": True, "WEIGHT_INIT": "xavier", "NOISE": 0.0, "CLOSED_FORM.OMEGA": 0.0}

ON_ZERO_SHOT = f"{OURS}(zero-shot)"  # our unlabelled nodes on zero-shot CLIP, without a labelled image

# Rows stand in this order: the other methods as in their registry, a method that neither tuple names, our variants
BASELINES = tuple(ZERO_SHOT if name == "ZeroShot" else name for name in OTHERS)
VARIANTS = (ON_ZERO_SHOT, f"{OURS}(base)", f"{OURS}(free)", f"{OURS}(T-N)", f"{OURS}(T-P)", PAPER, TEXT, OURS)

# The keys of a record that tell experiments of one method apart, each with the head of its column in a table
PROTOCOL = "protocol"
PLACE = {"dataset": "data set", "backbone": "backbone", "shots": "shots", PROTOCOL: "protocol"}
INDUCTIVE = "inductive"  # how a table calls the protocol of records that name none

# What tests and runs of one cell have in common, each with what it is called where it differs. Every method is tested
# alike, so zero-shot CLIP is averaged over the tests of all of them; the rest holds for the runs of one method
OF_TEST = {
    "num_test": "numbers of test images",
    "num_classes": "numbers of classes",
    "rule": "rules for other data sets",
    "trained_on": "data sets of the training",
}
OF_RUN = {
    "test_set": "test images, though of one name",
    "config": "configurations (compare --by setting shows them side by side)",
    "versions": "versions of packages",
}

CASE = "case"  # the key of a record that names the case of a sweep it belongs to
# Columns that no data set is called like: that of a row's mean, and by target that of the data set of the training
MEAN, SOURCE = "\x1fmean", "\x1fsource"
MEAN_OF = "mean of "  # begins the place of means over data sets
ZERO_SHOT_TOLERANCE = 1e-6  # by how many percent zero-shot accuracies of one cell may differ


def method(record: dict) -> str:
    """The name of the row of a run: its case if it has one, else its method and HeGraphAdapter's variant or recipe."""
    if CASE in record:
        return record[CASE]
    if record["trainer"] == "ZeroShot":
        return ON_ZERO_SHOT if record.get(PROTOCOL) else ZERO_SHOT
    if (name := record["trainer"]) != OURS:
        base = (record.get("config") or {}).get(f"TRAINER.{name.upper()}.BASE")
        return f"{name}(zero-shot)" if base == "ZeroShot" else name  # of a transductive method
    if record["variant"] != "full":
        return f"{OURS}({record['variant']})"
    config = record.get("config") or {}
    return PAPER if all(config.get(f"TRAINER.HEGRAPHADAPTER.{k}") == v for k, v in OF_THE_PAPER.items()) else OURS


def method_order(name: str, cases: Sequence[str] = ()) -> tuple[int, int, str]:
    """The key by which the names of rows are sorted; cases stand last, in their order."""
    for rank, names in ((3, cases), (2, VARIANTS), (0, BASELINES)):
        if name in names:
            return rank, names.index(name), name
    return 1, 0, name


def place(record: dict) -> dict[str, Any]:
    """The place of a run: its values of `PLACE`. The protocol of an inductive run, whose record has none, is ""."""
    return {key: (record.get(key) or "") if key == PROTOCOL else record[key] for key in PLACE}


def in_words(key: str, value: object) -> str:
    """A value of a place as the label of a row."""
    return str(value) or (INDUCTIVE if key == PROTOCOL else "")


def score(record: dict, name: str, column: object, value: Any, test: dict | None = None, own: bool = True) -> dict:
    """One number that a run tells of the method `name`, as a row for `cells`.

    Args:
        column: The column of the table that it belongs to.
        test: The test that gave it: one of the record's "targets", or None for the record's own.
        own: Whether the run was made for this method. A full run also tells the accuracy of its text classifier, which
            is what a run of the variant T trains; a cell takes one kind only, the own ones or the others if more.
    """
    row = {"method": name, "column": column, "seed": record["seed"], "value": value, "own": own, "quoted": False}
    told = {key: (test or record).get(key) for key in OF_TEST} | {key: record.get(key) for key in OF_RUN}
    return place(record) | row | told


def accuracies(record: dict, column: object, test: dict | None = None) -> list[dict]:
    """The accuracies that one test of a run tells: of its method, of zero-shot CLIP, of a full run's text classifier.

    On other domains of its classes, a full run is tested with the text classifier alone, so it counts as the variant T.
    On other classes it has no second classifier either, but its text nodes are not those of the training, so it counts
    as the method.
    """
    scores, name = test or record, method(record)
    found = [(name, "accuracy", True), (ZERO_SHOT, "accuracy_zero_shot", True)]
    if name == OURS and scores.get("rule") == SAME_CLASSES:
        found[0] = (TEXT, "accuracy", False)
    elif name == OURS and not scores.get("rule"):
        found.append((TEXT, "accuracy_text", False))
    told = [(row, scores[key], own) for row, key, own in found if scores.get(key) is not None]
    return [score(record, row, column, value, test, own) for row, value, own in told]


def cells(rows: Iterable[dict], keys: Sequence[str], tolerance: float = ZERO_SHOT_TOLERANCE) -> pd.DataFrame:
    """The rows of a table's cells, one for each seed, in the order of their places.

    A cell is a place, which is the values of `keys` of `PLACE`, a method and a column. Its runs may differ by
    `tolerance` about zero-shot CLIP. Raises UserError if it would mix runs that must not be averaged.
    """
    found: dict[tuple, list[dict]] = {}
    for row in sorted(rows, key=lambda row: [row[key] for key in keys]):
        found.setdefault(tuple(row[key] for key in (*keys, "method", "column")), []).append(row)
    kept: list[dict] = []
    for cell, of_cell in found.items():
        kept += _kept(of_cell, ", ".join(filter(None, (str(part).strip("\x1f") for part in cell))), tolerance)
    return pd.DataFrame(kept, dtype=object)


def grouped(frame: pd.DataFrame, keys: Sequence[str]) -> list[tuple[tuple[Any, ...], pd.DataFrame]]:
    """The rows of each combination of values of some columns, in the order in which they come first."""
    found: Any = frame.groupby(list(keys), sort=False)
    return list(found)


def _kept(rows: Sequence[dict], what: str, tolerance: float) -> Sequence[dict]:
    """The rows that stay in a cell, one for each seed."""
    check_alike(rows, PLACE | OF_TEST, what)
    if rows[0]["method"] == ZERO_SHOT:  # runs of any method tell it, and those of one seed must agree
        first: dict[int, dict] = {}
        for row in rows:
            one, other = first.setdefault(row["seed"], row)["value"], row["value"]
            if abs(one - other) > tolerance:
                told = f"disagree about zero-shot CLIP ({one:.2f} and {other:.2f})"
                raise UserError(f"{what}: the runs {told}, so prompts, weights or images differ; name runs of one kind")
        return list(first.values())
    # The cache shares no parameter with the text classifier, so a full run's is as good as that of a run of variant T
    kept = max(([row for row in rows if row["own"] is own] for own in (True, False)), key=len)
    check_averaged(kept, what)
    return kept


def check_averaged(runs: Sequence[Mapping[str, Any]], what: str) -> None:
    """Raises UserError if runs of one method must not be averaged: if they are unlike, or a seed is there twice."""
    check_alike(runs, OF_RUN, what)
    seed, times = Counter(run["seed"] for run in runs).most_common(1)[0]
    if times > 1:
        raise UserError(f"{what}: seed {seed} is there more than once; name each run once")


def check_alike(runs: Sequence[Mapping[str, Any]], parts: Mapping[str, str], what: str) -> None:
    """Raises UserError if runs differ in one of these parts of a record; `what` they were to be averaged for is told.

    Records of earlier versions do not tell the test set, so they are like any other there.
    """
    for part, called in parts.items():
        told = {hash_json(run.get(part)): run.get(part) for run in runs}
        if part == "test_set":
            told.pop(hash_json(None), None)
        if len(told) > 1:
            raise UserError(f"{what}: different {called}: {_difference(list(told.values()))}; name runs of one kind")


def _difference(values: Sequence[Any]) -> str:
    """In what some values differ: the keys of dictionaries, a few of them, or else the values themselves."""
    if not any(isinstance(value, dict) for value in values):
        return ", ".join(shortened(str(value or "none"), 40) for value in sorted(values, key=str))
    names = list(shortest_names(differing_keys(values), set().union(*filter(None, values))).values())
    return ", ".join([*names[:4], "..."][: len(names)])


def differing_keys(parts: Sequence[Mapping[str, Any] | None]) -> list[str]:
    """The keys of some dictionaries that have not one value; a missing key is a value."""
    found = [part or {} for part in parts]
    return sorted(key for key in set().union(*found) if len({hash_json(part.get(key)) for part in found}) > 1)


def shortest_names(keys: Sequence[str], all_keys: set[str]) -> dict[str, str]:
    """Short names of dotted keys: of each, the shortest last part that none of `all_keys` ends with as well."""
    names = {}
    for key in keys:
        parts = key.split(".")
        ends = (".".join(parts[i:]) for i in range(len(parts) - 1, -1, -1))
        names[key] = next(end for end in ends if [k for k in all_keys if k == end or k.endswith(f".{end}")] == [key])
    return names


Mean = Callable[[Iterable[float]], float]


def add_mean_column(
    frame: pd.DataFrame, keys: Sequence[str], columns: Sequence, name: str = MEAN, mean: Mean = statistics.fmean
) -> pd.DataFrame:
    """The cells, with the mean over several columns in every row of the table that has a cell in each of them."""
    some = frame[frame["column"].isin(list(columns))]
    means = [_mean(row, "column", columns, name, mean) for _, row in grouped(some, [*keys, "method"])]
    return _with(frame, means)


def add_mean_place(frame: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """The cells, with those of places that are means over data sets, named after their number, such as "mean of 3".

    A column is averaged over the data sets that have it for any method, so a bank of four images a class leaves the
    means at 16 shots to the others, in a place of their own.
    """
    means = []
    for _, group in grouped(frame, [*(key for key in keys if key != "dataset"), "column"]):
        if len(datasets := list(group["dataset"].unique())) > 1:
            name = f"{MEAN_OF}{len(datasets)}"
            means += [_mean(part, "dataset", datasets, name) for _, part in grouped(group, ["method"])]
    return _with(frame, means)


def _with(frame: pd.DataFrame, means: Sequence[list[dict]]) -> pd.DataFrame:
    rows = [row for mean in means for row in mean]
    return pd.concat([frame, pd.DataFrame(rows, dtype=object)], ignore_index=True) if rows else frame


def _mean(part: pd.DataFrame, over: str, wanted: Sequence, name: str, mean: Mean = statistics.fmean) -> list[dict]:
    """The mean of one method over data sets or columns, as rows; none if one of those is missing.

    It is taken seed by seed if all have the same seeds. Otherwise it is the mean of their means, which is of no seed.
    """
    if set(part[over]) != set(wanted):
        return []
    shared = part.iloc[0].to_dict() | {over: name} | dict.fromkeys([*OF_TEST, *OF_RUN])
    if part.groupby(over)["seed"].agg(frozenset).nunique() > 1:
        part = part.groupby(over, sort=False)["value"].agg(statistics.fmean).reset_index().assign(seed=None)
    means: dict[Any, float] = part.groupby("seed", sort=False, dropna=False)["value"].agg(mean).to_dict()
    return [shared | {"seed": None if pd.isna(seed) else seed, "value": value} for seed, value in means.items()]
