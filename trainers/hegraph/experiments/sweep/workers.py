"""Run a sweep on this machine: in this process, in worker processes, or each run in a new process.

An interrupted sweep kills its processes, because a library in them could swallow the interrupt. The same command
continues their runs from the checkpoints.
"""

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
from typing import Any

from ...config import Config
from ...method.training.memory import note_work
from ...results.records import main_score, read_record
from ...utils.devices import available_device
from ...utils.errors import UserError, first_line
from ...utils.files import hash_json, remove_temporaries, write_json
from ...utils.locks import Locked, is_locked
from ...utils.logs import PACKAGE, show_messages
from ...utils.reading import read_json
from ...utils.signals import ENDINGS, deferred_interrupts, was_interrupted
from ...utils.threads import cores
from ..opening import open_task
from ..run import run as run_one
from ..run_folder import ERROR, RunFolder, run_config
from .grid import FEATURES_DIR, Run

logger = logging.getLogger(__name__)

DONE, FAILED, LOCKED = "done", "failed", "locked"  # status of a run
THREADS = "OMP_NUM_THREADS"  # number of torch's threads
DIED = "its worker process was killed, perhaps for lack of memory; try fewer --workers"


@dataclass(frozen=True)
class Result:
    """Result of a run.

    Attributes:
        status: `DONE`, `FAILED`, or `LOCKED` by another process.
        message: Accuracy, or reason of the failure.
        seconds: Duration of a run that did not fail.
    """

    run: Run
    status: str
    message: str
    seconds: float = 0.0


def attempt(run: Run, verbose: bool, cfg: Config | None = None) -> Result:
    """Do a run; write its exception to its folder instead of raising it.

    Args:
        verbose: Whether to show all messages of the run instead of its warnings only.
        cfg: Configuration, where its files are missing.
    """
    started = time.monotonic()
    try:
        if run.separate:
            record = run_separately(run, verbose)
        else:
            note_work()  # this process works on other runs, too
            with at_level(logging.INFO if verbose else logging.WARNING):
                record = run_one(cfg or run.configuration(), run.bank)
        score = main_score(record)
        status = DONE
        message = "no test images" if score is None else f"{score:.2f}"
    except Locked as error:
        status = LOCKED
        message = str(error)
    except Exception as error:
        if was_interrupted():  # an import can convert it to another exception
            raise KeyboardInterrupt from error
        return record_failure(run, error, cfg)
    return Result(run, status, message, time.monotonic() - started)


def run_separately(run: Run, verbose: bool) -> dict:
    """Do a run in a new process, and return its record.

    Raises:
        Locked: If another process has locked the folder.
        UserError: If the process ends with exit code 2.
        RuntimeError: If it fails in another way, with the end of its output after the first line.
    """
    command = [sys.executable, "-m", PACKAGE, *run.arguments()]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if verbose:
        sys.stderr.write(done.stdout)
    record = read_record(run.folder)
    printed = done.stdout.splitlines()[-100:]
    if done.returncode == 0 and record is not None:
        return record
    if is_locked(run.folder):
        raise Locked(run.folder)
    last = f"exit code {done.returncode} without a record"
    if done.returncode and printed:
        last = printed[-1].strip().removeprefix("error: ")
    raise UserError(last) if done.returncode == 2 else RuntimeError("\n".join([last, *printed]))


def record_failure(run: Run, error: Exception, cfg: Config | None = None) -> Result:
    """Write `error.json` of a run, unless its folder has a record; return the result, with the message in one line."""
    message = first_line(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
    try:
        if read_record(run.folder) is None:
            failure: dict[str, Any] = {"message": message, "traceback": "".join(traceback.format_exception(error))}
            failure |= {"configuration": run_config(cfg or run.configuration()), "command": run.command()}
            write_json(run.folder / ERROR, failure)
    except UserError as other:  # the disk may be full
        logger.warning("%s", other)
    return Result(run, FAILED, message)


def has_failed(run: Run, cfg: Config) -> bool:
    """Whether a run failed before with the same configuration. The data are not compared, as they may be missing."""
    try:
        error = read_json(run.folder / ERROR)
    except UserError:  # missing or damaged
        return False
    return isinstance(error, dict) and hash_json(error.get("configuration")) == hash_json(run_config(cfg))


def is_done(run: Run, cfg: Config) -> bool:
    """Whether a run is finished: its folder has a record with the same configuration and data.

    Raises:
        UserError: If the folder has the record of another run, or the feature bank or the data set cannot be read.
    """
    if read_record(run.folder) is None:
        return False
    with at_level(logging.ERROR):  # the run itself shows the warnings of the few-shot protocol
        task = open_task(cfg, run.bank, run.seed, available_device(cfg.run.use_cuda))
        return RunFolder(task).finished() is not None


@contextmanager
def at_level(level: int) -> Iterator[None]:
    """Context in which the package logs messages of a level and above. The former level is restored."""
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
    """Do the runs in worker processes. A worker prefers runs of the data set that it has loaded.

    Each worker is a pool of one process, so that a worker that dies fails its own run only.
    """
    waiting = list(runs)
    workers = min(workers, len(runs))
    setting = os.environ.get(THREADS, "")
    available = int(setting) if setting.isdecimal() else cores()
    threads = max(1, available // workers)
    logger.info("%d workers with %s=%d each", workers, THREADS, threads)
    children = multiprocessing.active_children()
    idle = [new_worker() for _ in range(workers)]
    loaded: dict[ProcessPoolExecutor, tuple[str, str]] = {}  # data that a worker loaded last
    at_work: dict[Future[Result], tuple[Run, ProcessPoolExecutor]] = {}
    try:
        while waiting or at_work:
            while waiting and idle:
                worker = idle.pop()
                run = next_run(waiting, loaded.get(worker), [run.loads for run, _ in at_work.values()])
                waiting.remove(run)
                with worker_environment(threads):
                    at_work[worker.submit(attempt, run, verbose)] = run, worker
            for future in wait(at_work, return_when=FIRST_COMPLETED).done:
                run, worker = at_work.pop(future)
                try:
                    result = future.result()
                except BrokenExecutor:
                    result = record_failure(run, RuntimeError(DIED))
                    worker = new_worker()
                loaded[worker] = run.loads
                idle.append(worker)
                yield result
    finally:
        with deferred_interrupts():
            started = set(multiprocessing.active_children()) - set(children)
            kill_workers(started, [run for run, _ in at_work.values()])


def kill_workers(processes: Iterable[BaseProcess], runs: Sequence[Run]) -> None:
    """Kill worker processes, and remove their temporary files in the output folders of runs."""
    folders = {run.folder for run in runs}
    folders |= {Path(dict(run.keys).get(FEATURES_DIR, run.folder)) for run in runs}
    for process in processes:
        session = process.pid or 0
        with suppress(OSError):  # before its `os.setsid`
            os.killpg(session, signal.SIGKILL)
        process.kill()
        process.join()
        for folder in folders:
            remove_temporaries(folder, session)


def next_run(waiting: Sequence[Run], loaded: tuple[str, str] | None, in_use: Sequence[tuple[str, str]]) -> Run:
    """Choose the next run for a worker: of the data that it has `loaded`, or of data that few other workers use.

    Runs with many shots come first, because a long run at the end leaves the other workers idle.
    """
    users = Counter(in_use)

    def priority(run: Run) -> tuple[bool, int, float]:
        shots = run.shots if run.shots > 0 else math.inf
        return run.loads != loaded, users[run.loads], -shots

    return min(waiting, key=priority)


def new_worker() -> ProcessPoolExecutor:
    """Create a worker process, which starts with its first run."""
    context = multiprocessing.get_context("spawn")  # a fork would share the threads of torch
    return ProcessPoolExecutor(max_workers=1, mp_context=context, initializer=initialize_worker)


def initialize_worker() -> None:
    """Initialize a worker process, so that it ends with its parent process."""
    os.setsid()  # allows to kill the worker together with the processes of `separate` runs
    threading.Thread(target=_end_with_parent, daemon=True).start()
    show_messages()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.killpg(0, signal.SIGKILL)


@contextmanager
def worker_environment(threads: int) -> Iterator[None]:
    """Context whose new processes have a number of threads, and ignore Ctrl-C and the signals `ENDINGS`."""
    setting = os.environ.get(THREADS)
    os.environ[THREADS] = str(threads)  # torch reads it when it is imported
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, *ENDINGS))
    try:
        yield
    finally:
        os.environ.pop(THREADS)
        os.environ.update({} if setting is None else {THREADS: setting})
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
