"""The runs of a sweep: which are left to do, doing them, and the progress."""

from __future__ import annotations

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

from ..config import KEY_PATTERN, pairs_of
from ..experiments.lock import is_locked
from ..results.records import find_runs
from ..utils.errors import UserError, echo, stop_if_interrupted
from .cluster import connected
from .grid import Grid, Run, read_grid
from .workers import FAILED, LOCKED, Result, has_failed, is_done, run_here, run_in_workers

logger = logging.getLogger(__name__)

Start = Callable[[Sequence[Run]], Generator[Result]]  # does runs, and gives their results as they come
POLL = 1.0  # seconds between two looks at a run that another process does


def grid_of(args: argparse.Namespace) -> tuple[Path | None, dict]:
    """The file of the grid, and the fields of `Grid` that the flags give; UserError if a key has no value."""
    words = list(args.words)
    path = Path(words.pop(0)) if words and not KEY_PATTERN.fullmatch(words[0]) else None
    found = {name: said for name, said in vars(args).items() if name in Grid.model_fields and said is not None}
    if args.case:
        found["cases"] = {name: dict(pairs_of(pairs)) for name, *pairs in args.case}
    found["vary"] = {key: values for key, *values in args.vary}
    found["set"] = dict(pairs_of(words))
    return path, found


def run_command(args: argparse.Namespace) -> int:
    """Does what the flags say; returns 1 if a run has failed."""
    if args.workers < 0:
        raise UserError(f"--workers must be at least 1, or left out, got {args.workers}")
    if args.ray is not None and args.workers:
        raise UserError("--workers are of this machine, and --ray has its own; give one of them")
    grid = read_grid(*grid_of(args))
    runs = grid.runs()
    if args.folders:
        echo("".join(f"{folder}\n" for folder in dict.fromkeys(run.folder.parent for run in runs)))
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


# What of a grid is to be done, and how far it is


@dataclass
class Sweep:
    """The runs of a grid: those to do, those whose record is there, and those that failed and are not tried again; and
    what has become of the first since the monotonic clock has `started`.
    """

    to_do: list[Run] = field(default_factory=list)
    finished: list[Run] = field(default_factory=list)
    failed: list[Run] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    started: float = 0.0

    @property
    def failures(self) -> list[Result]:
        """The results of runs that have failed now."""
        return [result for result in self.results if result.status == FAILED]

    def show(self, output: str) -> None:
        """Prints what would be run, and how long it should take: the median of its method below the folder `output`."""
        known = defaultdict(list)
        for record in find_runs([Path(output)]).values():
            known[record["trainer"]].append(sum((record.get("seconds") or {}).values()))
        times = [statistics.median(known[run.method]) if run.method in known else None for run in self.to_do]
        for run, seconds in zip(self.to_do, times):
            echo(f"{run.folder}  {'?' if seconds is None else f'{seconds:.1f} s'}\n")
        told = [seconds for seconds in times if seconds is not None]
        echo(
            f"{len(self.to_do)} runs to do, {len(self.finished)} finished, {len(self.failed)} failed before; about "
            f"{in_words(sum(told))} in one process for the {len(told)} whose method has records\n"
        )

    def count(self, result: Result) -> None:
        """Counts a run that is `DONE` or has `FAILED`, and says so."""
        self.results.append(result)
        total, ended, failures = len(self.to_do), len(self.results), len(self.failures)
        each, left = (time.monotonic() - self.started) / ended, total - ended
        message, failed = result.message, f", {failures} failed" if failures else ""
        message = f"failed: {message}" if result.status == FAILED else f"{message} in {result.seconds:.1f} s"
        to_go = f"{in_words(each)} a run, {in_words(each * left)} to go"
        logger.info("[%d/%d] %s: %s (%d left%s, %s)", ended, total, result.run.title, message, left, failed, to_go)

    def summary(self) -> str:
        """The end of a sweep in one line, and a line for every failure."""
        failures, finished = self.failures, len(self.finished)
        counts = [f"{len(self.results) - len(failures)} done in {in_words(time.monotonic() - self.started)}"]
        counts += [f"{finished} finished before"] if finished else []
        counts += [f"{len(failures) + len(self.failed)} failed"] if failures or self.failed else []
        lines = [f"{len(self.to_do) + finished + len(self.failed)} runs: {', '.join(counts)}"]
        lines += [f"failed: {result.run.folder}: {result.message}" for result in failures]
        lines += [f"failed before: {run.folder}" for run in self.failed]
        return "\n".join(lines) + "\n"


def plan(runs: Sequence[Run], retry_failed: bool) -> Sweep:
    """Looks into the folders of all runs. What has failed with another configuration is run in any case.

    Raises:
        UserError: If a configuration is wrong, or a folder holds the result of a run with other settings or data.
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
    """A time such as "0.4 s", "40 s", "12 min" or "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def do_runs(sweep: Sweep, start: Start) -> None:
    """Does the runs. Those that other processes are at come last, when these have ended: what they have finished is
    recognised then.
    """
    sweep.started, left, waits = time.monotonic(), sweep.to_do, False
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
                logger.info("%d runs are done by another process; waiting for it", len(left))
            waits = True
            time.sleep(POLL)
