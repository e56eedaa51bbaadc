"""Growth of the step time and of peak memory with the number of classes, each in a process of its own."""

import json
import statistics
import sys
import time
from itertools import islice

from .report import Report
from .tasks import random_bank, start_training
from .timing import peak_memory, process

SMALL = {"sizes": (10,), "width": 16, "steps": 2}
MEMORY_BAR = 8e9  # bytes, at the largest size
SLACK = 1.2  # largest allowed ratio to proportional growth


def run(sizes: tuple[int, ...] = (1000, 5000, 21841), width: int = 512, shots: int = 16, steps: int = 5) -> Report:
    report = Report(
        f"Growth with the number of classes: d = {width}, {shots} shots, batch 256, one view",
        ["K", "ms per step", "time per class, relative to the first", "peak MB", "set-up, s"],
    )
    figures = []
    for num_classes in sizes:
        arguments = [str(x) for x in (num_classes, width, shots, steps)]
        figures.append(json.loads(process("benchmarks.growth", *arguments)[1]))
        growth = figures[-1]["step"] / figures[0]["step"] / (num_classes / sizes[0])
        step, peak, setup = (figures[-1][name] for name in ("step", "peak", "setup"))
        report.rows.append([num_classes, 1000 * step, growth, peak / 1e6, setup])
    report.at_most("time per step and class", growth, SLACK)
    factor = figures[-1]["peak"] / figures[0]["peak"] / (sizes[-1] / sizes[0])
    report.at_most("peak memory per class", factor, SLACK)
    report.at_most("peak memory at the largest, bytes", figures[-1]["peak"], MEMORY_BAR)
    return report


def measure(num_classes: int, width: int, shots: int, steps: int) -> dict[str, float]:
    """Measure one size in this process.

    Returns:
        Median seconds of a "step" without the first one, seconds of the "setup", and "peak" memory in bytes.
    """
    bank = random_bank(num_classes, width, shots)
    started = time.perf_counter()
    training = start_training(bank)
    setup, seconds = time.perf_counter() - started, []
    for batch in islice(training.data.epoch(1), steps + 1):
        started = time.perf_counter()
        training.step(batch)
        seconds.append(time.perf_counter() - started)
    return {"step": statistics.median(seconds[1:] or seconds), "setup": setup, "peak": peak_memory()}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(*map(int, sys.argv[1:]))))
