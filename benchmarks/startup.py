"""The time before a run trains: a finished run that is skipped, as a whole process, against `import torch` alone; and a
run from a bank, process start to the first step, against `import torch` with an optimizer.

The scripts start every run again, and rely on finished ones ending at once.
"""

import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from .first_step import LEAST
from .report import Report
from .tasks import random_bank
from .timing import ROOT, in_turn, process, python, ratio

SMALL = {"num_classes": 10, "width": 16, "repeats": 1}
BAR, FIRST_STEP_BAR = 2.0, 1.5
TORCH, IMAGES, BANK = "import torch", "skipping a run of images (digits, mini)", "skipping a run of a bank"
TRAINS, FIRST_STEP = "import torch and make an optimizer", "a run from a bank up to its first step"
CONFIGS = ROOT / "configs"


def run(num_classes: int = 100, width: int = 512, repeats: int = 5) -> Report:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        random_bank(num_classes, width, shots=4, test=100).save(folder / "bank.safetensors")
        digits = ["--dataset-config-file", str(CONFIGS / "datasets" / "digits.yaml"), "--root", str(folder)]
        seconds = in_turn(
            {
                TORCH: partial(python, "-c", "import torch"),
                IMAGES: finished_run(folder / "images", *digits),
                BANK: finished_run(folder / "bank", "--features", str(folder / "bank.safetensors")),
                TRAINS: partial(python, *LEAST),
                FIRST_STEP: to_first_step(folder / "first", "--features", str(folder / "bank.safetensors")),
            },
            repeats,
        )
    report = Report(
        "A finished run is started again, whole processes, and a new one up to its first step",
        ["what", "seconds"],
        [[what, statistics.median(s)] for what, s in seconds.items()],
    )
    for what in (IMAGES, BANK):
        report.at_most(f"{what}, over {TORCH}", ratio(seconds[what], seconds[TORCH]), BAR)
    report.at_most(f"{FIRST_STEP}, over {TRAINS}", ratio(seconds[FIRST_STEP], seconds[TRAINS]), FIRST_STEP_BAR)
    return report


def run_arguments(output: Path, *source: str) -> list[str]:
    """The command line of a run of one shot.

    Args:
        output: The output folder of the run.
        source: The arguments that say where features come from.
    """
    config = str(CONFIGS / "trainers" / "HeGraphAdapter" / "mini.yaml")
    arguments = [*source, "--shots", "1", "--seed", "1", "--config-file", config, "--output-dir", str(output)]
    options = {"OPTIM.MAX_EPOCH": "1", "OPTIM.WARMUP_EPOCH": "0", "TRAINER.HEGRAPHADAPTER.MIN_STEPS": "0"}
    return arguments + [word for option in options.items() for word in option]


def to_first_step(output: Path, *source: str) -> Callable[[], object]:
    """A function that starts a run and ends it after its first step; arguments as of `run_arguments`."""
    return partial(process, "benchmarks.first_step", *run_arguments(output, *source))


def finished_run(output: Path, *source: str) -> Callable[[], None]:
    """Trains for one epoch; returns a function that starts the same run again; arguments as of `run_arguments`."""
    arguments = run_arguments(output, *source)
    process("trainers.hegraph", *arguments)
    written = (output / "result.json").stat().st_mtime_ns

    def again() -> None:
        process("trainers.hegraph", *arguments)
        if (output / "result.json").stat().st_mtime_ns != written:
            raise RuntimeError(f"{output} is finished, and yet it was run again")

    return again
