"""Timing on a machine that other programs use too: things to compare take turns, and the median of ratios counts."""

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent


def in_turn(functions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Calls named functions in turn, and gives the seconds of every call.

    Each is called once before, which is not measured, unless it is called only once: then it takes so long that a
    warm-up does not show, or only shows that it runs.
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
    """The median over repeats of numerator by denominator."""
    return statistics.median(a / b for a, b in zip(numerators, denominators))


def process(*arguments: str, **environment: str) -> tuple[float, str]:
    """Runs `python -m ARGUMENTS...`; see `python`."""
    return python("-m", *arguments, **environment)


def python(*arguments: str, **environment: str) -> tuple[float, str]:
    """Runs `python ARGUMENTS...` in the repository's folder, as a process of its own.

    Args:
        arguments: Of the interpreter.
        environment: Variables that the process finds changed.

    Returns:
        Its wall time in seconds, start and imports included; its standard output.

    Raises:
        RuntimeError: If it failed, with the end of what it wrote to standard error.
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
