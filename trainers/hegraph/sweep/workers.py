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
import traceback
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from ..config import Config
from ..experiments.lock import Locked, is_locked
from ..experiments.run import run as run_one
from ..experiments.run_folder import ERROR, RunFolder, run_config
from ..experiments.tasks import open_task
from ..results.records import read_record
from ..utils.devices import available_device
from ..utils.errors import (
    ENDINGS,
    PACKAGE,
    UserError,
    deferred_interrupts,
    first_line,
    show_messages,
    was_interrupted,
)
from ..utils.files import hash_json, remove_temporaries, write_json
from ..utils.reading import read_json
from ..utils.threads import cores
from .grid import FEATURES_DIR, Run

logger = logging.getLogger(__name__)

DONE, FAILED, LOCKED = "done", "failed", "locked"  # what can become of a run
THREADS = "OMP_NUM_THREADS"  # how many threads torch computes with
DIED = "its worker process was ended; the system may have run out of memory: try fewer --workers"


@dataclass(frozen=True)
class Result:
    """What has become of a run: `DONE`, `FAILED`, or `LOCKED` by another process; and its accuracy, or why."""

    run: Run
    status: str
    message: str
    seconds: float = 0.0


def attempt(run: Run, verbose: bool, cfg: Config | None = None) -> Result:
    """Does a run. What it raises is written into its folder, and does not end the sweep.

    With `verbose` its messages are shown, and not its warnings alone; `cfg` is needed where its files are not here.
    """
    started = time.monotonic()
    try:
        if run.separate:
            record = run_separately(run, verbose)
        else:
            with at_level(logging.INFO if verbose else logging.WARNING):
                record = run_one(cfg or run.configuration(), run.bank)
        accuracy = record["accuracy"]
        status, message = DONE, "no test images" if accuracy is None else f"{accuracy:.2f}"
    except Locked as error:
        status, message = LOCKED, str(error)
    except Exception as error:
        if was_interrupted():  # while a module was imported, which turns it into anything
            raise KeyboardInterrupt from error
        status, message = FAILED, record_failure(run, error, cfg)
    return Result(run, status, message, time.monotonic() - started)


def run_separately(run: Run, verbose: bool) -> dict:
    """Has a process of its own do a run, by the run's command line, and returns the record.

    Raises:
        Locked: If another process is at work in its folder.
        UserError: If the process says that the user has made a mistake.
        RuntimeError: If it fails in another way. After the first line comes the end of what the process printed.
    """
    command = [sys.executable, "-m", PACKAGE, *run.arguments()]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if verbose:
        sys.stderr.write(done.stdout)
    record, printed = read_record(run.folder), done.stdout.splitlines()[-100:]
    if done.returncode == 0 and record is not None:
        return record
    if is_locked(run.folder):
        raise Locked(run.folder)
    last = f"it ended with code {done.returncode} and left no record"
    if done.returncode and printed:
        last = printed[-1].strip().removeprefix("error: ")
    raise UserError(last) if done.returncode == 2 else RuntimeError("\n".join([last, *printed]))


def record_failure(run: Run, error: Exception, cfg: Config | None = None) -> str:
    """Writes `error.json` of a run, if its folder holds no record, and returns the message in one line."""
    message = first_line(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
    try:
        if read_record(run.folder) is None:
            failure = {
                "message": message,
                "traceback": "".join(traceback.format_exception(error)),
                "configuration": run_config(cfg or run.configuration()),
                "command": run.command(),
            }
            write_json(run.folder / ERROR, failure)
    except UserError as other:  # the disk may be full
        logger.warning("%s", other)
    return message


def has_failed(run: Run, cfg: Config) -> bool:
    """Whether the folder of a run, which is named by its source and seed, says that it has failed with its present
    configuration. The data themselves are not compared: they may be what is missing.
    """
    try:
        said = read_json(run.folder / ERROR)
    except UserError:  # none, or a damaged one, which says nothing
        return False
    return isinstance(said, dict) and hash_json(said.get("configuration")) == hash_json(run_config(cfg))


def is_done(run: Run, cfg: Config) -> bool:
    """Whether the folder of a run holds its record. UserError if it holds that of another run, or the bank or the data
    set cannot be read.
    """
    if read_record(run.folder) is None:
        return False
    with at_level(logging.ERROR):  # what the protocol has to say of a selection is said when it is run
        task = open_task(cfg, run.bank, run.seed, available_device(cfg.run.use_cuda))
        return RunFolder(task).finished() is not None


@contextmanager
def at_level(level: int) -> Iterator[None]:
    """In the block, the package logs what is at least as grave; what the block itself sets is undone."""
    log = logging.getLogger(PACKAGE)
    before = log.level
    log.setLevel(level)
    try:
        yield
    finally:
        log.setLevel(before)


def run_here(runs: Sequence[Run], verbose: bool) -> Generator[Result]:
    """Do the runs in this process, one after the other."""
    for run in runs:
        yield attempt(run, verbose)


def run_in_workers(runs: Sequence[Run], workers: int, verbose: bool) -> Generator[Result]:
    """Does the runs in so many worker processes, each of which keeps to one data set as long as it has runs.

    Each worker is a pool of one process: one that dies takes its run along, which counts as failed, and no other.
    """
    waiting, workers = list(runs), min(workers, len(runs))
    said = os.environ.get(THREADS, "")
    threads = max(1, (int(said) if said.isdecimal() else cores()) // workers)  # those of one process, divided
    logger.info("%d workers with %s=%d each", workers, THREADS, threads)
    others = multiprocessing.active_children()
    idle = [new_worker() for _ in range(workers)]
    loaded: dict[ProcessPoolExecutor, tuple[str, str]] = {}  # what a worker has opened last
    at_work: dict[Future[Result], tuple[Run, ProcessPoolExecutor]] = {}
    try:
        while waiting or at_work:
            while waiting and idle:
                worker = idle.pop()
                run = next_run(waiting, loaded.get(worker), [run.loads for run, _ in at_work.values()])
                waiting.remove(run)
                with of_workers(threads):
                    at_work[worker.submit(attempt, run, verbose)] = run, worker
            for future in wait(at_work, return_when=FIRST_COMPLETED).done:
                run, worker = at_work.pop(future)
                try:
                    result = future.result()
                except BrokenExecutor:
                    result = Result(run, FAILED, record_failure(run, RuntimeError(DIED)))
                    worker = new_worker()
                loaded[worker] = run.loads
                idle.append(worker)
                yield result
    finally:
        with deferred_interrupts():
            kill_workers(set(multiprocessing.active_children()) - set(others), [run for run, _ in at_work.values()])


def kill_workers(processes: Iterable[BaseProcess], runs: Sequence[Run]) -> None:
    """Kill worker processes, and remove the temporary files that they leave where their runs write."""
    folders = {Path(folder) for run in runs for folder in (run.folder, dict(run.keys).get(FEATURES_DIR, run.folder))}
    for process in processes:
        session = process.pid or 0
        with suppress(OSError):  # it has not come to `os.setsid` yet
            os.killpg(session, signal.SIGKILL)
        process.kill()
        process.join()
        for folder in folders:
            remove_temporaries(folder, session)


def next_run(waiting: Sequence[Run], loaded: tuple[str, str] | None, held: Sequence[tuple[str, str]]) -> Run:
    """The next run for a worker: of what it has `loaded` or, if nothing of that is left, of what fewest others hold. Of
    these it is one with the most shots: a long run that is begun last leaves the other workers idle.
    """
    others = Counter(held)
    return min(waiting, key=lambda r: (r.loads != loaded, others[r.loads], -r.shots if r.shots > 0 else -math.inf))


def new_worker() -> ProcessPoolExecutor:
    """A worker process, which starts with its first run."""
    context = multiprocessing.get_context("spawn")  # a fork would share the threads of torch
    return ProcessPoolExecutor(max_workers=1, mp_context=context, initializer=begin_worker)


def begin_worker() -> None:
    """Prepares a worker process, which ends with the process that has begun it, however that ends."""
    os.setsid()  # its processes, those of runs with `separate`, can be killed together
    threading.Thread(target=_end_with_parent, daemon=True).start()
    show_messages()


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os.killpg(0, signal.SIGKILL)


@contextmanager
def of_workers(threads: int) -> Iterator[None]:
    """Processes that are started in the block have so many threads, and hear no Ctrl-C and no signal of `ENDINGS`."""
    said = os.environ.get(THREADS)
    os.environ[THREADS] = str(threads)  # torch reads it when it is imported
    heard = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, *ENDINGS))
    try:
        yield
    finally:
        os.environ.pop(THREADS)
        os.environ.update({} if said is None else {THREADS: said})
        signal.pthread_sigmask(signal.SIG_SETMASK, heard)
