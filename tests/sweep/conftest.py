"""What the tests of sweeps need: runs made alone, to compare with, and commands in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from trainers.hegraph.results.records import MEASURED

ROOT = Path(__file__).parents[2]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts the package in a process of its own with one thread, in a new session; its output is text."""
    started = []

    def begin(*arguments: object, **environment: str) -> subprocess.Popen:
        begun = subprocess.Popen(
            [sys.executable, "-m", "trainers.hegraph", *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, **ONE_THREAD, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(begun)
        return begun

    yield begin
    for begun in started:
        if begun.poll() is None:
            begun.kill()
        begun.communicate()


@pytest.fixture
def alone() -> Callable[[Sequence[Sequence[object]]], None]:
    """Does single runs, each in a process of its own with one thread."""

    def do(command_lines: Sequence[Sequence[object]]) -> None:
        asked = json.dumps([[str(word) for word in line] for line in command_lines])
        program = [sys.executable, str(Path(__file__).parent / "alone.py")]
        done = subprocess.run(
            program, input=asked, env={**os.environ, **ONE_THREAD}, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, done.stderr

    return do


@pytest.fixture(scope="session")
def left_by() -> Callable[[Path], dict[str, object]]:
    """What a run has left: every file below its folder, JSON files without what differs between equal runs."""
    not_compared = (*MEASURED, "git_commit")  # the checkout may change while tests run

    def comparable(value: object) -> object:
        if isinstance(value, dict):
            return {key: comparable(entry) for key, entry in value.items() if key not in not_compared}
        return value

    def content(path: Path) -> object:
        return comparable(json.loads(path.read_text("utf-8"))) if path.suffix == ".json" else path.read_bytes()

    def read(folder: Path) -> dict[str, object]:
        return {str(file.relative_to(folder)): content(file) for file in folder.rglob("*") if file.is_file()}

    return read
