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


class Progress:
    """Context of work on images. The bar has the number of images, their rate and the remaining time.

    Warnings are printed above the bar (log messages are, too: see `show_messages`).

    Args:
        total: Number of images.
        description: Work in progress, such as "encoding train images".
        initial: Number of images that were finished before.
    """

    def __init__(self, total: int, description: str, initial: int = 0) -> None:
        self.total = total
        self.description = description
        self.initial = initial

    def __enter__(self) -> Progress:
        self._start = self._last_line = time.monotonic()
        self._bar = tqdm(
            desc=self.description, total=self.total, initial=self.initial, unit="img", disable=None, miniters=0
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
        if now - self._last_line < LINE_SECONDS:
            return
        self._last_line = now
        rate = (finished - self.initial) / (now - self._start)
        rest = f", about {(self.total - finished) / rate:.0f} s left" if rate else ""
        line = "%s: %d of %d, %.3g images a second%s"
        logger.info(line, self.description, finished, self.total, rate, rest)

    def _warn(self, *arguments: Any, **options: Any) -> None:
        with tqdm.external_write_mode(sys.stderr):
            self._show_warning(*arguments, **options)
