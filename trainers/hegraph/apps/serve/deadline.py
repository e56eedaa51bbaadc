"""Deadline for the end of a process."""

from __future__ import annotations

import os
import signal
import threading

FORCED = 130  # exit code on Windows if the work did not end within the deadline; elsewhere SIGALRM ends the process


def end_within(seconds: float) -> None:
    """End this process after some seconds, whatever it does then."""
    if hasattr(signal, "setitimer"):  # the system ends the process, also while the interpreter ends
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        return
    timer = threading.Timer(seconds, os._exit, [FORCED])
    timer.daemon = True
    timer.start()
