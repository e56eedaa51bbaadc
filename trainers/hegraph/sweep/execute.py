"""One run of a grid in this process, so that it leaves what it would leave alone, and nothing in the process."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ..experiments.failure import write_failure
from ..experiments.lock import Locked, check_lock
from ..experiments.opened import Opened
from ..experiments.provenance import reset_peak_memory
from ..experiments.run import run as run_one
from ..results.records import read_record
from ..training.memory import hand_back_freed_memory
from ..utils.errors import PACKAGE, UserError, first_line
from .grid import Run

logger = logging.getLogger(__name__)

DONE, FAILED, LOCKED = "done", "failed", "locked"  # what can become of a run


@dataclass(frozen=True)
class Result:
    """What has become of a run.

    Attributes:
        run: The run.
        status: `DONE`, `FAILED`, or `LOCKED` where another process is at work in its folder.
        message: The accuracy, or what went wrong.
        seconds: How long it took.
    """

    run: Run
    status: str
    message: str
    seconds: float


def attempt(run: Run, opened: Opened, verbose: bool = False) -> Result:
    """Does a run. What it raises is written into its folder, and does not end the sweep.

    Args:
        run: The run.
        opened: What earlier runs have opened.
        verbose: Whether the run's own messages are shown, and not its warnings alone.
    """
    started = time.monotonic()

    def result(status: str, message: str) -> Result:
        return Result(run, status, message, time.monotonic() - started)

    try:
        if run.separate:
            record = run_separately(run, verbose)
        else:
            with isolated(verbose):
                record = run_one(run.configuration(), run.bank, opened=opened)
    except Locked as error:
        return result(LOCKED, str(error))
    except Exception as error:
        return result(FAILED, record_failure(run, error))
    accuracy = record["accuracy"]
    return result(DONE, "no test images" if accuracy is None else f"{accuracy:.2f}")


def run_separately(run: Run, verbose: bool = False) -> dict:
    """Has a process of its own do a run, by the run's command line; inside CoOp that is Dassl's, see `hegraph --help`.

    Args:
        run: The run.
        verbose: Whether what the process prints is shown.

    Returns:
        The record.

    Raises:
        Locked: If another process is at work in its folder.
        UserError: If the process says that the user has made a mistake.
        RuntimeError: If it fails in another way. After the first line comes the end of what the process printed.
    """
    printed: deque[str] = deque(maxlen=100)
    command = [sys.executable, "-m", PACKAGE, *run.arguments()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                printed.append(line)
                if verbose:
                    sys.stderr.write(line)
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            raise
    last = (
        printed[-1].strip().removeprefix("error: ") if printed else f"the process ended with code {process.returncode}"
    )
    if process.returncode:
        check_lock(run.folder)
        raise UserError(last) if process.returncode == 2 else RuntimeError(f"{last}\n{''.join(printed)}")
    record = read_record(run.folder)
    if record is None:
        raise RuntimeError(f"{run.folder} has no record after its run\n{''.join(printed)}")
    return record


def record_failure(run: Run, error: Exception) -> str:
    """Writes `error.json` of a run, and returns the message in one line."""
    message = first_line(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
    try:
        write_failure(run.folder, error, run.configuration(), run.source, run.command())
    except UserError as other:  # the disk may be full
        logger.warning("%s", other)
    return message


@contextmanager
def isolated(verbose: bool = False) -> Iterator[None]:
    """Undoes, at the end of the block, what a run changes in its process.

    These are log handlers and levels, filters of warnings and the memory of which were shown, torch's settings, the
    environment, the working folder, how glibc hands out memory, and the peak of memory. The generators are not among
    them: a run seeds them when it begins.
    """
    named = [logging.getLogger(), logging.getLogger(PACKAGE)]
    handlers, levels = [list(log.handlers) for log in named], [log.level for log in named]
    threads, dtype, gradients = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    deterministic = torch.are_deterministic_algorithms_enabled()
    environment, folder = dict(os.environ), os.getcwd()
    if not verbose:
        named[1].setLevel(logging.WARNING)
    reset_peak_memory()
    try:
        with warnings.catch_warnings():  # also forgets which warnings have been shown
            yield
    finally:
        for log, its, level in zip(named, handlers, levels):
            log.handlers[:] = its
            log.setLevel(level)
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(gradients)
        if torch.are_deterministic_algorithms_enabled() != deterministic:  # the call imports torch's compiler
            torch.use_deterministic_algorithms(deterministic)
        if os.environ != environment:
            os.environ.clear()
            os.environ.update(environment)
        os.chdir(folder)
        hand_back_freed_memory()
