"""Fixtures of sweeps: single runs for comparison, and commands in processes of their own."""

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

from trainers.hegraph.results.records import MEASURED, RECORD
from trainers.hegraph.sweep.grid import Run

ROOT = Path(__file__).parents[2]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture
def runs(tiny_bank, tmp_path) -> list[Run]:
    return [Run(tmp_path / f"seed{n}", str(tiny_bank), "vit_b32", "ZeroShot", 1, n) for n in range(8)]


@pytest.fixture
def long_grid(tiny_bank, tmp_path) -> list[str]:
    """A sweep of four runs that take a while, into `tmp_path / "out"`."""
    grid = ["sweep", "--datasets", str(tiny_bank), "--configs", "vit_b32", "--shots", "1", "--seeds", *"1234"]
    return [*grid, "--output", str(tmp_path / "out"), "TRAINER.HEGRAPHADAPTER.MIN_STEPS", "150"]


@pytest.fixture
def left_undone(tmp_path) -> Callable[[], int]:
    """Number of runs of `long_grid` without a record."""
    return lambda: 4 - len(list((tmp_path / "out").rglob(RECORD)))


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts the package in a process of its own with one thread, in a new session; its output is text."""
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
    """Waits until something is so; `process` has to live meanwhile."""

    def wait(what: Callable[[], object], process: subprocess.Popen | None = None) -> None:
        end = time.monotonic() + 240
        while not what():
            assert time.monotonic() < end
            assert process is None or process.poll() is None, process.communicate()
            time.sleep(0.02)

    return wait


@pytest.fixture
def hold(wait_for) -> Iterator[Callable[..., tuple[int, Path]]]:
    """Stops a process in the middle of a run, so that no test depends on how long a run takes.

    It takes a function that finds the notes of who holds a lock, and the process that has to live meanwhile, and gives
    the process that is held and the folder of its run. SIGCONT has it go on, which the end of the test sends as well.
    """
    held: dict[int, Path] = {}

    def in_the_middle(holder: Path) -> bool:
        """Stop the process in a note; returns whether it still executes the run of the note."""
        with suppress(FileNotFoundError, ProcessLookupError):  # the run has ended meanwhile
            message = holder.read_bytes()
            pid = json.loads(message)["pid"]
            if pid in held:
                return False
            os.kill(pid, signal.SIGSTOP)
            held[pid] = holder.parent
            wait_for(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
            if holder.exists() and holder.read_bytes() == message and not (holder.parent / RECORD).exists():
                return True
            os.kill(pid, signal.SIGCONT)
            del held[pid]
        return False

    def hold_one(notes: Callable[[], Iterable[Path]], process: subprocess.Popen) -> tuple[int, Path]:
        wait_for(lambda: any(map(in_the_middle, notes())), process)
        return list(held.items())[-1]

    yield hold_one
    for pid in held:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="session")
def left_by() -> Callable[[Path], dict[str, object]]:
    """Files of a run; JSON files without the values that differ between equal runs."""
    not_compared = (*MEASURED, "git_commit")  # the checkout may change while tests run

    def comparable(value: object) -> object:
        if isinstance(value, dict):
            return {key: comparable(entry) for key, entry in value.items() if key not in not_compared}
        return value

    def content(path: Path) -> object:
        return comparable(json.loads(path.read_text("utf-8"))) if path.suffix == ".json" else path.read_bytes()

    return lambda folder: {str(f.relative_to(folder)): content(f) for f in folder.rglob("*") if f.is_file()}
