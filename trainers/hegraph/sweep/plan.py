"""What of a grid is to be done, by what lies in its folders; how long it should take; and how far it is."""

from __future__ import annotations

import logging
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..config import Config
from ..experiments.folder import RunFolder, is_locked
from ..experiments.image_task import open_task
from ..results.records import find_runs, read_record
from ..utils.devices import available_device
from ..utils.errors import UserError, say
from .grid import Run, name_of
from .workers import FAILED, LOCKED, Result, at_level, has_failed, opened_here

logger = logging.getLogger(__name__)

POLL = 1.0  # seconds between two looks at a run that another process does


@dataclass
class Plan:
    """The runs of a grid: those to do, those whose record is there, and those that failed and are not tried again."""

    to_do: list[Run] = field(default_factory=list)
    finished: list[Run] = field(default_factory=list)
    failed: list[Run] = field(default_factory=list)

    def show(self, output: str) -> None:
        """Prints what would be run, and how long it should take by the records below the folder `output`."""
        times, records = estimate(self.to_do, output)
        for run, seconds in zip(self.to_do, times):
            say(f"{run.folder}  {'?' if seconds is None else f'{seconds:.1f} s'}\n")
        known = [seconds for seconds in times if seconds is not None]
        unknown = len(times) - len(known)
        say(
            f"{len(self.to_do)} runs to do, {len(self.finished)} finished, {len(self.failed)} failed before; "
            f"about {in_words(sum(known))} in one process, by {records} records"
            f"{f'; no record tells of {unknown} of them' if unknown else ''}\n"
        )


def make_plan(runs: Sequence[Run], retry_failed: bool = False) -> Plan:
    """Looks into the folders of all runs. What has failed with another configuration is run in any case.

    Raises:
        UserError: If a configuration is wrong, or folders hold results of runs with other settings or data.
    """
    plan = Plan()
    others: list[Run] = []
    for run in runs:
        cfg = run.configuration()
        done = is_done(run, cfg)
        if done is not None:
            (plan.finished if done else others).append(run)
            is_locked(run.folder)  # removes what a process that was killed has left of its lock
        elif not retry_failed and has_failed(run, cfg):
            plan.failed.append(run)
        else:
            plan.to_do.append(run)
    if others:
        raise UserError(
            f"{len(others)} of {len(runs)} folders hold results of runs with other settings or data, the first "
            f"{others[0].folder}; choose another --output, or delete them"
        )
    return plan


def is_done(run: Run, cfg: Config) -> bool | None:
    """Whether the record in the folder of a run is of this very run, by its configuration; None without a record.

    Raises:
        UserError: If the bank or the data set cannot be read, whose labels are part of the identity of a run.
    """
    record = read_record(run.folder)
    if record is None:
        return None
    with at_level(logging.ERROR):  # what the protocol has to say of a selection is said when it is run
        task = open_task(cfg, run.bank, run.seed, available_device(cfg.run.use_cuda), opened_here())
        return record["run_id"] == RunFolder(task).run_id


def estimate(runs: Sequence[Run], output: str) -> tuple[list[float | None], int]:
    """How long runs should take, in seconds, by the records below a folder.

    Returns:
        For each run the median over finished runs of its method, shots and data set or, where there are none, of its
        method and shots, or of its method; None where there is none of the method. And the number of records.
    """
    known: dict[tuple, list[float]] = defaultdict(list)
    records = find_runs([Path(output)]) if Path(output).is_dir() else {}
    for folder, record in records.items():
        if isinstance(seconds := record.get("seconds"), dict):
            dataset = folder.parents[2].name if len(folder.parents) > 2 else ""
            most = record["trainer"], record["shots"], dataset
            for length in (1, 2, 3):
                known[most[:length]].append(sum(seconds.values()))
    times: list[float | None] = []
    for run in runs:
        most = run.method, run.shots, name_of(run.source)
        found = [known[most[:length]] for length in (3, 2, 1) if most[:length] in known]
        times.append(statistics.median(found[0]) if found else None)
    return times, len(records)


@dataclass
class Progress:
    """Counts the `total` runs of a sweep, and says what becomes of each. `started` is a time of the monotonic clock."""

    total: int
    done: int = 0
    failures: list[tuple[Run, str]] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def count(self, result: Result) -> None:
        """Counts a run that is `DONE` or has `FAILED`, and says so."""
        run, message = result.run, f"{result.message} in {result.seconds:.1f} s"
        if result.status == FAILED:
            self.failures.append((run, result.message))
            message = f"failed: {result.message}"
        else:
            self.done += 1
        ended = self.done + len(self.failures)
        left = self.total - ended
        each = (time.monotonic() - self.started) / ended
        failed = f", {len(self.failures)} failed" if self.failures else ""
        to_go = f"{in_words(each)} a run, {in_words(each * left)} to go"
        logger.info("[%d/%d] %s: %s (%d left%s, %s)", ended, self.total, run.title, message, left, failed, to_go)

    def summary(self, plan: Plan) -> str:
        """The end of a sweep in one line, and a line for every failure."""
        failed = len(self.failures) + len(plan.failed)
        counts = [f"{self.done} done in {in_words(time.monotonic() - self.started)}"]
        counts += [f"{len(plan.finished)} finished before"] if plan.finished else []
        counts += [f"{failed} failed"] if failed else []
        lines = [f"{self.total + len(plan.finished) + len(plan.failed)} runs: {', '.join(counts)}"]
        lines += [f"failed: {run.folder}: {message}" for run, message in self.failures]
        lines += [f"failed before: {run.folder}" for run in plan.failed]
        return "\n".join(lines) + "\n"


def in_words(seconds: float) -> str:
    """A time such as "0.4 s", "40 s", "12 min" or "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def do_runs(runs: Sequence[Run], start: Callable[[Sequence[Run]], Iterable[Result]]) -> Progress:
    """Does the runs with `start`, which gives their results as they come.

    Those that other processes are at come last, when these have ended: what they have finished is recognised then.
    """
    progress, left, waits = Progress(len(runs)), list(runs), False
    while left:
        locked = {run.folder for run in left if is_locked(run.folder)}
        free = [run for run in left if run.folder not in locked]
        left = [run for run in left if run.folder in locked]
        for result in start(free) if free else ():
            if result.status == LOCKED:
                left.append(result.run)
            else:
                progress.count(result)
        if left:
            if not waits:
                logger.info("%d runs are done by another process; waiting for it", len(left))
            waits = True
            time.sleep(POLL)
    return progress
