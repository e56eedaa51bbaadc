"""How honest the probabilities of each method are, before and after its temperature: a table, and reliability diagrams.

Records of versions that did not calibrate tell nothing about it, and are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..utils.errors import UserError
from .cells import Observation, TestSet, add_mean_place, check_zero_shot, make_cells
from .figures import COLOURS, panels
from .methods import PLACE, ZERO_SHOT, method, method_order, place
from .table import Cell, Table
from .tabulate import tabulate_costs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Columns with the decimals that they show, each with where a record's "calibration" has it
COLUMNS = {
    "accuracy": 2, "macro F1": 2, "NLL": 3, "NLL at T": 3, "Brier": 3, "Brier at T": 3, "ECE": 2, "ECE at T": 2, "T": 2,
}  # fmt: skip
SCORES = {"accuracy": "accuracy", "macro F1": "macro_f1", "NLL": "nll", "Brier": "brier", "ECE": "ece"}
AT_T = " at T"  # ends the column of a score after calibration
ZERO_SHOT_TOLERANCE = 0.005  # by how much two runs may differ in a number of zero-shot CLIP: half of what is printed
FEWEST = 10  # images of a bin that is drawn: the accuracy of fewer is chance
MEAN_OF = "mean of "  # begins the place of means over data sets, which stand for the data sets themselves
CAPTION = "Probabilities on test: accuracy, macro F1 and ECE (15 bins) in %, NLL in nats; T is the temperature"


def calibration_table(records: Sequence[dict]) -> Table:
    """The scores of each method before and after calibration, as means over seeds and data sets.

    Args:
        records: The runs.

    Raises:
        UserError: If no run tells them, or a row would mix runs.
    """
    cells = make_cells(_observe(with_calibration(records)))
    add_mean_place(cells, list(PLACE).index("dataset"))
    averaged = {where[1:] for where, _, _ in cells if where[0].startswith(MEAN_OF)}
    shown = [key for key in cells if key[0][0].startswith(MEAN_OF) or key[0][1:] not in averaged]
    shown.sort(key=lambda key: (key[0][1:], key[0][0]))
    means = {key: Cell(cells[key].mean) for key in shown}  # nine columns have no room for intervals
    return tabulate_costs(CAPTION, list(PLACE), means, COLUMNS, {})


def reliability_diagrams(records: Sequence[dict]) -> Figure:
    """How often the predictions of each confidence are right: a panel for each method, over all its test images.

    Args:
        records: The runs; data sets, shots and seeds are put together.

    Raises:
        UserError: If no run tells it.
    """
    known = with_calibration(records)
    names = sorted({method(record) for record in known}, key=method_order)
    figure, axes = panels(len(names), width=2.8, height=2.8)
    for axis, name in zip(axes, names):
        of_method = [record["calibration"] for record in known if method(record) == name]
        axis.plot([0, 100], [0, 100], color="0.6", linewidth=0.8)
        for label, when, colour, dashes in (
            ("before", "before", COLOURS[1], "--"),
            ("calibrated", "after", COLOURS[2], "-"),
        ):
            _draw_bins(axis, [found[when]["bins"] for found in of_method], label, colour, dashes)
        axis.set_title(name)
        axis.set(xlim=(0, 100), ylim=(0, 100), xlabel="confidence (%)", ylabel="accuracy (%)")
        axis.set_aspect("equal")
    axes[0].legend(loc="upper left", frameon=False, fontsize=7)
    return figure


def with_calibration(records: Sequence[dict]) -> list[dict]:
    """The records that tell how honest the probabilities on test are.

    Raises:
        UserError: If there is none.
    """
    known = [record for record in records if (record.get("calibration") or {}).get("after")]
    if not known:
        raise UserError(
            "no record holds calibration, which runs of earlier versions did not measure; run the experiment again"
        )
    return known


def _observe(records: Sequence[dict]) -> Iterator[Observation]:
    """The numbers that runs tell about their methods, and about zero-shot CLIP without a temperature.

    Every run tells the latter, and of one place and seed the first is taken, or that of the method `ZeroShot`.
    """
    of_zero_shot: dict[tuple, Observation] = {}
    told: dict[tuple, float] = {}
    for record in sorted(records, key=lambda record: method(record) != ZERO_SHOT):
        found, name, where = record["calibration"], method(record), place(record, PLACE)
        test = TestSet.of(record)
        values = {(name, "T"): found["temperature"]}
        for column, key in SCORES.items():
            says = values[ZERO_SHOT, column] = found["zero_shot"][key]
            first = told.setdefault((where, record["seed"], column), says)
            check_zero_shot(first, says, ", ".join(map(str, (*where, ZERO_SHOT, column))), ZERO_SHOT_TOLERANCE)
            values[name, column] = found["before"][key]
            if f"{column}{AT_T}" in COLUMNS:
                values[name, f"{column}{AT_T}"] = found["after"][key]
        for (row, column), value in values.items():
            observation = Observation((where, row, column), record["seed"], value, test, record)
            if row != ZERO_SHOT:
                yield observation
            else:
                of_zero_shot.setdefault((observation.key, record["seed"]), observation)
    yield from of_zero_shot.values()


def _draw_bins(axis: Axes, parts: Sequence[dict], label: str, colour: str, dashes: str) -> None:
    """Draws the bins of several runs as one: larger dots for bins of more images."""
    counts = np.array([bins["count"] for bins in parts])  # (runs, bins)
    total = counts.sum(axis=0)
    filled = total >= FEWEST
    x, y = (
        (counts * np.array([bins[key] for bins in parts])).sum(axis=0)[filled] / total[filled]
        for key in ("confidence", "accuracy")
    )
    axis.plot(x, y, color=colour, linestyle=dashes, linewidth=1.2, label=label)
    axis.scatter(x, y, s=4 + 60 * total[filled] / total.sum(), color=colour, zorder=3)
