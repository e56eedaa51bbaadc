"""Progress of long work on images: a bar in a terminal, and a log line every 30 s elsewhere."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from types import TracebackType
from typing import Any

from tqdm import tqdm

logger = logging.getLogger(__name__)

LINE_SECONDS = 30
DRAW_SECONDS = 0.02  # between two states of the bar, so that it moves in encodings of a second as well


class Progress:
    """Context of work on images. The bar has the number of images, their rate and the remaining time.

    Warnings are printed above the bar (log messages are, too: see `show_messages`).

    Args:
        total: Number of images; None if it is unknown.
        description: Work in progress, such as "encoding train images".
        initial: Number of images that were finished before.
        is_shown: Whether to show anything. False if standard output shows the progress in the same terminal.
    """

    def __init__(self, total: int | None, description: str, initial: int = 0, is_shown: bool = True) -> None:
        self.total = total
        self.description = description
        self.initial = initial
        self.is_shown = is_shown

    def __enter__(self) -> Progress:
        self._start = self._last_line = time.monotonic()
        self._bar = tqdm(
            desc=self.description,
            total=self.total,
            initial=self.initial,
            unit="img",
            disable=None if self.is_shown else True,  # None: unless stderr is a file
            miniters=0,
            mininterval=DRAW_SECONDS,
        )
        self._show_warning = warnings.showwarning
        if not self._bar.disable:
            warnings.showwarning = self._warn
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._bar.disable:
            warnings.showwarning = self._show_warning
        self._bar.close()

    def show(self, finished: int) -> None:
        """Show the number of finished images, with those finished before."""
        if not self._bar.disable:
            self._bar.update(finished - self._bar.n)
            return
        now = time.monotonic()
        if not self.is_shown or now - self._last_line < LINE_SECONDS:
            return
        self._last_line = now
        rate = (finished - self.initial) / (now - self._start)
        count = str(finished)
        rest = ""
        if self.total is not None:
            count = f"{finished} of {self.total}"
            rest = f", about {(self.total - finished) / rate:.0f} s left" if rate else ""
        logger.info("%s: %s, %.3g images a second%s", self.description, count, rate, rest)

    def _warn(self, *arguments: Any, **options: Any) -> None:
        with tqdm.external_write_mode(sys.stderr):
            self._show_warning(*arguments, **options)
