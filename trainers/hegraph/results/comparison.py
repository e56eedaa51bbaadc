"""Methods side by side: rows are methods, columns are shots, data sets, backbones, targets or settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..utils.errors import UserError
from .cases import Cases, name_cases
from .cells import MEAN, SOURCE, Observation, add_mean_column, add_mean_place, make_cells, observe
from .methods import PLACE, place
from .paper import Quote, quote_cells
from .settings import name_settings
from .table import Cell, Table
from .tabulate import tabulate

BY = (*PLACE, "target", "setting")

ALL_IMAGES = -1  # the number of shots of a run that takes all training images

CAPTION = "Accuracy on test (%)"


def compare(
    records: Sequence[dict],
    by: str = "shots",
    quotes: Sequence[Quote] = (),
    intervals: bool = True,
    cases: Cases | None = None,
) -> Table:
    """Accuracy on test of every method, by one of `BY`.

    By "target", there is a column for the data set of training and one for each further data set that the runs tested
    their models on. By "setting", there is one for each combination of the configuration keys in which the runs of one
    method differ. The test of a trained model on another data set (--eval-only) stands at the data set of the test, and
    the caption says where it was trained.

    Args:
        records: The runs, all with test images.
        by: What the columns are.
        quotes: The paper's numbers; those of the same data set, backbone, shots and setting get rows of their own.
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
        values = sorted({record[by] for record in records}, key=lambda value: (value == ALL_IMAGES, value))
        columns = {value: "all" if value == ALL_IMAGES else str(value) for value in values}
    keys = [key for key in PLACE if key != by]
    cells = make_cells(o for record in records for o in observe(record, place(record, keys), record[by]))
    datasets = list(columns) if by == "dataset" else []
    quoted = quote_cells(quotes, cells, keys, by, list(columns), datasets)
    if len(datasets) > 1:
        add_mean_column(cells, datasets)
        columns[MEAN] = f"mean of {len(datasets)}"
    elif by != "dataset":
        add_mean_place(cells, keys.index("dataset"))
    caption = "; ".join([f"{CAPTION} by {PLACE.get(by, by)}", *notes])
    unit = "shots" if by == "shots" else ""
    order = list(cases or ())
    return tabulate(caption, keys, cells, columns, quoted, intervals=intervals, unit=unit, cases=order)


def compare_targets(records: Sequence[dict], quotes: Sequence[Quote] = (), intervals: bool = True) -> Table:
    """Accuracy on the test images of the source and of every target, and the mean over the targets.

    Args:
        records: The runs; those without targets are left out.
        quotes: As in `compare`.
        intervals: As in `compare`.

    Raises:
        UserError: If a cell would mix runs, or no run was tested on a target.
    """
    records = [record for record in records if record.get("targets")]
    if not records:
        raise UserError('no record has "targets": tests of the trained model on other data sets; nothing to compare')
    keys, observations = list(PLACE), []
    for record in records:
        observations += _beside(record, SOURCE, record["targets"])
    cells = make_cells(observations)
    sources = sorted({record["dataset"] for record in records})
    targets = list(dict.fromkeys(name for record in records for name in record["targets"]))
    columns = {SOURCE: f"{sources[0]} (source)" if len(sources) == 1 else SOURCE, **{name: name for name in targets}}
    quoted = quote_cells(quotes, cells, keys, "target", list(columns), targets)
    if len(targets) > 1:
        add_mean_column(cells, targets)
        columns[MEAN] = "mean of targets"
    rules = sorted({scores.get("rule") or "" for record in records for scores in record["targets"].values()} - {""})
    caption = f"{CAPTION}, targets with {' or '.join(rules) or 'any classes'}"
    return tabulate(caption, keys, cells, columns, quoted, intervals=intervals)


def base_to_new(records: Sequence[dict]) -> Table:
    """Accuracy on the classes of training (base), on the others (new), and the harmonic mean H of the two.

    On base classes, HeGraphAdapter predicts with both classifiers. On new ones it predicts with the text classifier
    without its class-wise biases, which is the part that can be used for other classes.

    Args:
        records: The runs; those that were not trained on base classes and tested on new ones are left out.

    Raises:
        UserError: If a cell would mix runs, or no run is left.
    """
    keys, observations = list(PLACE), []
    for record in records:
        scores = (record.get("targets") or {}).get(f"{record['dataset']}:new")
        if scores and on_base_classes(record):
            observations += _beside(record, "base", {"new": scores})
    if not observations:
        raise UserError(
            'no record is of DATASET.SUBSAMPLE_CLASSES base with a target "<data set>:new"; nothing to compare'
        )
    cells = make_cells(observations)
    add_mean_place(cells, keys.index("dataset"))
    for where, name in list(dict.fromkeys(key[:2] for key in cells)):
        cells[where, name, "H"] = _harmonic(cells[where, name, "base"], cells[where, name, "new"])
    caption = f"{CAPTION} of base and new classes and their harmonic mean H (of each seed)"
    return tabulate(caption, keys, cells, {column: column for column in ("base", "new", "H")})


def on_base_classes(record: dict) -> bool:
    """Whether a run was trained on the first half of the classes alone."""
    return (record.get("config") or {}).get("DATASET.SUBSAMPLE_CLASSES") == "base"


def _sources(records: Sequence[dict]) -> list[str]:
    """For the caption: which data sets were tested with models that were trained on another."""
    tested: dict[tuple[str, str], set[str]] = {}
    for record in records:
        if record.get("rule"):
            tested.setdefault((record["rule"], record["trained_on"]), set()).add(record["dataset"])
    return [
        f"{', '.join(sorted(datasets))} with models trained on {source} ({rule})"
        for (rule, source), datasets in sorted(tested.items())
    ]


def _beside(record: dict, column: str, targets: dict[str, dict]) -> list[Observation]:
    """What a run tells of its targets and, in the rows that a target has, of its own test images.

    Args:
        record: The record of the run.
        column: The column of its own test images.
        targets: Column -> scores of that target.
    """
    where = place(record, PLACE)
    found = [o for name, scores in targets.items() for o in observe(record, where, name, scores)]
    rows = {o.key[1] for o in found}
    return [o for o in observe(record, where, column) if o.key[1] in rows] + found


def _harmonic(base: Cell, new: Cell) -> Cell:
    """The harmonic mean seed by seed if both cells have the same seeds, else that of the two means."""
    if base.by_seed and base.by_seed.keys() == new.by_seed.keys():
        return Cell.over({seed: _harmonic_mean(base.by_seed[seed], new.by_seed[seed]) for seed in base.by_seed})
    return Cell(_harmonic_mean(base.mean, new.mean))


def _harmonic_mean(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b else 0.0
