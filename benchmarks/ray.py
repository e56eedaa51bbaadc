"""Additional time of a run of a sweep on Ray against one process, and growth of the memory of the driver.

Ray is local with one CPU, so it also executes one run at a time. Neither its start counts, nor the first runs, in which
a process imports packages.
"""

import logging
import os
import tempfile
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import torch

from trainers.hegraph.experiments.sweep.cluster import THREADS, Cluster
from trainers.hegraph.experiments.sweep.grid import Run
from trainers.hegraph.experiments.sweep.workers import DONE, Result, attempt

from .report import Report
from .tasks import random_bank

SMALL = {"timed": 8, "many": 16}
COST_BAR, GROWTH_BAR = 50.0, 1.05
WARM_UP = 0.1  # share of the runs before the measurement of time and memory


def run(timed: int = 200, many: int = 1000) -> Report:
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        random_bank(5, 16, shots=4, test=40).save(folder / "bank.safetensors")
        here, _ = follow((attempt(run, False) for run in runs(folder, "here", timed)), timed)
        started = time.perf_counter()
        ray.init(
            address="local",
            num_cpus=1,
            include_dashboard=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": {THREADS: str(torch.get_num_threads())}},
        )
        try:
            with closing(Cluster(ray, cpus=1, gpus=0, verbose=False)) as dispatch:
                next(iter(dispatch.results(runs(folder, "first", 1))))
                start = time.perf_counter() - started
                there, _ = follow(dispatch.results(runs(folder, "there", timed)), timed)
                _, growth = follow(dispatch.results(runs(folder, "many", many)), many)
        finally:
            ray.shutdown()
    report = Report(
        "A run of a sweep on Ray, against one in this process",
        ["step", "ms"],
        [
            ["a run in this process", here * 1e3],
            ["a run on Ray", there * 1e3],
            ["start until the first run", start * 1e3],
        ],
    )
    report.at_most("Ray's cost per run, ms", (there - here) * 1e3, COST_BAR)
    report.at_most(f"driver's memory after {many} runs over a tenth of them", growth, GROWTH_BAR)
    return report


def runs(folder: Path, name: str, count: int) -> list[Run]:
    """Create small runs with different seeds."""
    bank = str(folder / "bank.safetensors")
    return [Run(folder / name / f"seed{n}", bank, "vit_b32", "ZeroShot", 1, n) for n in range(count)]


def follow(results: Iterable[Result], count: int) -> tuple[float, float]:
    """Consume the results of a sweep.

    Returns:
        Seconds per run, and the ratio of the memory of this process at the end to that after the first runs.
    """
    warm = max(1, int(WARM_UP * count))
    began = memory = 0.0
    for number, result in enumerate(results, 1):
        if result.status != DONE:
            raise RuntimeError(f"{result.run.folder} failed: {result.message}")
        if number == warm:
            began, memory = time.perf_counter(), resident_memory()
    return (time.perf_counter() - began) / (count - warm), resident_memory() / memory


def resident_memory() -> float:
    """Read the resident memory of this process, in pages. Works on Linux only."""
    return float(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
