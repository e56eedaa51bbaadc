"""Dassl imports the packages wilds and pandas, for data sets that nobody here uses, even where they are absent."""

from __future__ import annotations

import importlib.util
import logging
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def absent_packages_excused(*names: str) -> Iterator[None]:
    """Lets an import of packages that are not installed pass, inside the block only.

    Whoever asks for them afterwards is told the truth. Dassl also mutes all logging up to warnings, for the whole
    process; that is undone at the end.
    """
    excused = [name for name in names if name not in sys.modules and importlib.util.find_spec(name) is None]
    sys.modules.update({name: _Absent(name) for name in excused})
    muted = logging.root.manager.disable
    try:
        yield
    finally:
        for name in excused:
            del sys.modules[name]
        logging.disable(muted)


class _Absent(types.ModuleType):
    """A module whose every function says, when it is called, that its package is not installed."""

    def __getattr__(self, attribute: str) -> object:
        if attribute.startswith("__"):
            raise AttributeError(attribute)

        def absent(*args: object, **kwargs: object) -> None:
            raise ModuleNotFoundError(f"No module named {self.__name__!r}, which this data set of Dassl's needs")

        return absent
