"""Runs of a sweep that are each done in a process of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainers.hegraph.__main__ import main
from trainers.hegraph.experiments.lock import lock_folder
from trainers.hegraph.experiments.opened import Opened
from trainers.hegraph.sweep.__main__ import grid_of, parse_arguments
from trainers.hegraph.sweep.execute import LOCKED, attempt
from trainers.hegraph.sweep.grid import read_grid


@pytest.fixture
def words(tiny_bank) -> list[str]:
    return [
        "--datasets",
        str(tiny_bank),
        "--configs",
        "vit_b32",
        "--shots",
        "1",
        "--seeds",
        "1",
        "OPTIM.MAX_EPOCH",
        "1",
    ]


def test_a_run_in_its_own_process_leaves_what_it_leaves_in_a_sweeps(words, tmp_path, left_by, start, capsys):
    together = start("sweep", *words, "--output", tmp_path / "together")
    separate = start("sweep", *words, "--separate", "--output", tmp_path / "separate")
    for sweep in (together, separate):
        out, error = sweep.communicate(timeout=240)
        assert sweep.returncode == 0, error
        assert out.startswith("1 runs: 1 done")
    assert left_by(tmp_path / "together") == left_by(tmp_path / "separate") != {}


def test_what_such_a_process_complains_of_is_the_message_of_the_failure(words, tiny_bank, tmp_path, capsys):
    tiny_bank.write_bytes(tiny_bank.read_bytes()[:1000])
    assert main(["sweep", *words, "--separate", "--output", str(tmp_path / "out")]) == 1
    [file] = tmp_path.rglob("error.json")
    message = json.loads(file.read_text())["message"]
    assert "Traceback" not in message
    assert str(tiny_bank) in message
    assert f"failed: {file.parent}: {message}\n" in capsys.readouterr().out


def test_a_folder_that_another_process_is_at_is_left_to_it(words, tmp_path):
    grid = read_grid(*grid_of(parse_arguments([*words, "--separate", "--output", str(tmp_path / "out")])))
    [run], _ = grid.runs()
    with lock_folder(run.folder):
        assert attempt(run, Opened()).status == LOCKED
    assert not list(Path(run.folder).rglob("error.json"))
