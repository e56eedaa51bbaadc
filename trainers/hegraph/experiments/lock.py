"""One process at a time in the output folder of a run.

The lock is the operating system's, so that a process that dies lets go of it, however it dies. Beside it stands a note
of who holds it, for the message to others. Both are gone when the run has ended.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ..utils.errors import UserError
from ..utils.files import write_json
from ..utils.reading import read_json

logger = logging.getLogger(__name__)

LOCK, HOLDER = ".lock", ".lock-holder.json"
PATIENCE = 0.2  # seconds that one who comes waits, since another may be about to leave
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)  # the file system knows no locks


class Locked(UserError):
    """Another process is at work in the folder."""


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder during the block. The folder is made; where the block leaves it empty, it is removed.

    Raises:
        Locked: If another process holds it; the message names that process and its host.
        UserError: If the folder cannot be written.
    """
    made = not folder.exists()
    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=PATIENCE, poll_interval=PATIENCE / 4)
    except Timeout as error:
        raise _locked(folder) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            reason = error.strerror or str(error)
            raise UserError(f"cannot write {folder}: {reason}; choose a folder that can be written") from error
        logger.warning("%s cannot be locked on this file system: start no other run in it meanwhile", folder)
    try:
        if lock.is_locked:
            write_json(folder / HOLDER, {"pid": os.getpid(), "host": socket.gethostname()})
        yield
    finally:
        try:
            _leave(folder, lock, made)
        except KeyboardInterrupt:
            _leave(folder, lock, made)
            raise


def _leave(folder: Path, lock: FileLock, made: bool) -> None:
    """Removes what `lock_folder` has written, and lets go of the lock; may be done again where it was interrupted."""
    if lock.is_locked:
        for name in (HOLDER, LOCK):  # while the lock is held, so that nobody else's is removed
            with suppress(OSError):
                (folder / name).unlink(missing_ok=True)
        lock.release()
    if made:
        with suppress(OSError):
            folder.rmdir()


def is_locked(folder: Path, patience: float = 0.0) -> bool:
    """Whether a process is at work in a folder. What one that was killed has left half done there is removed.

    Args:
        folder: The folder.
        patience: How many seconds a process has to end that was just killed.
    """
    if not (folder / LOCK).exists():
        return False
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        return True
    except OSError:
        return False
    for half_done in folder.glob(".*.tmp"):
        if half_done.is_dir():
            shutil.rmtree(half_done, ignore_errors=True)
        else:
            half_done.unlink(missing_ok=True)
    _leave(folder, lock, made=True)
    return False


def check_lock(folder: Path) -> None:
    """Raises `Locked`, as `lock_folder`, if a process is at work in a folder. Nothing is written or removed."""
    if is_locked(folder):
        raise _locked(folder)


def _locked(folder: Path) -> Locked:
    return Locked(
        f"{folder} is in use by {holder(folder)}; wait until it has finished, or choose another output folder"
    )


def holder(folder: Path) -> str:
    """Who holds the lock of a folder, such as "process 4711 on node3"; "another process" where it is not said."""
    try:
        said = read_json(folder / HOLDER)
        return f"process {said['pid']} on {said['host']}"
    except (UserError, KeyError, TypeError):  # it has only just come, or has left
        return "another process"
