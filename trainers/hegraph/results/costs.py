"""What training each method takes: time, parameters, memory."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from ..utils.errors import UserError
from .cells import Key, check_same
from .methods import PLACE, Place, method, place
from .paper import Quote, quote_cells
from .table import Cell, Table
from .tabulate import tabulate_costs

# Columns, each with the decimals that it shows
COLUMNS = {
    "epochs": 0, "seconds per epoch": 3, "seconds in all": 2, "trained parameters": 0, "peak memory (MB)": 0,
}  # fmt: skip


def complexity(records: Sequence[dict], quotes: Sequence[Quote] = ()) -> Table:
    """What training took, as means over seeds. All runs must have been timed on one kind of machine.

    Seconds are those of training alone, since features are encoded once for all methods. A method without epochs has
    "seconds in all" only. A method that chose on val has no seconds per epoch: its seconds are those of all candidates,
    its epochs those of the one that was chosen. Memory is the peak of the whole process.

    Args:
        records: The runs; those without times, and those that tested another run's adapter, are left out.
        quotes: The paper's numbers.

    Raises:
        UserError: If no run has times, the machines differ, or a row would mix configurations or versions.
    """
    timed = [record for record in records if record.get("seconds") and not record.get("adapter_from")]
    if not timed:
        raise UserError("the records hold no times of training (`collect` leaves them out); name output folders")
    machines = {machine(record) for record in timed}
    if len(machines) > 1:
        raise UserError(f"times on different machines ({'; '.join(sorted(machines))}); name runs on one")
    cells = _mean_costs(timed)
    quoted = quote_cells(quotes, cells, list(PLACE), "metric", list(COLUMNS))
    caption = f"What training takes, means over seeds, {machines.pop()}"
    return tabulate_costs(caption, list(PLACE), cells, COLUMNS, quoted)


def machine(record: dict) -> str:
    """The machine of a run, as far as its times depend on it: device and number of threads."""
    return f"{record.get('device')}, {record.get('threads')} threads"


def _mean_costs(records: Sequence[dict]) -> dict[Key, Cell]:
    rows: dict[tuple[Place, str], list[dict]] = {}
    for record in sorted(records, key=lambda record: place(record, PLACE)):
        rows.setdefault((place(record, PLACE), method(record)), []).append(record)
    cells: dict[Key, Cell] = {}
    for (where, name), runs in rows.items():
        check_same(runs, ", ".join(map(str, (*where, name))))
        for column, *values in zip(COLUMNS, *map(_measured, runs)):
            known = [value for value in values if value is not None]
            if len(known) == len(runs):
                cells[where, name, column] = Cell(statistics.fmean(known))
    return cells


def _measured(record: dict) -> tuple[float | None, ...]:
    """The numbers of one run in the order of `COLUMNS`; None for a number that it does not have."""
    epochs, seconds = record.get("epochs"), record["seconds"]["training"]
    searched = record["selected_on"] == "val"
    each = (epochs, None if searched else seconds / epochs) if epochs else (None, None)
    return *each, seconds, record.get("num_parameters"), record.get("peak_memory_mb")
