"""Doing runs of a sweep on this machine: in this process, in workers, or each in a process of its own.

A run leaves what it would leave alone, and nothing in the process that does it. A sweep that is ended kills the
processes at work: an interrupt that they heard themselves could get lost in a library. What they were at goes on from
its checkpoint when the same command is given again.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.resource_tracker import ensure_running

from ..config import Config
from ..experiments.folder import Locked, check_lock, is_locked, write_failure
from ..experiments.record import reset_peak_memory
from ..experiments.run import run as run_one
from ..experiments.tasks import Opened
from ..results.records import read_record
from ..utils.errors import PACKAGE, UserError, first_line, show_messages
from ..utils.signals import ENDINGS, was_interrupted
from ..utils.threads import cores
from .grid import Run

logger = logging.getLogger(__name__)

DONE, FAILED, LOCKED = "done", "failed", "locked"  # what can become of a run
THREADS = "OMP_NUM_THREADS"  # how many threads torch computes with
PATIENCE = 1.0  # seconds that the system has to end what was killed
STARTS = 3  # how many workers in a row may die before their first run


@dataclass(frozen=True)
class Result:
    """What has become of a run: `DONE`, `FAILED`, or `LOCKED` by another process; and its accuracy, or why."""

    run: Run
    status: str
    message: str
    seconds: float = 0.0


def attempt(run: Run, opened: Opened, verbose: bool = False, cfg: Config | None = None) -> Result:
    """Does a run. What it raises is written into its folder, and does not end the sweep.

    Args:
        run: The run.
        opened: What earlier runs have opened.
        verbose: Whether the run's own messages are shown, and not its warnings alone.
        cfg: Its configuration, where it cannot be read here.
    """
    started = time.monotonic()
    try:
        if run.separate:
            record = run_separately(run, verbose)
        else:
            reset_peak_memory()
            with at_level(None if verbose else logging.WARNING), warnings.catch_warnings():  # shows them once a run
                record = run_one(cfg or run.configuration(), run.bank, opened=opened)
        accuracy = record["accuracy"]
        status, message = DONE, "no test images" if accuracy is None else f"{accuracy:.2f}"
    except Locked as error:
        status, message = LOCKED, str(error)
    except Exception as error:
        if was_interrupted():  # while a module was imported, which turns it into anything
            raise KeyboardInterrupt from error
        status, message = FAILED, record_failure(run, error, cfg)
    return Result(run, status, message, time.monotonic() - started)


def run_separately(run: Run, verbose: bool = False) -> dict:
    """Has a process of its own do a run, by the run's command line, and returns the record.

    Raises:
        Locked: If another process is at work in its folder.
        UserError: If the process says that the user has made a mistake.
        RuntimeError: If it fails in another way. After the first line comes the end of what the process printed.
    """
    printed: deque[str] = deque(maxlen=100)
    command = [sys.executable, "-m", PACKAGE, *run.arguments()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            for line in process.stdout or ():
                printed.append(line)
                if verbose:
                    sys.stderr.write(line)
        except KeyboardInterrupt:
            process.kill()
            is_locked(run.folder, PATIENCE)
            raise
    if process.returncode:
        check_lock(run.folder)
        last = printed[-1].strip().removeprefix("error: ") if printed else f"it ended with code {process.returncode}"
        raise UserError(last) if process.returncode == 2 else RuntimeError(f"{last}\n{''.join(printed)}")
    record = read_record(run.folder)
    if record is None:
        raise RuntimeError(f"{run.folder} has no record after its run\n{''.join(printed)}")
    return record


def record_failure(run: Run, error: Exception, cfg: Config | None = None) -> str:
    """Writes `error.json` of a run, if its folder holds no record, and returns the message in one line."""
    message = first_line(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
    try:
        if read_record(run.folder) is None:
            write_failure(run.folder, error, cfg or run.configuration(), run.source, run.command())
    except UserError as other:  # the disk may be full
        logger.warning("%s", other)
    return message


@contextmanager
def at_level(level: int | None) -> Iterator[None]:
    """In the block, the package logs what is at least as grave; None changes nothing. What a run sets is undone."""
    log = logging.getLogger(PACKAGE)
    before = log.level
    log.setLevel(before if level is None else level)
    try:
        yield
    finally:
        log.setLevel(before)


def run_here(runs: Sequence[Run], verbose: bool = False) -> Iterator[Result]:
    """Does the runs one after the other in this process, which keeps what they can share."""
    opened = Opened()
    for run in runs:
        yield attempt(run, opened, verbose)


def run_in_workers(runs: Sequence[Run], workers: int, verbose: bool = False) -> Iterator[Result]:
    """Does the runs in so many worker processes, each of which keeps to one data set as long as it has runs.

    A worker that dies takes its run along, which counts as failed, and another takes its place.

    Raises:
        UserError: If `STARTS` workers in a row die before their first run.
    """
    waiting = deque(runs)
    workers = min(workers, len(runs))
    said = os.environ.get(THREADS, "")
    threads = max(1, (int(said) if said.isdecimal() else cores()) // workers)  # those of one process, divided
    logger.info("%d workers with %s=%d each", workers, THREADS, threads)
    team: list[Worker] = []
    died = 0  # in a row, before their first run
    try:
        while waiting or any(worker.run for worker in team):
            team += [Worker(threads, verbose) for _ in range(min(workers - len(team), len(waiting)))]
            for worker in team:
                if waiting and worker.run is None and not worker.starting:
                    worker.give(take(waiting, worker, team))
            heard = wait([worker.connection for worker in team if worker.run or worker.starting])
            for worker in [worker for worker in team if worker.connection in heard]:
                result = None
                try:
                    result, died = worker.receive(), 0
                except (EOFError, OSError):
                    team.remove(worker)
                    how = worker.how_it_ended()
                    if worker.run is not None:
                        result = Result(worker.run, FAILED, record_failure(worker.run, RuntimeError(how)))
                    elif (died := died + 1) == STARTS:
                        raise UserError(f"{STARTS} workers in a row ended before their first run: {how}") from None
                if result is not None:
                    yield result
    finally:
        for worker in team:
            worker.end()


def take(waiting: deque[Run], worker: Worker, team: Sequence[Worker]) -> Run:
    """Takes the next run for a worker: of what it has opened or, if nothing of that is left, of what fewest have.

    Of these it takes one with the most shots, which take longest: a long run that is begun last leaves the other
    workers idle.
    """
    left = Counter(run.loads for run in waiting)
    held = Counter(other.loads for other in team if other is not worker)
    wanted = worker.loads
    if wanted not in left:
        wanted = max(left, key=lambda loads: left[loads] / (1 + held[loads]))
    run = max((run for run in waiting if run.loads == wanted), key=lambda run: run.shots if run.shots > 0 else math.inf)
    waiting.remove(run)
    return run


class Worker:
    """A process that does runs which it is given, one at a time.

    Attributes:
        run: The run that it is at; None if it is idle.
        loads: What it has opened last, as `Run.loads`.
        starting: Whether it is still importing what it needs.
    """

    def __init__(self, threads: int, verbose: bool) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would share the threads of torch
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, verbose), daemon=True)
        with of_workers(threads):
            self.process.start()
        theirs.close()
        self.run: Run | None = None
        self.loads: tuple[str, str] | None = None
        self.starting = True

    def give(self, run: Run) -> None:
        """Has the worker do a run."""
        self.run, self.loads = run, run.loads
        with suppress(OSError):  # it has died, which `receive` finds
            self.connection.send(run)

    def receive(self) -> Result | None:
        """What the worker says: None, that it has started, or what has become of its run. EOFError: it has died."""
        said = self.connection.recv()
        self.run, self.starting = None, False
        return said

    def how_it_ended(self) -> str:
        """How the process has died, in words."""
        self.process.join()
        code = self.process.exitcode or 0
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        hint = "; the system may have run out of memory: try fewer --workers" if code == -signal.SIGKILL else ""
        return f"the worker process {how}{hint}"

    def end(self) -> None:
        """Kills the process and what it has started, and removes what the run that it was at has left half done."""
        if self.process.is_alive():
            with suppress(OSError):  # it has not come to `os.setsid` yet
                os.killpg(self.process.pid or 0, signal.SIGKILL)
            self.process.kill()
            self.process.join()
        self.connection.close()
        if self.run is not None:
            is_locked(self.run.folder, PATIENCE)


@contextmanager
def of_workers(threads: int) -> Iterator[None]:
    """Processes that are started in the block have so many threads, and hear no Ctrl-C and no signal of `ENDINGS`."""
    ensure_running()  # the helper of multiprocessing, which would let Ctrl-C through again when it starts
    said = os.environ.get(THREADS)
    os.environ[THREADS] = str(threads)  # torch reads it when it is imported
    heard = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, *ENDINGS))
    try:
        yield
    finally:
        os.environ.pop(THREADS)
        os.environ.update({} if said is None else {THREADS: said})
        signal.pthread_sigmask(signal.SIG_SETMASK, heard)


def work(connection: Connection, verbose: bool) -> None:
    """What a worker process does: runs from the connection, results into it, until nobody is there any more."""
    os.setsid()  # its processes, those of runs with `separate`, can be killed together
    threading.Thread(target=_end_with_parent, daemon=True).start()
    show_messages()
    opened = Opened()
    with suppress(EOFError, OSError):
        connection.send(None)
        while True:
            connection.send(attempt(connection.recv(), opened, verbose))


def _end_with_parent() -> None:
    """Waits until the process that has begun this one ends, however it does, and kills this one's."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os.killpg(0, signal.SIGKILL)
