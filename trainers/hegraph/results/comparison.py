"""Methods side by side: rows are methods, columns are shots, data sets, backbones, targets or settings."""

from __future__ import annotations

from collections.abc import Sequence

from ..utils.errors import UserError
from .cells import MEAN, PLACE, SOURCE, add_mean_column, add_mean_place, make_cells, observe, place, tabulate
from .paper import Quote, quote_cells
from .render import Cell, Table
from .settings import name_settings

BY = (*PLACE, "target", "setting")


def compare(records: Sequence[dict], by: str = "shots", quotes: Sequence[Quote] = ()) -> Table:
    """Accuracy on test of every method, by one of `BY`.

    "target" is the data set of training and each that the trained models were tested on besides; "setting" is the
    configuration keys in which the runs of one method differ.

    Args:
        records: Of runs with test images.
        by: What the columns are.
        quotes: Numbers of the paper's; those of the same data set, backbone, shots and setting get rows of their own.

    Raises:
        UserError: If a cell would mix runs, or by target if no run was tested on one.
    """
    if by == "target":
        return compare_targets(records, quotes)
    if by == "setting":
        records, columns, notes = name_settings(records)
    else:
        notes = []
        columns = {value: str(value) for value in sorted({record[by] for record in records})}
    keys = [key for key in PLACE if key != by]
    cells = make_cells(o for record in records for o in observe(record, place(record, keys), record[by]))
    over = list(columns) if by == "dataset" else []
    quoted = quote_cells(quotes, cells, keys, by, columns, over)
    if len(over) > 1:
        add_mean_column(cells, over)
        columns[MEAN] = f"mean of {len(over)}"
    elif by != "dataset":
        add_mean_place(cells, keys.index("dataset"))
    return tabulate("; ".join([f"Accuracy on test (%) by {PLACE.get(by, by)}", *notes]), keys, cells, columns, quoted)


def compare_targets(records: Sequence[dict], quotes: Sequence[Quote] = ()) -> Table:
    """Accuracy on the test images of the source and of every target, and the mean of the targets.

    Raises:
        UserError: If a cell would mix runs, or no run was tested on a target.
    """
    records = [record for record in records if record.get("targets")]
    if not records:
        raise UserError('no record has "targets": tests of the trained model on other data sets; nothing to compare')
    keys, observations = list(PLACE), []
    for record in records:
        where = place(record, keys)
        found = [o for name, scores in record["targets"].items() for o in observe(record, where, name, scores)]
        tested = {o.key[1] for o in found}
        # a row that has the source alone says nothing here
        observations += [o for o in observe(record, where, SOURCE) if o.key[1] in tested] + found
    cells = make_cells(observations)
    sources = sorted({record["dataset"] for record in records})
    targets = list(dict.fromkeys(name for record in records for name in record["targets"]))
    columns = {SOURCE: f"{sources[0]} (source)" if len(sources) == 1 else SOURCE, **{name: name for name in targets}}
    quoted = quote_cells(quotes, cells, keys, "target", columns, targets)
    if len(targets) > 1:
        add_mean_column(cells, targets)
        columns[MEAN] = "mean of targets"
    rules = sorted({scores.get("rule") or "" for record in records for scores in record["targets"].values()} - {""})
    return tabulate(
        f"Accuracy on test (%), targets with {' or '.join(rules) or 'any classes'}", keys, cells, columns, quoted
    )


def base_to_new(records: Sequence[dict]) -> Table:
    """Accuracy on the classes of training (base), on the other ones (new), and the harmonic mean H of both.

    Of HeGraphAdapter, base is with both classifiers and new with what transfers, the text classifier without biases.

    Raises:
        UserError: If a cell would mix runs, or no run was trained on base classes and tested on new ones.
    """
    keys, observations = list(PLACE), []
    for record in records:
        scores = (record.get("targets") or {}).get(f"{record['dataset']}:new")
        if scores and on_base_classes(record):
            where = place(record, keys)
            new = observe(record, where, "new", scores)
            tested = {o.key[1] for o in new}
            observations += [o for o in observe(record, where, "base") if o.key[1] in tested] + new
    if not observations:
        raise UserError(
            'no record is of DATASET.SUBSAMPLE_CLASSES base with a target "<data set>:new"; nothing to compare'
        )
    cells = make_cells(observations)
    add_mean_place(cells, keys.index("dataset"))
    for where, name in list(dict.fromkeys(key[:2] for key in cells)):
        cells[where, name, "H"] = _harmonic(cells[where, name, "base"], cells[where, name, "new"])
    caption = "Accuracy on test (%) of base and new classes and their harmonic mean H (of each seed)"
    return tabulate(caption, keys, cells, {column: column for column in ("base", "new", "H")})


def on_base_classes(record: dict) -> bool:
    """Whether a run was trained on the first half of the classes alone."""
    return (record.get("config") or {}).get("DATASET.SUBSAMPLE_CLASSES") == "base"


def _harmonic(base: Cell, new: Cell) -> Cell:
    """Of each seed, if both have the same seeds; else of the means."""
    if base.by_seed and base.by_seed.keys() == new.by_seed.keys():
        return Cell.over({seed: _harmonic_mean(base.by_seed[seed], new.by_seed[seed]) for seed in base.by_seed})
    return Cell(_harmonic_mean(base.mean, new.mean))


def _harmonic_mean(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b else 0.0
