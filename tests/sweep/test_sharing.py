"""Several processes on one output folder: locks, two sweeps at once, workers, and what is interrupted."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainers.hegraph.__main__ import main
from trainers.hegraph.experiments.lock import HOLDER, LOCK, Locked, is_locked, lock_folder
from trainers.hegraph.results.records import find_records
from trainers.hegraph.utils.signals import kept_signals, noted_interrupts

SLOW = ("TRAINER.HEGRAPHADAPTER.MIN_STEPS", "600")  # so that a run takes a while


# The lock


def single_run(bank: Path, out: Path) -> list[str]:
    """The arguments of a quick run from a bank."""
    return ["--features", str(bank), "--shots", "1", "--trainer", "ZeroShot", "--output-dir", str(out)]


def test_a_folder_is_locked_for_one_and_is_as_before_when_it_is_left(tmp_path):
    folder = tmp_path / "deep" / "run"
    with lock_folder(folder):
        assert is_locked(folder)
        assert json.loads((folder / HOLDER).read_text()) == {"pid": os.getpid(), "host": socket.gethostname()}
        with pytest.raises(Locked), lock_folder(folder):
            pass
        assert is_locked(folder)
    assert not folder.exists()
    folder.mkdir(parents=True)
    (folder / "file").touch()
    with lock_folder(folder):
        pass
    assert [path.name for path in folder.iterdir()] == ["file"]
    assert not is_locked(folder)


def test_a_single_run_on_a_locked_folder_is_refused_in_one_line_that_names_the_other(tiny_bank, tmp_path, capsys):
    command = single_run(tiny_bank, tmp_path / "o")
    with lock_folder(tmp_path / "o"):
        assert main(command) == 2
        out, error = capsys.readouterr()
        assert not (tmp_path / "o" / "split.json").exists()
    assert out == ""
    assert error.count("\n") == 1
    assert f"is in use by process {os.getpid()} on {socket.gethostname()}" in error
    assert main(command) == 0


def test_the_lock_of_a_process_that_was_killed_is_taken_over(tiny_bank, tmp_path, start, wait_for):
    out = tmp_path / "o"
    command = ["--features", tiny_bank, "--shots", "1", "--output-dir", out]
    first = start(*command, *SLOW, "OPTIM.MAX_EPOCH", "100000")
    wait_for(lambda: (out / HOLDER).exists(), first)
    assert main([*map(str, command), *SLOW, "OPTIM.MAX_EPOCH", "100000"]) == 2
    first.kill()
    first.wait()
    assert (out / LOCK).exists()
    assert main([str(word) for word in [*command, "OPTIM.MAX_EPOCH", "1"]]) == 0
    assert not (out / LOCK).exists()
    assert not (out / HOLDER).exists()


@pytest.mark.usefixtures("hears_hangup")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_terminated_ends_as_by_ctrl_c(tiny_bank, tmp_path, start, wait_for, number):
    out = tmp_path / "o"
    command = ["--features", tiny_bank, "--shots", "1", "--output-dir", out]
    run = start(*command, *SLOW, "OPTIM.MAX_EPOCH", "100000")
    wait_for(lambda: (out / HOLDER).exists(), run)
    run.send_signal(number)
    _, error = run.communicate(timeout=240)
    assert run.returncode == 130
    assert error.endswith("interrupted; the same command goes on from the last checkpoint\n")
    assert "Traceback" not in error
    assert not list(out.glob(".*"))


def test_signals_that_a_library_takes_are_given_back():
    ours = signal.getsignal(signal.SIGTERM)
    with kept_signals():
        signal.signal(signal.SIGTERM, lambda number, frame: None)
    assert signal.getsignal(signal.SIGTERM) == ours


def test_a_test_of_a_model_takes_the_lock_too(tiny_bank, tmp_path, capsys):
    command = ["--features", str(tiny_bank), "--shots", "1", "OPTIM.MAX_EPOCH", "1"]
    assert main(["--output-dir", str(tmp_path / "o"), *command]) == 0
    test = ["--eval-only", "--model-dir", str(tmp_path / "o"), "--output-dir", str(tmp_path / "t"), *command]
    with lock_folder(tmp_path / "t"):
        assert main(test) == 2
    assert f"process {os.getpid()}" in capsys.readouterr().err
    assert main(test) == 0


def test_a_finished_run_needs_no_lock(tiny_bank, tmp_path):
    command = single_run(tiny_bank, tmp_path / "o")
    assert main(command) == 0
    with lock_folder(tmp_path / "o"):
        assert main(command) == 0


# Sweeps


@pytest.fixture
def grid(tiny_bank, tmp_path) -> list[str]:
    return [
        "sweep", "--datasets", str(tiny_bank), "--configs", "vit_b32", "--shots", "1", "2", "--output",
        str(tmp_path / "out"), "--seeds", *"1234", *SLOW,
    ]  # fmt: skip


def records(tmp_path: Path) -> int:
    return len(list((tmp_path / "out").rglob("result.json"))) if (tmp_path / "out").exists() else 0


def at_work(tmp_path: Path) -> Iterator[Path]:
    """The notes of who is in the middle of a run."""
    return (tmp_path / "out").rglob(HOLDER)


def test_two_sweeps_share_the_work_and_a_reader_of_results_is_never_disturbed(grid, tmp_path, start, hold, wait_for):
    sweeps = []
    for _ in range(2):
        sweeps.append(start(*grid))
        hold(lambda: at_work(tmp_path), sweeps[-1])
    for sweep in sweeps:
        sweep.send_signal(signal.SIGCONT)
    wait_for(lambda: records(tmp_path) > 0)
    while any(sweep.poll() is None for sweep in sweeps):
        assert 0 < len(find_records([tmp_path / "out"])) <= 8
    for sweep in sweeps:
        out, error = sweep.communicate()
        assert sweep.returncode == 0, error
        assert "Traceback" not in error
        assert re.search(r"^\[.*: [0-9.]+ in [0-9.]+ s", error, flags=re.MULTILINE), "one of them has done nothing"
        assert out.startswith("8 runs: 8 done") or "finished before" in out
    assert len(find_records([tmp_path / "out"])) == 8
    assert not list(tmp_path.rglob(LOCK))


@pytest.mark.parametrize("workers", [[], ["--workers", "2"]])
def test_ctrl_c_ends_with_130_and_the_same_command_goes_on(grid, tmp_path, start, hold, wait_for, workers):
    sweep = start(*grid, *workers)
    wait_for(lambda: records(tmp_path) > 0, sweep)
    held, _ = hold(lambda: at_work(tmp_path), sweep)
    os.killpg(sweep.pid, signal.SIGINT)  # as the terminal does
    os.kill(held, signal.SIGCONT)
    out, error = sweep.communicate(timeout=240)
    assert sweep.returncode == 130, error
    assert "Traceback" not in error
    assert out == ""
    assert not list(tmp_path.rglob("error.json"))
    assert not list(tmp_path.rglob(LOCK))
    assert records(tmp_path) < 8
    again = start(*grid, *workers)
    out, error = again.communicate(timeout=240)
    assert again.returncode == 0, error
    assert "finished before" in out
    assert records(tmp_path) == 8


@pytest.mark.usefixtures("hears_hangup")
@pytest.mark.parametrize(
    ("send", "number"),
    [(os.kill, signal.SIGTERM), (os.killpg, signal.SIGTERM), (os.kill, signal.SIGHUP)],
    ids=["docker stop", "timeout", "kill -HUP"],
)
def test_a_sweep_that_is_terminated_ends_its_workers_as_ctrl_c_does(grid, tmp_path, start, hold, send, number):
    sweep = start(*grid, "--workers", "2")
    held, _ = hold(lambda: at_work(tmp_path), sweep)
    send(sweep.pid, number)
    os.kill(held, signal.SIGCONT)
    out, error = sweep.communicate(timeout=240)  # its workers have let go of stderr too
    assert sweep.returncode == 130, error
    assert "Traceback" not in error
    assert out == ""
    assert not list(tmp_path.rglob("error.json"))
    assert not list(tmp_path.rglob(LOCK))


@pytest.mark.parametrize("end", [None, signal.SIGTERM])
def test_a_ctrl_c_that_the_sweep_ignores_reaches_no_worker(grid, tmp_path, start, hold, end):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a script does to what it begins with &
    try:
        sweep = start(*grid, "--workers", "2")
    finally:
        signal.signal(signal.SIGINT, before)
    held, _ = hold(lambda: at_work(tmp_path), sweep)
    os.killpg(sweep.pid, signal.SIGINT)
    if end:
        os.kill(sweep.pid, end)
    os.kill(held, signal.SIGCONT)
    _, error = sweep.communicate(timeout=240)
    assert sweep.returncode == (130 if end else 0), error
    assert not list(tmp_path.rglob("error.json"))
    assert not list(tmp_path.rglob(LOCK))
    assert end or records(tmp_path) == 8


def test_with_nohup_a_sweep_goes_on_when_its_terminal_closes():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with noted_interrupts():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_worker_that_is_killed_fails_its_run_alone(grid, tmp_path, start, hold):
    sweep = start(*grid, "--workers", "2")
    pid, folder = hold(lambda: at_work(tmp_path), sweep)
    os.kill(pid, signal.SIGKILL)
    out, error = sweep.communicate(timeout=240)
    assert sweep.returncode == 1, error
    assert records(tmp_path) == 7
    [failure] = tmp_path.rglob("error.json")
    assert failure.parent == folder
    assert "was ended by signal 9" in json.loads(failure.read_text())["message"]
    assert f"failed: {folder}: " in out


def test_workers_that_cannot_start_end_the_sweep_in_one_line(grid, tmp_path, start):
    (tmp_path / "torch.py").write_text("raise SystemExit(7)\n")
    sweep = start(*grid, "--workers", "2", PYTHONPATH=str(tmp_path))
    _, error = sweep.communicate(timeout=240)
    assert sweep.returncode == 2
    assert "a worker process ended with code 7 before its first run" in error
    assert "Traceback" not in error
    assert not list(tmp_path.rglob("error.json"))


def test_a_worker_keeps_to_what_it_has_opened_and_takes_then_what_fewest_have(tmp_path):
    from collections import deque
    from types import SimpleNamespace

    from trainers.hegraph.sweep.grid import Run
    from trainers.hegraph.sweep.workers import take

    def run(bank: str, seed: int) -> Run:
        return Run(tmp_path, f"{bank}.safetensors", "vit_b32", "ZeroShot", 1, seed)

    def team(*loads: str | None) -> list:
        return [SimpleNamespace(loads=None if bank is None else (f"{bank}.safetensors", "")) for bank in loads]

    waiting = deque([run("a", 1), run("a", 2), run("b", 1), run("b", 2), run("b", 3)])
    first, second = workers = team("a", None)
    assert take(waiting, first, workers) == run("a", 1)
    assert take(waiting, second, workers) == run("b", 1)
    second.loads = ("b.safetensors", "")
    assert take(waiting, first, workers) == run("a", 2)
    assert take(waiting, first, workers) == run("b", 2)
    assert list(waiting) == [run("b", 3)]


def test_the_runs_of_most_shots_are_taken_first_since_they_take_longest(tmp_path):
    from collections import deque
    from types import SimpleNamespace

    from trainers.hegraph.sweep.grid import Run
    from trainers.hegraph.sweep.workers import take

    def run(shots: int, seed: int) -> Run:
        return Run(tmp_path, "a.safetensors", "vit_b32", "ZeroShot", shots, seed)

    grid = [run(1, 1), run(4, 1), run(4, 2), run(-1, 1)]  # -1: all images
    waiting, worker = deque(grid), SimpleNamespace(loads=grid[0].loads)
    assert [take(waiting, worker, [worker]) for _ in grid] == [run(-1, 1), run(4, 1), run(4, 2), run(1, 1)]
