"""Locks between processes: exclusive, without traces, and named in messages."""

import errno
import json
import multiprocessing
import os
import signal
import socket
from pathlib import Path
from unittest.mock import Mock

import pytest

from trainers.hegraph.utils.errors import UserError
from trainers.hegraph.utils.file_lock import FileLock
from trainers.hegraph.utils.locks import HOLDER, Locked, is_locked, lock_folder, lock_replacement


def test_second_lock_of_a_folder_is_refused(tmp_path):
    folder = tmp_path / "deep" / "run"
    with lock_folder(folder):
        assert is_locked(folder)
        assert json.loads((folder / HOLDER).read_text()) == {"pid": os.getpid(), "host": socket.gethostname()}
        with pytest.raises(Locked, match=f"process {os.getpid()} on {socket.gethostname()}"), lock_folder(folder):
            pass


def test_folder_lock_leaves_no_trace(tmp_path):
    with lock_folder(tmp_path / "new"):
        pass
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    with lock_folder(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert not is_locked(tmp_path)


def test_lock_stays_while_a_folder_is_replaced(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    with lock_replacement(model):
        model.rename(tmp_path / "moved")
        model.mkdir()
        with pytest.raises(Locked, match=f"{model} is in use by process {os.getpid()}"), lock_replacement(model):
            pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "moved"]


def test_link_has_the_lock_of_its_target(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere/model")
    with (
        lock_replacement(tmp_path / "link"),
        pytest.raises(Locked, match="is in use"),
        lock_replacement(tmp_path / "elsewhere" / "model"),
    ):
        pass


def test_folders_with_the_longest_names_are_locked(tmp_path):
    with lock_replacement(tmp_path / ("x" * 255)):
        pass


def test_waiting_holder_gets_the_lock(tmp_path):
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert first.acquire()
    assert not second.acquire()
    first.release()
    assert second.acquire(wait=10)
    assert not first.acquire()


def test_removed_lock_file_is_noticed(tmp_path, monkeypatch):
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert first.acquire()
    open_file = os.open

    def open_then_release(*arguments: object, **keywords: object) -> int:
        descriptor = open_file(*arguments, **keywords)
        first.release()  # removes the file between the attempts to open and to lock it
        return descriptor

    monkeypatch.setattr(os, "open", open_then_release)
    assert not second.acquire()
    assert second.acquire()
    assert (tmp_path / "lock").exists()


def test_file_system_without_locks_gets_a_warning(tmp_path, monkeypatch, caplog):
    error = OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    monkeypatch.setattr(FileLock, "acquire", Mock(side_effect=error))
    with lock_folder(tmp_path / "run"):
        assert not (tmp_path / "run" / HOLDER).exists()
    assert "cannot be locked" in caplog.text
    assert not (tmp_path / "run").exists()


def test_unwritable_folder_is_refused(tmp_path, monkeypatch):
    error = OSError(errno.EACCES, os.strerror(errno.EACCES))
    monkeypatch.setattr(FileLock, "acquire", Mock(side_effect=error))
    with pytest.raises(UserError, match=r"cannot write .*: Permission denied"), lock_folder(tmp_path / "run"):
        pass


def count_up(path: Path, times: int) -> None:
    """Add to the number in a file, under a lock."""
    for _ in range(times):
        lock = FileLock(path.with_suffix(".lock"))
        assert lock.acquire(wait=240)
        path.write_text(str(int(path.read_text()) + 1))
        lock.release()


@pytest.mark.slow
def test_processes_never_hold_a_lock_together(tmp_path):
    path = tmp_path / "count"
    path.write_text("0")
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=count_up, args=(path, 300)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert path.read_text() == "900"


def hold_until_killed(path: Path, ready: object) -> None:
    lock = FileLock(path)
    lock.acquire()
    ready.set()
    signal.pause()


@pytest.mark.slow
def test_killed_process_releases_its_lock(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Event()
    process = spawn.Process(target=hold_until_killed, args=(tmp_path / "lock", ready))
    process.start()
    assert ready.wait(240)
    assert not FileLock(tmp_path / "lock").acquire()
    process.kill()
    process.join()
    assert FileLock(tmp_path / "lock").acquire()
