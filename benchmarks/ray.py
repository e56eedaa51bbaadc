"""What Ray costs for each run of a sweep, over the same runs in one process, and whether the driver's memory grows.

Ray is local and has one CPU, so that one run is done at a time there, too. Its start is not counted, nor are the first
runs, in which a process imports what it needs.
"""

import logging
import os
import tempfile
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import torch

from trainers.hegraph.sweep.cluster import THREADS, Cluster
from trainers.hegraph.sweep.grid import Run
from trainers.hegraph.sweep.workers import DONE, Result, attempt

from .report import Report
from .tasks import random_bank

SMALL = {"timed": 8, "many": 16}
COST_BAR, GROWTH_BAR = 50.0, 1.05
WARM_UP = 0.1  # the part of the runs after which time and memory are looked at


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
        "A run of a sweep on Ray, over one in this process",
        ["what", "ms"],
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
    """Small runs, each with a seed of its own."""
    bank = str(folder / "bank.safetensors")
    return [Run(folder / name / f"seed{n}", bank, "vit_b32", "ZeroShot", 1, n) for n in range(count)]


def follow(results: Iterable[Result], count: int) -> tuple[float, float]:
    """Follows a sweep to its end.

    Returns:
        Seconds per run, and the memory of this process at the end over that after the first runs.
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
    """What of this process lies in memory now, in pages; Linux alone says it."""
    return float(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
