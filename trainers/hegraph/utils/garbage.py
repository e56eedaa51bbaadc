"""Python's search for cyclic garbage, which is a quarter of the processor time of a short command.

Libraries of models create 400,000 objects that live to the end. Python searches all of them several times while they
are imported, and again at the exit.
"""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_garbage_search() -> Iterator[None]:
    """Context that imports large libraries without searching for garbage."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def skip_search_at_exit() -> None:
    """Let this process end without searching its objects, whose memory the system takes back at once.

    Libraries made with nanobind, such as the triton of torch's builds for GPUs, print all objects that the search does
    not free as leaks. Where one is imported, the search takes place.
    """
    atexit.register(freeze_objects)


def freeze_objects() -> None:
    """Exclude all objects from the search, unless a library would print them."""
    if not is_nanobind_loaded():
        gc.freeze()


def is_nanobind_loaded() -> bool:
    """Whether a library made with nanobind is imported, which has metaclasses of its own."""
    return any(str(metaclass.__module__) == "nanobind" for metaclass in type.__subclasses__(type))
