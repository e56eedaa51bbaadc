"""Runs of a sweep: select the pending ones, run them, and report progress."""

import argparse
import logging
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ...config import KEY_PATTERN, pairs_of
from ...results.records import find_runs
from ...utils.command_line import echo
from ...utils.errors import UserError
from ...utils.locks import is_locked
from ...utils.signals import stop_if_interrupted
from .cluster import connected
from .grid import Grid, Run, read_grid
from .workers import FAILED, LOCKED, Result, has_failed, is_done, run_here, run_in_workers

logger = logging.getLogger(__name__)

Start = Callable[[Sequence[Run]], Generator[Result]]  # starts runs, and yields their results in order of completion
POLL = 1.0  # seconds between two checks of a run in another process


def grid_of(args: argparse.Namespace) -> tuple[Path | None, dict]:
    """Return the path of the grid file, and the fields of `Grid` among the flags; UserError if a key has no value."""
    words = list(args.words)
    path = Path(words.pop(0)) if words and not KEY_PATTERN.fullmatch(words[0]) else None
    flags = {name: value for name, value in vars(args).items() if name in Grid.model_fields and value is not None}
    if args.case:
        flags["cases"] = {name: dict(pairs_of(pairs)) for name, *pairs in args.case}
    flags["vary"] = {key: values for key, *values in args.vary}
    flags["set"] = dict(pairs_of(words))
    return path, flags


def run_command(args: argparse.Namespace) -> int:
    """Run the sweep; return 1 if a run failed."""
    if args.workers < 0:
        raise UserError(f"--workers must be at least 0, got {args.workers}", "sweep.workers")
    if args.ray is not None and args.workers:
        raise UserError("--workers and --ray exclude each other; leave one out", "sweep.workers")
    grid = read_grid(*grid_of(args))
    runs = grid.runs()
    if args.folders:
        folders = dict.fromkeys(run.folder.parent for run in runs)
        echo("".join(f"{folder}\n" for folder in folders))
        return 0
    sweep = plan(runs, args.retry_failed)
    if sweep.finished:
        logger.info("%d of %d runs are finished: skipped", len(sweep.finished), len(runs))
    if sweep.failed:
        logger.info("%d runs failed before: skipped; --retry-failed runs them again", len(sweep.failed))
    if args.dry_run:
        sweep.show(grid.output)
        return 0
    with ExitStack() as stack:
        start: Start = partial(run_here, verbose=args.verbose)
        if args.ray is not None and sweep.to_do:
            ray = connected(args.ray, args.cpus_per_run, args.gpus_per_run, args.verbose)
            start = stack.enter_context(ray).results
        elif args.workers:
            start = partial(run_in_workers, workers=args.workers, verbose=args.verbose)
        do_runs(sweep, start)
    echo(sweep.summary())
    return 1 if sweep.failures or sweep.failed else 0


# Plan and progress


@dataclass
class Sweep:
    """Plan and progress of a sweep.

    Attributes:
        to_do: Pending runs.
        finished: Runs that have a record.
        failed: Runs that failed before, and are not run again.
        results: Results of pending runs so far.
        started: Start on the monotonic clock, in seconds.
    """

    to_do: list[Run] = field(default_factory=list)
    finished: list[Run] = field(default_factory=list)
    failed: list[Run] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    started: float = 0.0

    @property
    def failures(self) -> list[Result]:
        """Results of the runs that failed in this sweep."""
        return [result for result in self.results if result.status == FAILED]

    def show(self, output: str) -> None:
        """Print the pending runs with their expected time, the median of their method in the folder `output`."""
        known = defaultdict(list)
        for record in find_runs([Path(output)]).values():
            known[record["trainer"]].append(sum((record.get("seconds") or {}).values()))
        times = [statistics.median(known[run.method]) if run.method in known else None for run in self.to_do]
        for run, seconds in zip(self.to_do, times):
            echo(f"{run.folder}  {'?' if seconds is None else f'{seconds:.1f} s'}\n")
        expected = [seconds for seconds in times if seconds is not None]
        counts = f"{len(self.to_do)} runs to do, {len(self.finished)} finished, {len(self.failed)} failed before"
        time = f"no expected time, because no run of these methods is finished in {output}"
        if expected:
            time = f"about {in_words(sum(expected))} in one process"
            if len(expected) < len(times):
                time += f" for {len(expected)} of them; the methods of the others have no finished run in {output}"
        echo(f"{counts}; {time}\n" if times else f"{counts}\n")

    def count(self, result: Result) -> None:
        """Count and log a result with status `DONE` or `FAILED`."""
        self.results.append(result)
        total = len(self.to_do)
        ended = len(self.results)
        left = total - ended
        failed = f", {len(self.failures)} failed" if self.failures else ""
        if result.status == FAILED:
            message = f"failed: {result.message}"
        else:
            message = f"{result.message} in {result.seconds:.1f} s"
        each = (time.monotonic() - self.started) / ended
        to_go = f"{in_words(each)} a run, {in_words(each * left)} to go"
        logger.info("[%d/%d] %s: %s (%d left%s, %s)", ended, total, result.run.title, message, left, failed, to_go)

    def summary(self) -> str:
        """Summary in one line, and a line for each failure."""
        failures = self.failures
        finished = len(self.finished)
        counts = [f"{len(self.results) - len(failures)} done in {in_words(time.monotonic() - self.started)}"]
        counts += [f"{finished} finished before"] if finished else []
        counts += [f"{len(failures) + len(self.failed)} failed"] if failures or self.failed else []
        lines = [f"{len(self.to_do) + finished + len(self.failed)} runs: {', '.join(counts)}"]
        lines += [f"failed: {result.run.folder}: {result.message}" for result in failures]
        lines += [f"failed before: {run.folder}" for run in self.failed]
        return "\n".join(lines) + "\n"


def plan(runs: Sequence[Run], retry_failed: bool) -> Sweep:
    """Sort runs by the state of their output folders. Runs that failed with another configuration are pending.

    Raises:
        UserError: If a configuration is invalid, or a folder holds the result of a run with other settings or data.
    """
    sweep = Sweep()
    for run in runs:
        cfg = run.configuration()
        if is_done(run, cfg):
            sweep.finished.append(run)
        elif not retry_failed and has_failed(run, cfg):
            sweep.failed.append(run)
        else:
            sweep.to_do.append(run)
    return sweep


def in_words(seconds: float) -> str:
    """Format a duration, such as "0.4 s", "40 s", "12 min" or "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def do_runs(sweep: Sweep, start: Start) -> None:
    """Run the pending runs. Runs that another process is working on come last, after this process has ended."""
    sweep.started = time.monotonic()
    left = sweep.to_do
    waits = False
    while left:
        locked = [run for run in left if is_locked(run.folder)]
        free = [run for run in left if run not in locked]
        left = locked
        if free:
            with closing(start(free)) as results:
                for result in results:
                    if result.status == LOCKED:
                        left.append(result.run)
                    else:
                        sweep.count(result)
                    stop_if_interrupted()
        if left:
            if not waits:
                logger.info("waiting for another process, which does %d runs", len(left))
            waits = True
            time.sleep(POLL)
