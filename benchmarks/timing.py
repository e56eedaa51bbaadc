"""Timing on a shared machine: functions run in alternation, and ratios are medians over repeats."""

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent


def alternate(functions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Call named functions in alternation; returns the seconds of each call.

    With several repeats, each function is called once before as a warm-up.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(-(repeats > 1), repeats):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Median over repeats of numerator / denominator."""
    return statistics.median(a / b for a, b in zip(numerators, denominators))


def process(*arguments: str, **environment: str) -> tuple[float, str]:
    """Run `python -m ARGUMENTS...`; see `python`."""
    return python("-m", *arguments, **environment)


def python(*arguments: str, **environment: str) -> tuple[float, str]:
    """Run `python ARGUMENTS...` in the folder of the repository.

    Args:
        arguments: Arguments of the interpreter.
        environment: Environment variables of the process, beside those of this process.

    Returns:
        Wall time in seconds, from the start of the process to its end, and its standard output.

    Raises:
        RuntimeError: If the process failed, with the end of its standard error.
    """
    started = time.perf_counter()
    variables = {**os.environ, **environment}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=variables, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"python {' '.join(arguments)} failed: {done.stderr[-2000:]}")
    return time.perf_counter() - started, done.stdout


def peak_memory() -> float:
    """Peak resident memory of this process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
