"""Start of a run: skipping a finished run, against `import torch`, and the time until the first training step, against
`import torch` with an optimizer. All are whole processes.

The shell scripts start every run again, so the skipping of finished runs must be fast.
"""

import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from .first_step import LEAST
from .report import Report
from .tasks import random_bank
from .timing import ROOT, alternate, process, python, ratio

SMALL = {"num_classes": 10, "width": 16, "repeats": 1}
BAR, FIRST_STEP_BAR = 2.0, 1.5
TORCH, IMAGES, BANK = "import torch", "skip a run from images (digits, mini)", "skip a run from a bank"
OPTIMIZER, FIRST_STEP = "import torch and create an optimizer", "run from a bank until its first step"
CONFIGS = ROOT / "configs"


def run(num_classes: int = 100, width: int = 512, repeats: int = 5) -> Report:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        random_bank(num_classes, width, shots=4, test=100).save(folder / "bank.safetensors")
        digits = ["--dataset-config-file", str(CONFIGS / "datasets" / "digits.yaml"), "--root", str(folder)]
        seconds = alternate(
            {
                TORCH: partial(python, "-c", "import torch"),
                IMAGES: finished_run(folder / "images", *digits),
                BANK: finished_run(folder / "bank", "--features", str(folder / "bank.safetensors")),
                OPTIMIZER: partial(python, *LEAST),
                FIRST_STEP: to_first_step(folder / "first", "--features", str(folder / "bank.safetensors")),
            },
            repeats,
        )
    report = Report(
        "Start of a finished run, and of a new one until its first step",
        ["process", "seconds"],
        [[name, statistics.median(s)] for name, s in seconds.items()],
    )
    for name in (IMAGES, BANK):
        report.at_most(f"{name}, over {TORCH}", ratio(seconds[name], seconds[TORCH]), BAR)
    report.at_most(f"{FIRST_STEP}, over {OPTIMIZER}", ratio(seconds[FIRST_STEP], seconds[OPTIMIZER]), FIRST_STEP_BAR)
    return report


def run_arguments(output: Path, *source: str) -> list[str]:
    """Arguments of the command line for a run with one shot.

    Args:
        output: Output folder of the run.
        source: Arguments for the data set or the feature bank.
    """
    config = str(CONFIGS / "trainers" / "HeGraphAdapter" / "mini.yaml")
    arguments = [*source, "--shots", "1", "--seed", "1", "--config-file", config, "--output-dir", str(output)]
    options = {"OPTIM.MAX_EPOCH": "1", "OPTIM.WARMUP_EPOCH": "0", "TRAINER.HEGRAPHADAPTER.MIN_STEPS": "0"}
    return arguments + [word for option in options.items() for word in option]


def to_first_step(output: Path, *source: str) -> Callable[[], object]:
    """Return a function that starts a run and ends it after its first step. See `run_arguments` for the arguments."""
    return partial(process, "benchmarks.first_step", *run_arguments(output, *source))


def finished_run(output: Path, *source: str) -> Callable[[], None]:
    """Train for one epoch; returns a function that starts the same run again. See `run_arguments` for the arguments."""
    arguments = run_arguments(output, *source)
    process("trainers.hegraph", *arguments)
    written = (output / "result.json").stat().st_mtime_ns

    def again() -> None:
        process("trainers.hegraph", *arguments)
        if (output / "result.json").stat().st_mtime_ns != written:
            raise RuntimeError(f"{output} is finished, but it ran again")

    return again
