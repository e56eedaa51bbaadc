"""One JSON record per run, written last; tables are made from records and from nothing else.

python -m trainers.hegraph.results table OUTPUT_DIR [OUTPUT_DIR ...]
"""

from __future__ import annotations

import argparse
import logging
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from .errors import UserError, report
from .files import read_json, write_json

logger = logging.getLogger(__name__)

RECORD = "result.json"
SPLIT = "split.json"

# What must be there for a record to count as complete
REQUIRED = (
    "dataset", "trainer", "variant", "backbone", "shots", "seed", "accuracy", "accuracy_text", "accuracy_zero_shot",
    "macro_f1", "num_test", "selected_on", "selected", "run_id",
)  # fmt: skip

# Keys that differ between two runs of one experiment on one machine
MEASURED = ("seconds", "peak_memory_mb", "finished_at")

# Rows of the table: what it is called, and which accuracy of a record it shows
ROWS = {"zero-shot": "accuracy_zero_shot", "HeGraphAdapter(T)": "accuracy_text", "HeGraphAdapter": "accuracy"}


def write_record(folder: Path, record: dict) -> None:
    """Writes `result.json`, atomically."""
    write_json(folder / RECORD, record)


def read_record(folder: Path) -> dict | None:
    """The complete record of a run's output folder, or None.

    A damaged or incomplete record counts as none, with a warning.
    """
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        record = read_json(path)
    except UserError as error:
        logger.warning("%s; the run counts as not done", error)
        return None
    missing = [key for key in REQUIRED if not isinstance(record, dict) or key not in record]
    if missing:
        logger.warning("%s lacks %s; the run counts as not done", path, ", ".join(missing))
        return None
    return record


def find_records(folders: Sequence[Path]) -> list[dict]:
    """All complete records below the folders.

    Raises:
        UserError: If there is none.
    """
    found = [read_record(path.parent) for folder in folders for path in sorted(folder.rglob(RECORD))]
    records = [record for record in found if record is not None]
    if not records:
        raise UserError(f"no {RECORD} below {', '.join(map(str, folders))}; run an experiment first")
    return records


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n - 1) over seeds; no deviation for one value."""
    spread = statistics.stdev(values) if len(values) > 1 else None
    return statistics.fmean(values), spread


def table(records: Sequence[dict]) -> str:
    """Accuracy on test, mean and sample standard deviation over seeds, one line per experiment.

    Raises:
        UserError: If one cell would mix runs of different configurations.
    """
    cells: dict[tuple, list[dict]] = {}
    for record in records:
        key = tuple(record[k] for k in ("dataset", "backbone", "shots", "trainer", "variant"))
        cells.setdefault(key, []).append(record)
    lines = []
    for (dataset, backbone, shots, trainer, variant), runs in sorted(cells.items()):
        configs = {run.get("config_hash") for run in runs}
        if len(configs) > 1:
            raise UserError(
                f"{dataset}, {shots} shots: the runs below these folders have {len(configs)} different configurations; "
                "name folders of one configuration"
            )
        seeds = sorted({run["seed"] for run in runs})
        title = f"{dataset}, {backbone}, {shots} shots, accuracy on {runs[0]['num_test']} test images (%)"
        lines += [title, f"  {'':18}  {'mean':>6}  {'std':>5}  seeds {', '.join(map(str, seeds))}"]
        rows = ROWS if variant == "full" else {"zero-shot": "accuracy_zero_shot", f"{trainer}({variant})": "accuracy"}
        for name, key in rows.items():
            values = [run[key] for run in sorted(runs, key=lambda run: run["seed"])]
            mean, spread = mean_and_spread(values)
            deviation = "    -" if spread is None or math.isnan(spread) else f"{spread:5.2f}"
            each = "  ".join(f"{value:.2f}" for value in values)
            lines.append(f"  {name:18}  {mean:6.2f}  {deviation}  {each}")
        lines.append("")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Prints a table; returns the exit code, 2 for a mistake of the user's."""
    parser = argparse.ArgumentParser(prog="python -m trainers.hegraph.results")
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("table", help="accuracy on test: mean and spread over seeds")
    show.add_argument("folders", type=Path, nargs="+", metavar="OUTPUT_DIR")
    args = parser.parse_args(arguments)
    return report(lambda: sys.stdout.write(table(find_records(args.folders))) and None)


if __name__ == "__main__":
    sys.exit(main())
