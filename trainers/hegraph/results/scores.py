"""Records as tables of pandas, one row for each run and score, and the two rules of what may be averaged.

Runs of a cell have one configuration, one set of package versions, one test set and different seeds; anything else is
refused. A mean over data sets or columns has none of them missing.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pandas as pd

from ..baselines import METHODS
from ..utils.errors import UserError
from ..utils.files import hash_json
from .records import SAME_CLASSES

OURS = "HeGraphAdapter"
TEXT = f"{OURS}(T)"  # our text classifier without the cache
ZERO_SHOT = "zero-shot"  # CLIP without training; every run tells its accuracy

PAPER = f"{OURS}(paper)"  # the full variant by the paper's recipe, a configuration *_paper
# What no recipe of ours has at once: all of `W` from Glorot's start, no noise and no messages in closed form
OF_THE_PAPER = {"TEXT_W": True, "WEIGHT_INIT": "xavier", "NOISE": 0.0, "CLOSED_FORM.OMEGA": 0.0}

# Rows stand in this order: the other methods as in their registry, a method that neither tuple names, our variants
BASELINES = tuple(ZERO_SHOT if name == "ZeroShot" else name for name in METHODS)
VARIANTS = (f"{OURS}(base)", f"{OURS}(free)", f"{OURS}(T-N)", f"{OURS}(T-P)", PAPER, TEXT, OURS)

# The keys of a record that tell experiments of one method apart, each with the head of its column in a table
PLACE = {"dataset": "data set", "backbone": "backbone", "shots": "shots"}
TEST_SET = ("num_test", "num_classes", "rule", "trained_on")  # what a test tells of its images, classes and model

CASE = "case"  # the key of a record that names the case of a sweep it belongs to
MEAN = "mean"  # the column of a row's mean
SOURCE = "source"  # by target, the column of the data set that the runs were trained on
MEAN_OF = "mean of "  # begins the place of means over data sets
ZERO_SHOT_TOLERANCE = 1e-6  # by how many percent zero-shot accuracies of one cell may differ


def method(record: dict) -> str:
    """The name of the row of a run: its case if it has one, else its method and HeGraphAdapter's variant or recipe."""
    if CASE in record:
        return record[CASE]
    if record["trainer"] == "ZeroShot":
        return ZERO_SHOT
    if record["trainer"] != OURS:
        return record["trainer"]
    if record["variant"] != "full":
        return f"{OURS}({record['variant']})"
    config = record.get("config") or {}
    return PAPER if all(config.get(f"TRAINER.HEGRAPHADAPTER.{k}") == v for k, v in OF_THE_PAPER.items()) else OURS


def method_order(name: str, cases: Sequence[str] = ()) -> tuple[int, int, str]:
    """The key by which the names of rows are sorted; cases stand last, in their order."""
    if name in cases:
        return 3, cases.index(name), name
    if name in VARIANTS:
        return 2, VARIANTS.index(name), name
    return (0, BASELINES.index(name), name) if name in BASELINES else (1, 0, name)


def score(record: dict, name: str, column: object, value: float, test: dict | None = None, own: bool = True) -> dict:
    """One number that a run tells, as a row for `cells`.

    Args:
        record: The record of the run.
        name: The method that the number is of.
        column: The column of the table that it belongs to.
        value: The number.
        test: The test that gave it: one of the record's "targets", or None for the record's own.
        own: Whether the run was made for this method. A full run also tells the accuracy of its text classifier, which
            is what a run of the variant T trains; a cell takes one kind only, the own ones or the others if more.
    """
    told = {key: (test or record).get(key) for key in TEST_SET}
    row = {"method": name, "column": column, "seed": record["seed"], "value": value, "own": own}
    return {key: record[key] for key in PLACE} | row | {"test": tuple(told.values()), "record": record}


def accuracies(record: dict, column: object, test: dict | None = None) -> Iterator[dict]:
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
    for row, key, own in found:
        if scores.get(key) is not None:
            yield score(record, row, column, scores[key], test, own)


def cells(rows: Iterable[dict], keys: Sequence[str], tolerance: float = ZERO_SHOT_TOLERANCE) -> pd.DataFrame:
    """The rows of a table's cells, one for each seed, in the order of their places.

    Args:
        rows: From `score` and `accuracies`.
        keys: The keys of `PLACE` that make a place; a cell is a place, a method and a column.
        tolerance: By how much runs of a cell may differ about zero-shot CLIP.

    Raises:
        UserError: If a cell would mix runs that must not be averaged.
    """
    in_order = sorted(rows, key=lambda row: [row[key] for key in keys])
    frame = pd.DataFrame(in_order, dtype=object)
    found = grouped(frame, [*keys, "method", "column"])
    kept = [_kept(group, ", ".join(map(str, key)), tolerance) for key, group in found]
    return frame.loc[[row for rows in kept for row in rows]].reset_index(drop=True)


def grouped(frame: pd.DataFrame, keys: Sequence[str]) -> list[tuple[tuple[Any, ...], pd.DataFrame]]:
    """The rows of each combination of values of some columns, in the order in which they come first."""
    found: Any = frame.groupby(list(keys), sort=False)
    return list(found)


def _kept(group: pd.DataFrame, what: str, tolerance: float) -> list[int]:
    """The positions of the rows that stay in a cell, one for each seed."""
    if len(tests := sorted(set(group["test"]), key=_in_words)) > 1:
        told = ", ".join(map(_in_words, tests))
        if len({images for images, *_ in tests}) > 1 or all(source is None for *_, source in tests):
            raise UserError(f"{what}: tested on different images ({told}); name runs with one test set")
        kinds = "tests of models that were trained on different data sets, or by different rules"
        raise UserError(f"{what}: {kinds} ({told}); name runs of one kind")
    if group["method"].iloc[0] == ZERO_SHOT:  # runs of any method tell it, and those of one seed must agree
        for _, values in group.groupby("seed")["value"]:
            if others := [value for value in values if abs(value - values.iloc[0]) > tolerance]:
                told = f"disagree about zero-shot CLIP ({values.iloc[0]:.2f} and {others[0]:.2f})"
                raise UserError(f"{what}: the runs {told}, so prompts, weights or test images differ; name runs of one")
        return list(group.drop_duplicates("seed").index)
    # The cache shares no parameter with the text classifier, so a full run's is as good as that of a run of variant T
    own = group["own"].astype(bool)
    kept = max(group[own], group[~own], key=len)
    check_averaged(list(kept["record"]), what)
    return list(kept.index)


def _in_words(test: tuple) -> str:
    images, classes, rule, source = test
    words = (f"{classes} classes" if classes is not None else None, rule, f"trained on {source}" if source else None)
    return ", ".join([f"{images} images", *filter(None, words)])


def check_same(records: Sequence[dict], what: str) -> None:
    """Raises UserError if runs have not one configuration, one set of package versions and one test set.

    `what` they were to be averaged for stands in the error. What a record does not tell is not compared.
    """
    if len({record.get("test_set") for record in records} - {None}) > 1:
        raise UserError(f"{what}: tested on different classes or images, though of one name; name runs of one")
    if len({record.get("config_hash") for record in records}) > 1:
        keys = {key for record in records for key in record.get("config") or {}}
        names = list(shortest_names(differing_keys(records), keys).values())
        few = [*names[:4], "..."][: len(names)]
        named = f" (they differ in {', '.join(few)})" if few else ""
        raise UserError(f"{what}: runs of different configurations{named}; name runs of one, or compare --by setting")
    if len({hash_json(record.get("versions")) for record in records}) > 1:
        packages = ", ".join(differing_keys(records, "versions"))
        raise UserError(f"{what}: runs with different versions of {packages}; name runs with the same")


def check_averaged(records: Sequence[dict], what: str) -> None:
    """Raises UserError if runs must not be averaged: if `check_same` finds something, or a seed is there twice."""
    check_same(records, what)
    seeds: set[int] = set()
    for record in records:
        if record["seed"] in seeds:
            raise UserError(f"{what}: seed {record['seed']} is there more than once; name each run once")
        seeds.add(record["seed"])


def add_mean_column(frame: pd.DataFrame, keys: Sequence[str], columns: Sequence) -> pd.DataFrame:
    """The cells, with the mean over several columns in every row of the table that has a cell in each of them."""
    some = frame[frame["column"].isin(list(columns))]
    return _with(frame, [_mean(row, "column", columns, MEAN) for _, row in grouped(some, [*keys, "method"])])


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


def _mean(part: pd.DataFrame, over: str, wanted: Sequence, name: str) -> list[dict]:
    """The mean of one method over data sets or columns; none if one of them is missing.

    It is taken seed by seed if all have the same seeds. Otherwise it is the mean of their means, which is of no seed.
    """
    if set(part[over]) != set(wanted):
        return []
    found: dict[object, dict] = {}  # data set or column -> seed -> value
    for where, seed, value in zip(part[over], part["seed"], part["value"]):
        found.setdefault(where, {})[seed] = value
    seeds = list(next(iter(found.values())))
    if all(values.keys() == set(seeds) for values in found.values()):
        means = {seed: statistics.fmean(values[seed] for values in found.values()) for seed in seeds}
    else:
        means = {None: statistics.fmean(statistics.fmean(values.values()) for values in found.values())}
    shared = part.iloc[0].to_dict() | {over: name, "test": (None,) * len(TEST_SET), "record": None}
    return [shared | {"seed": seed, "value": value} for seed, value in means.items()]


def differing_keys(records: Sequence[dict], part: str = "config") -> list[str]:
    """The keys of a part of the records, "config" or "versions", that have not one value; a missing key is a value."""
    parts = [record.get(part) or {} for record in records]
    return sorted(key for key in set().union(*parts) if len({hash_json(p.get(key)) for p in parts}) > 1)


def shortest_names(keys: Sequence[str], all_keys: set[str]) -> dict[str, str]:
    """Short names of dotted keys: of each, the shortest last part that none of `all_keys` ends with as well."""
    names = {}
    for key in keys:
        parts = key.split(".")
        ends = (".".join(parts[i:]) for i in range(len(parts) - 1, -1, -1))
        names[key] = next(end for end in ends if [k for k in all_keys if k == end or k.endswith(f".{end}")] == [key])
    return names
