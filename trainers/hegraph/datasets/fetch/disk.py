"""The folder of a data set: whether there is room, what is missing in it, and that one process alone writes to it."""

from __future__ import annotations

import contextlib
import gzip
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from ...utils.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # the module is absent there

logger = logging.getLogger(__name__)


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it, unless it is there.

    Raises:
        UserError: If it cannot be made.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises UserError, which names `path`, for an `OSError` in the block."""
    try:
        yield
    except gzip.BadGzipFile:  # an OSError too, but it comes from reading a damaged archive
        raise
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot write {path}: {error.strerror or error}; free or choose a disk that can be written")


def need_room(folder: Path, size: int) -> None:
    """Raises UserError if the disk of a folder has less than `size` bytes free."""
    free = shutil.disk_usage(folder).free
    if size > free:
        needed, there = (tqdm.format_sizeof(n, "B", 1024) for n in (size, free))
        raise UserError(f"{folder} has no room: {needed} more are needed and {there} are free; free some and run again")


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keeps a second download out of a folder during the block, as two writers would mix their bytes in one file.

    Raises:
        UserError: If another process is in such a block.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is downloading into {folder}; wait for it, or end it") from error
        except OSError as error:  # some network file systems cannot lock a folder
            logger.debug("%s cannot be locked: %s", folder, error)
        yield
    finally:
        os.close(handle)


def missing_of(targets: Sequence[str], folder: Path) -> list[str]:
    """Those of `targets` that are not in `folder`. An empty folder counts as missing, since it has nothing to lose.

    Raises:
        UserError: If one is a link to nothing, which we neither use nor replace.
    """
    missing = []
    for target in targets:
        path = folder / target
        if path.is_symlink() and not path.exists():
            raise UserError(f"{path} is a link to nothing; mend it, or delete it and run the same command again")
        if not path.exists() or is_empty_folder(path):
            missing.append(target)
    return missing


def is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())
