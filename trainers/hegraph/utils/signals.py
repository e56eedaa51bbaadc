"""Ctrl-C and the signals that end a program: they are noted, so that work ends between two steps."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Sent by `timeout`, scancel and `docker stop`, and by a closing terminal; Windows has no SIGHUP
ENDINGS = tuple(signal.Signals[name] for name in ("SIGTERM", "SIGHUP") if name in signal.Signals.__members__)
INTERRUPTED = 130  # exit code of a program that was interrupted or terminated
_noted: list[int] = []  # signals received in the block of `noted_interrupts`
_deferring: list[bool] = []  # one entry per active block of `deferred_interrupts`


class Interrupted(KeyboardInterrupt):
    """KeyboardInterrupt in work that is saved in part; its text names the work that the next run need not repeat."""


@contextmanager
def noted_interrupts() -> Iterator[None]:
    """Context in which Ctrl-C and the signals `ENDINGS` raise KeyboardInterrupt, and `was_interrupted` notes them.

    Handlers of other programs stay, and so do ignored signals, such as SIGHUP with nohup.
    """

    def note(number: int, frame: FrameType | None) -> None:
        _noted.append(number)
        if not _deferring:
            raise KeyboardInterrupt

    usual = (signal.SIG_DFL, signal.default_int_handler)
    may_set = threading.current_thread() is threading.main_thread()
    numbers = [n for n in (signal.SIGINT, *ENDINGS) if may_set and signal.getsignal(n) in usual]
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield
    finally:
        _noted.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def deferred_interrupts() -> Iterator[None]:
    """Context in which signals are noted without an exception, so that a second Ctrl-C cannot stop a clean-up."""
    _deferring.append(True)
    try:
        yield
    finally:
        _deferring.pop()


def ignore_interrupts() -> None:
    """Ignore Ctrl-C from now on, in a program that ends because of one: Python would print a traceback at its exit."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def was_interrupted() -> bool:
    """Whether a signal was received, even if an import converted its KeyboardInterrupt to another exception."""
    return bool(_noted)


def is_interrupt(error: BaseException) -> bool:
    """Whether an exception comes from a signal: KeyboardInterrupt, or the one that replaced it."""
    return was_interrupted() or isinstance(error, KeyboardInterrupt)


def stop_if_interrupted() -> None:
    """Raise KeyboardInterrupt if a signal was received.

    Loops call this between steps and runs, because Python drops exceptions in callbacks, such as of weak references.
    """
    if was_interrupted():
        raise KeyboardInterrupt
