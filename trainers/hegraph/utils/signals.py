"""Ctrl-C, and the signals that a command takes for it, so that it ends tidily however it is ended."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

# What `timeout`, scancel and `docker stop` send, and a terminal that closes; Windows has no SIGHUP
ENDINGS = tuple(signal.Signals[name] for name in ("SIGTERM", "SIGHUP") if name in signal.Signals.__members__)
TWICE = 0.5  # seconds: `timeout` sends its signal to the process and to its group
AGAIN = 0.05  # seconds until an interrupt that got lost comes again
_noted: list[int] = []  # of the last block of `noted_interrupts`


def leave_on_interrupt() -> None:
    """From now on Ctrl-C ends this process at once and without a traceback, until `noted_interrupts` takes over.

    For the time in which a command imports what it needs, when there is nothing to tidy up yet.
    """
    if _may_set_signals() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    with suppress(OSError):
        os.write(2, b"\ninterrupted\n")
    os._exit(128 + number)


@contextmanager
def noted_interrupts() -> Iterator[list[int]]:
    """Gives a list with an entry for every Ctrl-C and signal of `ENDINGS` in the block. They raise KeyboardInterrupt.

    A signal that is ignored, as SIGHUP is with nohup, or that somebody else has set stays as it is. A further signal of
    `ENDINGS` ends the process at once, without tidying up, unless it comes within the time of `TWICE`. Python drops an
    exception in a callback of a library; a KeyboardInterrupt that is dropped so is raised again.
    """
    global _noted
    noted = _noted = []
    usual = {signal.SIGINT: (signal.default_int_handler, _leave)} | dict.fromkeys(ENDINGS, (signal.SIG_DFL,))
    before: dict[signal.Signals, Any] = {}
    first = again = None
    hook = sys.unraisablehook

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if number in ENDINGS:
            if first is not None and time.monotonic() - first < TWICE:
                return
            if first is not None:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            first = time.monotonic()
        noted.append(number)
        raise KeyboardInterrupt

    def dropped(unraisable: Any) -> None:
        nonlocal first, again
        if not (noted and issubclass(unraisable.exc_type, KeyboardInterrupt)):
            hook(unraisable)
            return
        first = None
        again = threading.Timer(AGAIN, os.kill, (os.getpid(), noted[-1]))
        again.daemon = True
        again.start()

    if _may_set_signals():
        before = {number: now for number, those in usual.items() if (now := signal.getsignal(number)) in those}
        for number in before:
            signal.signal(number, note)
        sys.unraisablehook = dropped
    try:
        yield noted
    finally:
        _noted = []
        sys.unraisablehook = hook
        if again is not None:
            again.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


def was_interrupted() -> bool:
    """Whether a signal has come in the block of `noted_interrupts`: then any exception may be what became of it."""
    return bool(_noted)


def _may_set_signals() -> bool:
    """Whether this is the main thread, which alone may say what a signal does."""
    return threading.current_thread() is threading.main_thread()
