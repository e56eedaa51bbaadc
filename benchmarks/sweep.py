"""A sweep against one process per run, and two workers against one, as whole processes.

Each worker has one thread. With `OMP_NUM_THREADS=2`, two workers have as many threads as one process per run.

The runs are all methods that need no images, by shots and seeds, on the bank ucf101 of $HEGRAPH_SHARED/banks. They take
about half an hour, most of it in single processes.
"""

import os
import tempfile
from pathlib import Path

from trainers.hegraph.baselines import METHODS, needs_backbone
from trainers.hegraph.experiments.sweep.grid import Grid
from trainers.hegraph.utils.option import OUR_METHOD

from .report import Report
from .tasks import random_bank
from .timing import process

SMALL = {"methods": ("ZeroShot", "TipAdapter"), "shots": (1,), "seeds": (1,), "random_features": True}
CONFIG = "vit_b32"
BAR, BAR_OF_WORKERS = 3.0, 1.8
THREADS = "OMP_NUM_THREADS"


def run(
    methods: tuple[str, ...] = (),
    shots: tuple[int, ...] = (1, 4, 16),
    seeds: tuple[int, ...] = (1, 2, 3),
    random_features: bool = False,
) -> Report:
    methods = methods or tuple(name for name in (*METHODS, OUR_METHOD) if not needs_backbone(name))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bank = folder / "random.safetensors"
        if random_features:
            random_bank(10, 16, shots=4, test=100).save(bank)
        else:
            bank = Path(os.environ["HEGRAPH_SHARED"]) / "banks" / "ucf101.safetensors"

        def grid(output: str) -> Grid:
            lists = {"datasets": str(bank), "configs": CONFIG, "methods": methods, "shots": shots, "seeds": seeds}
            return Grid(**lists, output=str(folder / output))

        runs = grid("single").runs()
        single = sum(process("trainers.hegraph", *each.arguments())[0] for each in runs)
        swept = sweep(grid("swept"))
        one = sweep(grid("one"), "--workers", "1", **{THREADS: "1"})
        two = sweep(grid("two"), "--workers", "2", **{THREADS: "2"})  # shared by the workers
    report = Report(
        f"{len(runs)} runs on {bank.stem}: {len(methods)} methods, shots {shots}, seeds {seeds}, whole processes",
        ["way", "seconds", "seconds per run"],
        [
            [way, seconds, seconds / len(runs)]
            for way, seconds in (
                ("one process per run", single), ("one sweep", swept),
                ("one worker of one thread", one), ("two workers of one thread", two),
            )
        ],
    )  # fmt: skip
    report.at_least("one process per run, over one sweep", single / swept, BAR)
    report.at_least("one process per run, over two workers", single / two, BAR)
    report.at_least("one worker, over two", one / two, BAR_OF_WORKERS)
    return report


def sweep(grid: Grid, *flags: str, **environment: str) -> float:
    """Time the command `sweep` on a grid; returns seconds.

    Args:
        grid: Grid of runs.
        flags: Further arguments of the command.
        environment: Environment variables of the command, beside those of this process.
    """
    numbers = {"--shots": grid.shots, "--seeds": grid.seeds}
    lists = {"--datasets": grid.datasets, "--configs": grid.configs, "--methods": grid.methods, **numbers}
    words = [str(word) for flag, values in lists.items() for word in (flag, *values)]
    return process("trainers.hegraph", "sweep", *words, "--output", grid.output, *flags, **environment)[0]
