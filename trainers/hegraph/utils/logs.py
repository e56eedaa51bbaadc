"""Log messages of the package and warnings of libraries, one line each on stderr."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from .text import one_line

PACKAGE = __name__.rpartition(".utils.")[0]  # "trainers.hegraph" in a checkout, "hegraph" once installed


class _OneLine(logging.Formatter):
    """Formats log messages by `one_line`, because names of files and classes may contain any character."""

    def format(self, record: logging.LogRecord) -> str:
        return one_line(super().format(record))


class _AboveBars(logging.StreamHandler):
    """Writes log messages above the progress bars of tqdm, if it has been imported."""

    def emit(self, record: logging.LogRecord) -> None:
        bars = getattr(sys.modules.get("tqdm"), "tqdm", None)
        with nullcontext() if bars is None else bars.external_write_mode(self.stream):
            super().emit(record)


def show_messages() -> None:
    """Log messages of this package and warnings of others to stderr, one per line, except Pillow's about images.

    Handlers of the calling program stay. A closed stderr is replaced, because progress bars and warnings write to it.
    """
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (open until the program ends)
    handler = _AboveBars(sys.stderr)
    handler.setFormatter(_OneLine())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    warnings.filterwarnings("ignore", module="PIL")
    logging.raiseExceptions = False  # no traceback for an unwritable stderr
    logging.getLogger(PACKAGE).setLevel(logging.INFO)


class _Unrepeated(logging.Filter):
    """Filter that each message passes once."""

    def __init__(self) -> None:
        super().__init__()
        self._passed: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        is_new = message not in self._passed
        self._passed.add(message)
        return is_new


@contextmanager
def without_repetitions() -> Iterator[None]:
    """Context in which a message is shown once, however often it is logged."""
    filters = [(handler, _Unrepeated()) for handler in logging.getLogger().handlers]
    for handler, unrepeated in filters:
        handler.addFilter(unrepeated)
    try:
        yield
    finally:
        for handler, unrepeated in filters:
            handler.removeFilter(unrepeated)
