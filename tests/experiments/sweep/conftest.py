"""Fixtures of sweeps: runs, commands in new processes, and the files of a run for comparison."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from trainers.hegraph.experiments.sweep.grid import Run
from trainers.hegraph.results.records import MEASURED, RECORD

ROOT = Path(__file__).parents[3]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture
def runs(tiny_bank, tmp_path) -> list[Run]:
    return [Run(tmp_path / f"seed{n}", str(tiny_bank), "vit_b32", "ZeroShot", 1, n) for n in range(8)]


@pytest.fixture
def long_grid(tiny_bank, tmp_path) -> list[str]:
    """Arguments of a sweep of four runs that take seconds, with the output folder `tmp_path / "out"`."""
    grid = ["sweep", "--datasets", str(tiny_bank), "--configs", "vit_b32", "--shots", "1", "--seeds", *"1234"]
    return [*grid, "--output", str(tmp_path / "out"), "TRAINER.HEGRAPHADAPTER.MIN_STEPS", "150"]


@pytest.fixture
def count_pending(tmp_path) -> Callable[[], int]:
    """Function that counts the runs of `long_grid` without a record."""
    return lambda: 4 - len(list((tmp_path / "out").rglob(RECORD)))


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen]]:
    """Function that starts a command in a new process with one thread, in a new session; its output is text."""
    started = []

    def begin(*arguments: object) -> subprocess.Popen:
        command = [sys.executable, "-m", "trainers.hegraph", *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        environment = {**os.environ, **ONE_THREAD}
        started.append(subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **pipes))
        return started[-1]

    yield begin
    for begun in started:
        if begun.poll() is None:
            begun.kill()
        begun.communicate()


@pytest.fixture
def wait_for() -> Callable[..., None]:
    """Function that waits until a condition is true, while a process must not end."""

    def wait(condition: Callable[[], object], process: subprocess.Popen | None = None) -> None:
        end = time.monotonic() + 240
        while not condition():
            assert time.monotonic() < end
            assert process is None or process.poll() is None, process.communicate()
            time.sleep(0.02)

    return wait


@pytest.fixture
def pause_run(wait_for) -> Iterator[Callable[..., tuple[int, Path]]]:
    """Function that pauses a process in the middle of a run, so that no test depends on the duration of a run.

    Its arguments are a function that lists the files `HOLDER` of locked folders, and a process that must not end. It
    returns the id of the paused process and the folder of its run. SIGCONT resumes the process, at the latest at the
    end of the test.
    """
    paused: dict[int, Path] = {}

    def pause(holder: Path) -> bool:
        """Pause the process that holds a lock; returns whether it is still in its run."""
        with suppress(FileNotFoundError, ProcessLookupError, json.JSONDecodeError):  # ended, or not written yet
            content = holder.read_bytes()
            pid = json.loads(content)["pid"]
            if pid in paused:
                return False
            os.kill(pid, signal.SIGSTOP)
            paused[pid] = holder.parent
            wait_for(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
            if holder.exists() and holder.read_bytes() == content and not (holder.parent / RECORD).exists():
                return True
            os.kill(pid, signal.SIGCONT)
            del paused[pid]
        return False

    def pause_one(holders: Callable[[], Iterable[Path]], process: subprocess.Popen) -> tuple[int, Path]:
        wait_for(lambda: any(map(pause, holders())), process)
        return list(paused.items())[-1]

    yield pause_one
    for pid in paused:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="session")
def files_of() -> Callable[[Path], dict[str, object]]:
    """Function that reads the files below a folder, and removes values that differ between equal runs from JSON."""
    not_compared = (*MEASURED, "git_commit")  # the checkout may change while tests run

    def comparable(value: object) -> object:
        if isinstance(value, dict):
            return {key: comparable(entry) for key, entry in value.items() if key not in not_compared}
        return value

    def content(path: Path) -> object:
        return comparable(json.loads(path.read_text("utf-8"))) if path.suffix == ".json" else path.read_bytes()

    return lambda folder: {str(f.relative_to(folder)): content(f) for f in folder.rglob("*") if f.is_file()}
