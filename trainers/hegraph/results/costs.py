"""What training each method takes: time, parameters, memory."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from ..utils.errors import UserError
from .cells import PLACE, Key, check_same, method, place, tabulate
from .paper import Quote, quote_cells
from .render import Cell, Table

COLUMNS = ("epochs", "seconds per epoch", "seconds in all", "trained parameters", "peak memory (MB)")
DECIMALS = (0, 3, 2, 0, 0)


def complexity(records: Sequence[dict], quotes: Sequence[Quote] = ()) -> Table:
    """Means over seeds of what training took; one table is of one kind of device.

    Seconds are those of training alone: features are encoded once for all methods. A method without epochs has seconds
    in all only. Memory is the peak of the whole process. Runs that tested another run's adapter are left out.

    Raises:
        UserError: If the records hold no times, or a row or the table would mix what cannot be compared.
    """
    timed = [record for record in records if record.get("seconds") and not record.get("adapter_from")]
    if not timed:
        raise UserError("the records hold no times of training (`collect` leaves them out); name output folders")
    machines = {machine(record) for record in timed}
    if len(machines) > 1:
        raise UserError(f"times on different machines ({'; '.join(sorted(machines))}); name runs on one")
    keys, rows = list(PLACE), {}
    for record in sorted(timed, key=lambda record: place(record, keys)):
        rows.setdefault((place(record, keys), method(record)), []).append(record)
    cells: dict[Key, Cell] = {}
    for (where, name), runs in rows.items():
        check_same(runs, ", ".join(map(str, (*where, name))))
        measured = [dict(zip(COLUMNS, _measured(run))) for run in runs]
        for column in COLUMNS:
            values = [m[column] for m in measured]
            if None not in values:
                cells[where, name, column] = Cell(statistics.fmean(values))
    quoted = quote_cells(quotes, cells, keys, "metric", COLUMNS)
    caption = f"What training takes, means over seeds, {machines.pop()}"
    return tabulate(caption, keys, cells, {c: c for c in COLUMNS}, quoted, DECIMALS)


def machine(record: dict) -> str:
    """What a run was computed on, as far as times depend on it."""
    return f"{record.get('device')}, {record.get('threads')} threads"


def _measured(record: dict) -> tuple[float | None, ...]:
    """The numbers of `COLUMNS` of one run; None for what there is not."""
    epochs, seconds = record.get("epochs"), record["seconds"]["training"]
    each = (epochs, seconds / epochs) if epochs else (None, None)
    return *each, seconds, record.get("num_parameters"), record.get("peak_memory_mb")
