"""Locks of folders, so that one process at a time works in a folder or replaces it.

A second file names the process that holds a lock, for the error message of other processes.
"""

import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import UserError
from .file_lock import NO_LOCKS, POLL, FileLock
from .files import cannot_write, name_hash, real_path
from .reading import read_json
from .signals import deferred_interrupts

logger = logging.getLogger(__name__)

LOCK, HOLDER = ".lock", ".lock-holder.json"
WAIT = 4 * POLL  # seconds to wait for a process that may be about to release the lock


class Locked(UserError):
    """Another process works in a folder, or replaces it.

    Args:
        folder: The folder.
        holder_file: File that names the process; by default the one of `lock_folder`.
    """

    def __init__(self, folder: Path, holder_file: Path | None = None) -> None:
        try:
            holder = read_json(holder_file or folder / HOLDER)
            process = f"process {holder['pid']} on {holder['host']}"
        except (UserError, KeyError, TypeError):  # not written yet, or removed already
            process = "another process"
        super().__init__(f"{folder} is in use by {process}; wait until it has finished, or choose another folder")


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder during a block. Its files lie inside the folder.

    A folder that does not exist is created, and removed again if the block leaves it empty.

    Raises:
        Locked: If another process holds the lock.
        UserError: If the folder cannot be written.
    """
    created = not folder.exists()
    try:
        with _locked(folder, folder / LOCK, folder / HOLDER, WAIT):
            yield
    finally:
        if created:
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def lock_replacement(folder: Path, wait: float = WAIT) -> Iterator[None]:
    """Hold the lock of a folder that is replaced during a block. Its files lie beside the folder.

    If the folder is a symbolic link, the lock is the one of the folder that it points to.

    Args:
        folder: The folder, which may not exist.
        wait: Seconds to wait for another holder.

    Raises:
        Locked: If another process still holds the lock after this time.
        UserError: If the folder that contains it cannot be written.
    """
    place = real_path(folder)
    stem = f".{name_hash(place)}"  # the name of the folder with an ending may be too long
    with _locked(folder, place.with_name(stem + LOCK), place.with_name(stem + HOLDER), wait):
        yield


@contextmanager
def _locked(folder: Path, lock_file: Path, holder_file: Path, wait: float) -> Iterator[None]:
    """Hold a lock whose messages name a folder; errors as in `lock_folder`."""
    lock = FileLock(lock_file)
    try:
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        if not lock.acquire(wait):
            raise Locked(folder, holder_file)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise UserError(f"{cannot_write(folder, error)}; choose a folder that can be written") from error
        logger.warning("%s cannot be locked on this file system: let no other process write it meanwhile", folder)
    try:
        if lock.is_held:
            _write_holder(holder_file)
        yield
    finally:
        with deferred_interrupts():  # a signal would leave the files in a finished folder
            if lock.is_held:  # before the release, which lets others create theirs
                with suppress(OSError):
                    holder_file.unlink(missing_ok=True)
            lock.release()


def _write_holder(path: Path) -> None:
    """Name this process in a file, for messages only. The file has no temporary name, which a killed process leaves."""
    with suppress(OSError):  # such as a full disk
        path.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))


def is_locked(folder: Path) -> bool:
    """Return whether a process works in a folder."""
    if not (folder / LOCK).exists():
        return False
    lock = FileLock(folder / LOCK)
    try:
        return not lock.acquire()
    except OSError:  # the file system has no locks, or the folder is read-only
        return False
    finally:
        lock.release()
