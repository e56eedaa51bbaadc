"""Lets Dassl be imported where packages are missing that it needs for its own data sets only.

Dassl imports `wilds` and `pandas` at its start, for data sets that this package never loads.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec


@contextmanager
def absent_packages_excused(*names: str) -> Iterator[None]:
    """In the block, an import of these packages succeeds also where one is not installed; after it, it fails again.

    What is imported then is a stand-in whose functions raise `ModuleNotFoundError` when they are called. Importing
    Dassl also mutes all logging up to warnings for the whole process; the block restores the level it found.
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


def require_packages(command: str) -> None:
    """Ends the program with exit code 2 after one line, which names the command that installs it, if a package that we
    need is missing, as in an environment that was made for CoOp alone.
    """
    names = ("open_clip", "safetensors", "pydantic", "filelock", "sklearn", "huggingface_hub", "requests", "yacs")
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        sys.stderr.write(f"error: HeGraphAdapter needs {', '.join(missing)}, not installed here; {command}\n")
        raise SystemExit(2)


class _Absent(types.ModuleType):
    """A stand-in for a missing package: each of its functions raises `ModuleNotFoundError` when it is called."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)  # without one, `find_spec` fails; torch 2.13 asks it for pandas

    def __getattr__(self, attribute: str) -> object:
        if attribute.startswith("__"):
            raise AttributeError(attribute)

        def absent(*args: object, **kwargs: object) -> None:
            raise ModuleNotFoundError(f"No module named {self.__name__!r}, which this data set of Dassl's needs")

        return absent
