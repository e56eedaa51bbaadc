"""One run of a grid in this process, so that it leaves what it would leave alone, and nothing in the process."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..config import Config
from ..experiments.folder import Locked, check_lock, write_failure
from ..experiments.record import reset_peak_memory
from ..experiments.run import run as run_one
from ..experiments.tasks import Opened
from ..results.records import read_record
from ..utils.errors import PACKAGE, UserError, first_line
from ..utils.signals import was_interrupted
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
    seconds: float = 0.0


def attempt(run: Run, opened: Opened, verbose: bool = False, cfg: Config | None = None) -> Result:
    """Does a run. What it raises is written into its folder, and does not end the sweep.

    Args:
        run: The run.
        opened: What earlier runs have opened.
        verbose: Whether the run's own messages are shown, and not its warnings alone.
        cfg: Its checked configuration; None reads it.
    """
    started = time.monotonic()
    try:
        if run.separate:
            record = run_separately(run, verbose)
        else:
            with isolated(verbose):
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
def isolated(verbose: bool = False) -> Iterator[None]:
    """Keeps a run in a block from showing in the next: its messages, which warnings have been shown, its memory.

    The random generators are not among them: a run seeds them when it begins.
    """
    log = logging.getLogger(PACKAGE)
    level = log.level
    if not verbose:
        log.setLevel(logging.WARNING)
    reset_peak_memory()
    try:
        with warnings.catch_warnings():  # also forgets which warnings have been shown
            yield
    finally:
        log.setLevel(level)
