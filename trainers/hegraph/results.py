"""One JSON record per run, written last; tables are made from records and from nothing else.

python -m trainers.hegraph.results table SOURCE ...               one experiment: mean and spread over seeds
python -m trainers.hegraph.results grid SOURCE ...                Markdown: data sets and methods by shots
python -m trainers.hegraph.results collect SOURCE ... --out FILE  many records in one .jsonl file

A SOURCE is an output folder or a file written by `collect`.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from .errors import UserError, report
from .files import atomic_path, read_json, write_json, write_tensors

logger = logging.getLogger(__name__)

RECORD = "result.json"
SPLIT = "split.json"
PREDICTIONS = "predictions.safetensors"

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


def write_predictions(folder: Path, predicted: Tensor, labels: Tensor, classnames: Sequence[str]) -> None:
    """Writes what was predicted for every test image, both `[M]`, for confusion matrices."""
    tensors = {"predicted": predicted.int().cpu(), "labels": labels.int().cpu()}
    write_tensors(folder / PREDICTIONS, tensors, {"classnames": json.dumps(list(classnames), ensure_ascii=False)})


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
    if missing := _missing_keys(record):
        logger.warning("%s lacks %s; the run counts as not done", path, ", ".join(missing))
        return None
    return record


def find_records(sources: Sequence[Path]) -> list[dict]:
    """All complete records below folders and in files written by `collect`.

    Raises:
        UserError: If there is none, or a file holds something else.
    """
    records, folders = [], set()
    for source in sources:
        if source.is_file():
            records += _read_lines(source)
        else:
            folders |= {path.parent.resolve() for path in source.rglob(RECORD)}  # one source may lie in another
    records += filter(None, map(read_record, sorted(folders)))
    if not records:
        raise UserError(f"no {RECORD} below {', '.join(map(str, sources))}; run an experiment first")
    return records


def _missing_keys(record: object) -> list[str]:
    return [key for key in REQUIRED if not isinstance(record, dict) or key not in record]


def _read_lines(path: Path) -> list[dict]:
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read records from {path}: {error}") from error
    for number, record in enumerate(records, 1):
        if missing := _missing_keys(record):
            raise UserError(f"{path}, line {number} is no record: it lacks {', '.join(missing)}")
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
        seeds = sorted(run["seed"] for run in runs)
        if len(set(seeds)) < len(seeds):
            twice = next(seed for seed in seeds if seeds.count(seed) > 1)
            raise UserError(f"{dataset}, {shots} shots: seed {twice} is there more than once; name each run once")
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


def grid(records: Sequence[dict]) -> str:
    """Mean accuracy on test by shots, as a Markdown table: one row per data set and method.

    The text classifier of a full run is HeGraphAdapter(T): the two classifiers share no parameter. An experiment
    that is not among the records leaves its cell empty.

    Raises:
        UserError: If one cell would mix runs of different configurations.
    """
    cells: dict[tuple[str, str, int], list[float]] = {}
    configs: dict[tuple[str, str, int], set[str]] = {}
    for record in records:
        full = record["variant"] == "full"
        names = ROWS if full else {f"{record['trainer']}({record['variant']})": "accuracy"}
        for name, key in names.items():
            cell = (record["dataset"], name, record["shots"])
            cells.setdefault(cell, []).append(record[key])
            configs.setdefault(cell, set()).add((record["backbone"], record.get("config_hash")))
    mixed = [cell for cell, hashes in configs.items() if len(hashes) > 1]
    if mixed:
        dataset, name, shots = mixed[0]
        raise UserError(f"{dataset}, {name}, {shots} shots: runs of different backbones or configurations; choose one")
    shots = sorted({cell[2] for cell in cells})
    datasets = sorted({cell[0] for cell in cells})
    names = sorted({cell[1] for cell in cells}, key=_row_order)
    lines = [f"| data set | method | {' | '.join(map(str, shots))} |", "|---|---|" + "---|" * len(shots)]
    for dataset in datasets:
        for name in names:
            values = [cells.get((dataset, name, s)) for s in shots]
            lines.append(_grid_row(dataset, name, [v and statistics.fmean(v) for v in values]))
    if len(datasets) > 1:
        for name in names:
            means = []
            for s in shots:
                values = [cells.get((dataset, name, s)) for dataset in datasets]
                means.append(statistics.fmean(map(statistics.fmean, values)) if all(values) else None)
            lines.append(_grid_row(f"mean of {len(datasets)}", name, means))
    return "\n".join(lines) + "\n"


def collect(records: Sequence[dict], path: Path) -> None:
    """Writes records as one line each, without what only one machine says (times, memory)."""
    lines = [json.dumps({k: v for k, v in record.items() if k not in MEASURED}, sort_keys=True) for record in records]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _row_order(name: str) -> int:
    order = ("zero-shot", "HeGraphAdapter(base)", "HeGraphAdapter(T-N)", "HeGraphAdapter(T-P)", "HeGraphAdapter(T)")
    return order.index(name) if name in order else len(order)


def _grid_row(dataset: str, name: str, values: Sequence[float | None]) -> str:
    cells = " | ".join("" if value is None else f"{value:.2f}" for value in values)
    return f"| {dataset} | {name} | {cells} |"


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns the exit code, 2 for a mistake of the user's."""
    parser = argparse.ArgumentParser(prog="python -m trainers.hegraph.results")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, summary in (
        ("table", "one experiment: mean and spread over seeds"),
        ("grid", "Markdown table: data sets and methods by shots"),
        ("collect", "write many records into one .jsonl file"),
    ):
        command = commands.add_parser(name, help=summary)
        command.add_argument("sources", type=Path, nargs="+", metavar="SOURCE", help="output folder or .jsonl file")
        if name == "collect":
            command.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)

    def command() -> None:
        records = find_records(args.sources)
        if args.command == "collect":
            collect(records, args.out)
            return
        scored = [record for record in records if record["accuracy"] is not None]
        if len(scored) < len(records):
            logger.warning(
                "%d of %d runs had no test images and are left out", len(records) - len(scored), len(records)
            )
        sys.stdout.write({"table": table, "grid": grid}[args.command](scored))

    return report(command)


if __name__ == "__main__":
    sys.exit(main())
