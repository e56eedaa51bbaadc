"""Doing the runs of a sweep, in this process or in worker processes. Both give the results as they come."""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.resource_tracker import ensure_running

from ..experiments.folder import is_locked
from ..experiments.tasks import Opened
from ..utils.errors import UserError, show_messages
from ..utils.signals import ENDINGS
from ..utils.threads import cores
from .execute import FAILED, Result, attempt, record_failure
from .grid import Run

logger = logging.getLogger(__name__)

THREADS = "OMP_NUM_THREADS"  # how many threads torch computes with
PATIENCE = 1.0  # seconds that the system has to end what a worker has started
STARTS = 3  # how many workers in a row may die before their first run


def run_here(runs: Sequence[Run], verbose: bool = False) -> Iterator[Result]:
    """Does the runs one after the other in this process, which keeps what they can share."""
    opened = Opened()
    for run in runs:
        yield attempt(run, opened, verbose)


def run_in_workers(runs: Sequence[Run], workers: int, verbose: bool = False) -> Iterator[Result]:
    """Does the runs in worker processes, each of which keeps to one data set as long as it has runs.

    A worker that dies takes its run along, which counts as failed, and another takes its place. No signal reaches a
    worker, so that none can get lost in a library: where this process is interrupted, it kills its workers. The next
    sweep goes on from their checkpoints.

    Args:
        runs: The runs.
        workers: How many processes, at least 1.
        verbose: Whether the runs' own messages are shown, and not their warnings alone.

    Raises:
        UserError: If `STARTS` workers in a row die before their first run.
    """
    waiting = deque(runs)
    workers = min(workers, len(runs))
    said = os.environ.get(THREADS, "")
    threads = max(1, (int(said) if said.isdecimal() else cores()) // workers)  # those of one process, divided
    logger.info("%d workers with %s=%d each", workers, THREADS, threads)
    team = [Worker(threads, verbose) for _ in range(workers)]
    died = 0  # in a row, before their first run
    try:
        while waiting or any(worker.run for worker in team):
            heard = wait([worker.connection for worker in team if worker.run or worker.starting])
            for worker in [worker for worker in team if worker.connection in heard]:
                was_starting = worker.starting
                if (result := worker.receive()) is not None:
                    yield result
                if was_starting:
                    died = died + 1 if worker.dead else 0
                if died == STARTS:
                    code = worker.process.exitcode
                    raise UserError(
                        f"{STARTS} worker processes ended before their first run, the last with code {code}"
                    )
                if waiting and worker.dead:
                    team[team.index(worker)] = Worker(threads, verbose)
            for worker in team:
                if waiting and worker.idle:
                    worker.give(take(waiting, worker, team))
    finally:
        for worker in team:
            worker.end()


def take(waiting: deque[Run], worker: Worker, team: Sequence[Worker]) -> Run:
    """Takes the next run for a worker: of what it has opened or, if nothing of that is left, of what fewest have.

    Of these it takes one with the most shots, which take longest: a long run that is begun last leaves the other
    workers idle.

    Args:
        waiting: The runs that nobody has; the one that is taken is removed.
        worker: The worker that is idle.
        team: All workers.
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
        dead: Whether it has died.
    """

    def __init__(self, threads: int, verbose: bool) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would share the threads of torch
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, verbose), daemon=True)
        before = {name: os.environ[name] for name in (THREADS,) if name in os.environ}
        os.environ[THREADS] = str(threads)  # torch reads it when it is imported
        try:
            with unheard():
                self.process.start()
        finally:
            del os.environ[THREADS]
            os.environ.update(before)
        theirs.close()
        self.run: Run | None = None
        self.loads: tuple[str, str] | None = None
        self.starting, self.dead = True, False

    @property
    def idle(self) -> bool:
        """Whether it waits for a run."""
        return self.run is None and not self.starting and not self.dead

    def give(self, run: Run) -> None:
        """Has the worker do a run."""
        self.run, self.loads = run, run.loads
        with suppress(OSError):  # it has died, which `receive` finds
            self.connection.send(run)

    def receive(self) -> Result | None:
        """Waits for what the worker says: that it has started, which is None, or what has become of its run."""
        run, self.run, self.starting = self.run, None, False
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            self.dead = True
            self.process.join()
        if run is None:
            return None
        code = self.process.exitcode or 0
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        hint = "; the system may have run out of memory: try fewer --workers" if code == -signal.SIGKILL else ""
        return Result(run, FAILED, record_failure(run, RuntimeError(f"the worker process {how}{hint}")))

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
def unheard() -> Iterator[None]:
    """Processes that are started in the block hear of no Ctrl-C and no signal of `ENDINGS`, nor do theirs."""
    ensure_running()  # the helper of multiprocessing, which would let Ctrl-C through again when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, *ENDINGS))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def work(connection: Connection, verbose: bool) -> None:
    """What a worker process does: runs from the connection, results into it, until nobody is there any more.

    Args:
        connection: To the process that has begun this one, with which this one ends.
        verbose: Whether the runs' own messages are shown.
    """
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
