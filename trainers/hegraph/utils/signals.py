"""Ctrl-C, and the signals that a command takes for it, so that it ends tidily however it is ended."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# What `timeout`, scancel and `docker stop` send, and a terminal that closes; Windows has no SIGHUP
ENDINGS = tuple(signal.Signals[name] for name in ("SIGTERM", "SIGHUP") if name in signal.Signals.__members__)


@contextmanager
def noted_interrupts() -> Iterator[list[int]]:
    """Gives a list with an entry for every Ctrl-C and signal of `ENDINGS` in the block. They raise KeyboardInterrupt.

    A signal that is ignored, as SIGHUP is with nohup, or that somebody else has set stays as it is. Of `ENDINGS` the
    first counts alone: `timeout` sends it twice, and the second must not disturb the tidying up.
    """
    noted: list[int] = []
    before: dict[signal.Signals, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        if number in ENDINGS:
            for each in set(before) & set(ENDINGS):
                signal.signal(each, unheard)
        noted.append(number)
        raise KeyboardInterrupt

    if _may_set_signals():
        usual = {signal.SIGINT: signal.default_int_handler} | dict.fromkeys(ENDINGS, signal.SIG_DFL)
        before = {number: handler for number, handler in usual.items() if signal.getsignal(number) == handler}
        for number in before:
            signal.signal(number, note)
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def kept_signals() -> Iterator[None]:
    """Undoes at its end what the block has changed of Ctrl-C and SIGTERM: Ray aborts the process on SIGTERM."""
    numbers = (signal.SIGINT, signal.SIGTERM) if _may_set_signals() else ()
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: not set by Python, which cannot set it again
                signal.signal(number, handler)


@contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Processes that are started in the block ignore Ctrl-C until they say otherwise."""
    if not _may_set_signals():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def unheard(number: int, frame: FrameType | None) -> None:
    """Does nothing about a signal. With SIG_IGN, Python shows a traceback for one that has just come."""


def _may_set_signals() -> bool:
    """Whether this is the main thread, which alone may say what a signal does."""
    return threading.current_thread() is threading.main_thread()
