"""Lock of an output folder, so that one process at a time works in it.

The lock belongs to the operating system, which releases it when the process ends for any reason. A second file names
the process that holds it, for the error message of other processes.
"""

import errno
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ..utils.errors import UserError
from ..utils.files import cannot_write, write_json
from ..utils.reading import read_json
from ..utils.signals import deferred_interrupts

logger = logging.getLogger(__name__)

LOCK, HOLDER = ".lock", ".lock-holder.json"
WAIT = 0.2  # seconds to wait for a process that may be about to release the lock
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)  # of file systems that have no locks


class Locked(UserError):
    """Another process works in a folder."""

    def __init__(self, folder: Path) -> None:
        try:
            holder = read_json(folder / HOLDER)
            process = f"process {holder['pid']} on {holder['host']}"
        except (UserError, KeyError, TypeError):  # not written yet, or removed already
            process = "another process"
        super().__init__(f"{folder} is in use by {process}; wait until it has finished, or choose another folder")


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder during a block.

    A folder that does not exist is created, and removed again if the block leaves it empty.

    Raises:
        Locked: If another process holds the lock.
        UserError: If the folder cannot be written.
    """
    created = not folder.exists()
    lock = FileLock(folder / LOCK, thread_local=False)  # a server may end in another thread
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=WAIT, poll_interval=WAIT / 4)
    except Timeout as error:
        raise Locked(folder) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise UserError(f"{cannot_write(folder, error)}; choose a folder that can be written") from error
        logger.warning("%s cannot be locked on this file system: start no other run in it meanwhile", folder)
    try:
        if lock.is_locked:
            write_json(folder / HOLDER, {"pid": os.getpid(), "host": socket.gethostname()})
        yield
    finally:
        with deferred_interrupts():  # a signal would leave the files in a finished folder
            for name in (HOLDER, LOCK) if lock.is_locked else ():  # before the release, which lets others create theirs
                with suppress(OSError):
                    (folder / name).unlink(missing_ok=True)
            lock.release()
            if created:
                with suppress(OSError):
                    folder.rmdir()


def is_locked(folder: Path) -> bool:
    """Return whether a process works in a folder."""
    if not (folder / LOCK).exists():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except OSError as error:
        return isinstance(error, Timeout)  # else the file system has no locks, or the folder is read-only
