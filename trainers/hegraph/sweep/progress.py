"""What a sweep says while it runs, and at its end."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

from .grid import Run

logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """Counts the runs of a sweep.

    Attributes:
        total: How many are to be done.
        done: How many are.
        failures: Those that have failed, each with its message.
        started: When the sweep began, in seconds of the monotonic clock.
    """

    total: int
    done: int = 0
    failures: list[tuple[Run, str]] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def finished(self, run: Run, message: str) -> None:
        """Counts a run that has been done, and says so."""
        self.done += 1
        self._say(f"{run.title}: {message}")

    def failed(self, run: Run, message: str) -> None:
        """Counts a run that has failed, and says so."""
        self.failures.append((run, message))
        self._say(f"{run.title}: failed: {message}")

    @property
    def left(self) -> int:
        """How many runs are still to be done."""
        return self.total - self.done - len(self.failures)

    def _say(self, what: str) -> None:
        ended = self.total - self.left
        rate = ended / max(time.monotonic() - self.started, 1e-9)
        failed = f", {len(self.failures)} failed" if self.failures else ""
        logger.info(
            "[%d/%d] %s (%d left%s, %s, %s to go)",
            ended, self.total, what, self.left, failed, rate_in_words(rate), in_words(self.left / rate),
        )  # fmt: skip


def rate_in_words(per_second: float) -> str:
    """Runs per second, or per minute or hour where they are few."""
    for unit, seconds in (("s", 1), ("min", 60)):
        if per_second * seconds >= 1:
            return f"{per_second * seconds:.1f} runs/{unit}"
    return f"{per_second * 3600:.1f} runs/h"


def in_words(seconds: float) -> str:
    """A time such as "40 s", "12 min" or "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
