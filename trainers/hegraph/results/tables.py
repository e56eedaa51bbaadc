"""The table of one experiment, and the grid of several by shots, with the spread over seeds and as plain means."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from ..utils.errors import UserError

# Rows of the table: what it is called, and which accuracy of a record it shows
ROWS = {"zero-shot": "accuracy_zero_shot", "HeGraphAdapter(T)": "accuracy_text", "HeGraphAdapter": "accuracy"}


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
        rows = ROWS if variant == "full" else {"zero-shot": "accuracy_zero_shot", _name(trainer, variant): "accuracy"}
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
        names = ROWS if full else {_name(record["trainer"], record["variant"]): "accuracy"}
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


def _name(trainer: str, variant: str) -> str:
    return f"{trainer}({variant})" if variant else trainer


def _row_order(name: str) -> int:
    order = ("zero-shot", "HeGraphAdapter(base)", "HeGraphAdapter(T-N)", "HeGraphAdapter(T-P)", "HeGraphAdapter(T)")
    return order.index(name) if name in order else len(order)


def _grid_row(dataset: str, name: str, values: Sequence[float | None]) -> str:
    cells = " | ".join("" if value is None else f"{value:.2f}" for value in values)
    return f"| {dataset} | {name} | {cells} |"
