"""Doing the runs of a sweep on a Ray cluster. The results come as they do from `workers`.

This process reads the banks and writes all files; the machines of the cluster need see none of its folders. While a run
is away, its folder is locked. A run whose worker or machine is lost is sent again.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..experiments.failure import ERROR
from ..experiments.lock import Locked, lock_folder
from ..results.records import read_record
from ..utils.errors import UserError
from .cluster import Demand, alive, on_every_node
from .execute import DONE, FAILED, LOCKED, Result, record_failure
from .grid import Run
from .package_state import state_here
from .remote import OTHER_PACKAGE, Answer, Job, SentBank, do_run, files_that_matter, forget_banks
from .run_files import write_files

logger = logging.getLogger(__name__)

TRIES = 4  # how often a run is sent before it counts as failed: its worker may die of its memory every time
AHEAD = 2  # runs that are away for each that the cluster can do at a time, so that no worker waits for the next
FILES_KEPT = 256  # open files that are left to all else: every run that is away holds a lock
LOOK = 10.0  # seconds between two looks at the machines of the cluster


@dataclass
class Away:
    """A run that is away.

    Attributes:
        run: The run.
        job: What was sent.
        lock: Holds the lock of its folder.
        tries: How often it was sent.
    """

    run: Run
    job: Job
    lock: ExitStack
    tries: int = 1


class Dispatch:
    """Sends runs to a cluster, a bounded number at a time.

    Args:
        ray: From `cluster.connected`.
        demand: What one run takes.
        verbose: Whether the runs' own messages are shown, and not their warnings alone.
    """

    def __init__(self, ray: Any, demand: Demand, verbose: bool = False) -> None:
        self.ray, self.demand, self.verbose = ray, demand, verbose
        self._place = f"hegraph-sweep-{uuid.uuid4().hex}"
        self._task = ray.remote(do_run).options(num_cpus=demand.cpus, num_gpus=demand.gpus, max_retries=0)
        self._away: dict[Any, Away] = {}
        self._banks: dict[Path, SentBank] = {}
        self._numbers = itertools.count()
        self._waiting_for_a_machine = False
        logger.info("every run takes %s, with %d threads", demand, demand.threads)

    def results(self, runs: Sequence[Run]) -> Iterator[Result]:
        """Does the runs; gives what has become of each as it comes."""
        waiting = deque(runs)
        to_come: Counter[Path | None] = Counter(run.bank for run in runs if run.bank)
        limit, looked = self.limit(), time.monotonic()
        while waiting or self._away:
            if time.monotonic() > looked + LOOK:
                limit, looked = self.limit(), time.monotonic()
            while waiting and len(self._away) < limit:
                result = self._send(waiting.popleft())
                if result is not None:
                    yield self._counted(result, to_come)
            if not self._away:
                continue
            done, _ = self.ray.wait(list(self._away), timeout=LOOK)
            for reference in done:
                result = self._receive(reference)
                if result is not None:
                    yield self._counted(result, to_come)

    def limit(self) -> int:
        """How many runs may be away at a time; says so where no machine can do any."""
        at_a_time = sum(self.demand.times_in(node["Resources"]) for node in alive(self.ray))
        if not at_a_time and not self._waiting_for_a_machine:
            logger.warning("no machine of the Ray cluster has %s any more: waiting for one", self.demand)
        self._waiting_for_a_machine = not at_a_time
        return max(1, min(AHEAD * at_a_time, most_open_files() - FILES_KEPT))

    def close(self) -> None:
        """Gives up the runs that are away, and removes the banks from the machines."""
        for away in self._away.values():
            away.lock.close()
        self._away.clear()
        on_every_node(self.ray, forget_banks, self._place)

    def _send(self, run: Run) -> Result | None:
        """Sends a run; returns what has become of it if it is not sent."""
        lock = ExitStack()
        try:
            lock.enter_context(lock_folder(run.folder))
            record = read_record(run.folder)
            if record is not None:
                lock.close()
                return Result(run, DONE, "done by another process", 0.0)
            files = files_that_matter(run.folder)
            job = Job(run, run.configuration(), self._bank(run), files, os.getcwd(), state_here(), self.verbose)
        except Locked as error:
            return Result(run, LOCKED, str(error), 0.0)
        except (UserError, OSError) as error:
            with lock:
                return Result(run, FAILED, record_failure(run, error), 0.0)
        except BaseException:
            lock.close()
            raise
        self._away[self._task.remote(job)] = Away(run, job, lock)
        return None

    def _receive(self, reference: Any) -> Result | None:
        """What has become of a run that was away; None if it was lost and has been sent again."""
        away, errors = self._away[reference], self.ray.exceptions
        try:
            answer = self.ray.get(reference)
        except errors.RayTaskError as error:  # not the run itself has failed, but what is around it
            return self._ended(reference, RuntimeError(f"the worker failed: {error.cause!r:.200}"))
        except errors.RayError as error:
            return self._lost(reference, error)
        if answer.status == OTHER_PACKAGE:
            raise UserError(f"{answer.message}, and this machine another; install the same on all machines")
        with away.lock:
            result = written(away.run, answer)
        del self._away[reference]
        return result

    def _lost(self, reference: Any, error: Exception) -> Result | None:
        away = self._away[reference]
        reason = type(error).__name__
        if away.tries == TRIES:
            hint = (
                "it may take more memory than a machine has: try a higher --cpus-per-run, so that fewer run beside it"
            )
            message = f"its worker or machine was lost {TRIES} times ({reason}); {hint}"
            return self._ended(reference, RuntimeError(message))
        logger.warning("%s: its worker or machine was lost (%s); it is sent again", away.run.title, reason)
        del self._away[reference]
        away.tries += 1
        self._away[self._task.remote(away.job)] = away
        return None

    def _ended(self, reference: Any, error: Exception) -> Result:
        away = self._away[reference]
        with away.lock:
            result = Result(away.run, FAILED, record_failure(away.run, error), 0.0)
        del self._away[reference]
        return result

    def _bank(self, run: Run) -> SentBank | None:
        """The bank of a run, which is put into the object store when its first run is sent."""
        path = run.bank
        if path is None:
            return None
        if path not in self._banks:
            try:
                content = np.fromfile(path, dtype=np.uint8)
            except OSError as error:
                raise UserError(f"cannot read the feature bank {path}: {error.strerror or error}") from error
            try:
                reference = self.ray.put(content)
            except self.ray.exceptions.RayError as error:
                raise UserError(f"Ray's object store cannot take {path}: {type(error).__name__}") from error
            self._banks[path] = SentBank(reference, f"{self._place}/{next(self._numbers)}/{path.name}")
        return self._banks[path]

    def _counted(self, result: Result, to_come: Counter[Path | None]) -> Result:
        """Takes a bank out of the object store after its last run."""
        bank = result.run.bank
        to_come[bank] -= 1
        if bank is not None and not to_come[bank]:
            self._banks.pop(bank, None)
        return result


def written(run: Run, answer: Answer) -> Result:
    """Writes what a run has left into its folder. If that fails, so has the run."""
    try:
        write_files(run.folder, answer.files)
    except UserError as error:
        return Result(run, FAILED, record_failure(run, error), answer.seconds)
    if answer.status == FAILED and ERROR not in answer.files:  # the disk of the worker may be full
        record_failure(run, RuntimeError(answer.message))
    return Result(run, answer.status, answer.message, answer.seconds)


def most_open_files() -> int:
    """How many files this process may have open, after raising that as far as it may."""
    try:
        import resource
    except ImportError:  # Windows has no such module
        return 512
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 65536) if hard != resource.RLIM_INFINITY else 65536
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return 65536 if soft == resource.RLIM_INFINITY else soft
