"""Lock of a file between processes.

The lock belongs to the operating system, which releases it when the process ends for any reason. The file is removed
when the lock is released. A process that opened the removed file meanwhile notices it, and tries again.
"""

import errno
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


POLL = 0.05  # seconds between two attempts
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)  # of file systems that have no locks


class FileLock:
    """Exclusive lock, which one object of one process holds at a time.

    Args:
        path: File of the lock. It has no content, and is created if it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    @property
    def is_held(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor is not None

    def acquire(self, wait: float = 0.0) -> bool:
        """Acquire the lock; returns False if another holder did not release it within `wait` seconds.

        Raises:
            OSError: If the file cannot be created, or with a code of `NO_LOCKS` if the file system has no locks.
        """
        end = time.monotonic() + wait
        while not self._acquired():
            if time.monotonic() >= end:
                return False
            time.sleep(POLL)
        return True

    def _acquired(self) -> bool:
        """Try once."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor)
            # Another holder may have removed the file since it was opened
            if os.path.samestat(os.fstat(descriptor), os.stat(self.path)):
                self._descriptor = descriptor
        except (BlockingIOError, PermissionError, FileNotFoundError):
            pass
        finally:
            if self._descriptor is None:
                os.close(descriptor)
        return self.is_held

    def release(self) -> None:
        """Remove the file and release the lock, if this object holds it."""
        if self._descriptor is None:
            return
        if sys.platform != "win32":  # before the release, after which the file may be another holder's
            self._remove()
        os.close(self._descriptor)
        self._descriptor = None
        if sys.platform == "win32":  # where an open file cannot be removed
            self._remove()

    def _remove(self) -> None:
        with suppress(OSError):
            os.unlink(self.path)
