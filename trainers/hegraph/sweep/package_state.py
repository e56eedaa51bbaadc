"""Whether two machines have the same package: its version, and a hash of its sources."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from ..utils.errors import PACKAGE

State = dict[str, str]  # "version" and "sources", or "error" where there is no such package


def reader_of_state(package: str) -> Callable[[], State]:
    """A function that reads the state of a package where it is called.

    It is one inside another, so that Ray sends its code along: a machine without the package can call it, too.
    """

    def read() -> State:
        import hashlib
        import importlib
        from pathlib import Path

        try:
            module = importlib.import_module(package)
            folder = Path(str(module.__file__)).parent
            digest = hashlib.sha256()
            for file in sorted(folder.rglob("*.py"), key=lambda file: file.relative_to(folder).as_posix()):
                digest.update(f"{file.relative_to(folder).as_posix()}\0".encode())
                digest.update(hashlib.sha256(file.read_bytes()).digest())
            return {"version": str(module.__version__), "sources": digest.hexdigest()}
        except (ImportError, AttributeError, OSError) as error:
            return {"error": f"{type(error).__name__}: {error}"}

    return read


@cache
def state_here() -> State:
    """The state of this package in this process; it is read once."""
    return reader_of_state(PACKAGE)()


def in_words(state: State) -> str:
    """A state for a message, such as "version 1.2.0 (sources 1f2e3d4c)"."""
    if "error" in state:
        return f"no package {PACKAGE} ({state['error']})"
    return f"version {state['version']} of {PACKAGE} (sources {state['sources'][:8]})"
