"""Timing on a machine that others use, too: what is compared runs in turn, and the median of the ratios counts."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent


def in_turn(
    functions: Mapping[str, Callable[[], object]], repeats: int, warm_up: bool = True
) -> dict[str, list[float]]:
    """Seconds of each function, one of each per repeat; with `warm_up`, after one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(-warm_up, repeats):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """The median of the repeats' ratios."""
    return statistics.median(a / b for a, b in zip(numerators, denominators))


def process(*arguments: str) -> tuple[float, str]:
    """Wall time in seconds, and standard output, of `python -m ARGUMENTS...`: imports and all.

    Raises:
        RuntimeError: With what it said, if it failed.
    """
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed: {done.stderr[-2000:]}")
    return time.perf_counter() - started, done.stdout


def peak_memory() -> float:
    """Peak resident memory of this process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
