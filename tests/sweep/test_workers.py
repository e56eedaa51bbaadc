"""Runs in this process, in worker processes and in processes of their own; several processes on one folder."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from trainers.hegraph.__main__ import main
from trainers.hegraph.experiments.folder import HOLDER, LOCK, Locked, is_locked, lock_folder
from trainers.hegraph.experiments.record import peak_memory_mb
from trainers.hegraph.experiments.tasks import Opened
from trainers.hegraph.results.records import read_record
from trainers.hegraph.sweep import __main__ as command
from trainers.hegraph.sweep import execute, workers
from trainers.hegraph.sweep.__main__ import Progress, await_others, in_words
from trainers.hegraph.sweep.execute import DONE, FAILED, LOCKED, Result, attempt
from trainers.hegraph.sweep.grid import Run
from trainers.hegraph.sweep.workers import STARTS, Worker, run_in_workers, take
from trainers.hegraph.utils.errors import UserError
from trainers.hegraph.utils.signals import noted_interrupts


@pytest.fixture
def runs(tiny_bank, tmp_path) -> list[Run]:
    return [Run(tmp_path / f"seed{n}", str(tiny_bank), "vit_b32", "ZeroShot", 1, n) for n in range(4)]


# One process


def test_a_sweep_leaves_what_single_commands_leave_byte_for_byte(tiny_bank, tmp_path, left_by):
    methods = ("TaskRes", "HeGraphAdapter")
    for method in methods:
        folder = tmp_path / "alone" / "tiny" / method / "vit_b32_2shots" / "seed1"
        alone = ["--features", tiny_bank, "--trainer", method, "--shots", 2, "--seed", 1, "--config-file", "vit_b32"]
        assert main([str(word) for word in [*alone, "--output-dir", folder]]) == 0
    swept = ["sweep", "--datasets", str(tiny_bank), "--configs", "vit_b32", "--shots", "2", "--seeds", "1"]
    assert main([*swept, "--methods", *methods, "--output", str(tmp_path / "swept")]) == 0
    expected = left_by(tmp_path / "alone")
    assert len([path for path in expected if path.endswith("result.json")]) == 2
    assert left_by(tmp_path / "swept") == expected


def test_a_run_of_another_seed_begins_in_a_process_as_quiet_as_the_first(runs, monkeypatch, recwarn, caplog):
    log = logging.getLogger("trainers.hegraph")

    def run(cfg, bank, opened):
        warnings.warn("something is odd", UserWarning, stacklevel=1)
        levels.append(log.level)
        log.setLevel(logging.DEBUG)
        return {"accuracy": None}

    levels: list[int] = []
    monkeypatch.setattr(execute, "run_one", run)
    warnings.simplefilter("default")
    log.setLevel(logging.INFO)
    assert [attempt(runs[0], Opened(), verbose=verbose).message for verbose in (False, True)] == ["no test images"] * 2
    assert levels == [logging.WARNING, logging.INFO]
    assert log.level == logging.INFO
    assert [str(warning.message) for warning in recwarn] == ["something is odd"] * 2, "it is shown for each run"


def test_memory_that_one_run_took_is_not_counted_for_the_next(runs, monkeypatch):
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("this system cannot count memory anew")
    peaks = []
    for megabytes in (400, 1):

        def run(cfg, bank, opened, size=megabytes * 250_000):
            torch.ones(size)
            peaks.append(peak_memory_mb())
            return {"accuracy": 50.126}

        monkeypatch.setattr(execute, "run_one", run)
        assert attempt(runs[0], Opened()).message == "50.13"
    assert peaks[0] - peaks[1] > 300


def test_an_error_of_the_program_is_a_failure_and_names_its_kind_and_a_record_that_is_there_stays_alone(
    runs, monkeypatch
):
    def broken(cfg, bank, opened):
        raise ZeroDivisionError("of all things")

    assert attempt(runs[0], Opened()).status == DONE
    monkeypatch.setattr(execute, "run_one", broken)
    failed = [attempt(run, Opened()) for run in runs[:2]]
    assert [(result.status, result.message) for result in failed] == [(FAILED, "ZeroDivisionError: of all things")] * 2
    assert not (runs[0].folder / "error.json").exists()
    failure = json.loads((runs[1].folder / "error.json").read_text())
    assert "in broken" in failure["traceback"]
    assert (failure["seed"], failure["command"]) == (1, runs[1].command())


# Workers


class Played:
    """A worker process that is a thread: `work` gets its end of the pipe, and the process ends when it returns."""

    def __init__(self, target: Callable, args: tuple, daemon: bool) -> None:
        ours = Connection(os.dup(args[0].fileno()))  # the other is closed here, which a process would not notice
        self.thread = threading.Thread(target=target, args=(ours, *args[1:]), daemon=daemon)
        self.start, self.exitcode, self.pid = self.thread.start, 7, None
        self.join, self.is_alive = self.thread.join, lambda: False


@pytest.fixture
def played(monkeypatch) -> Callable[[Callable], None]:
    """Has workers be threads that do what a function of their connection and their number does."""

    def install(behave: Callable) -> None:
        numbers = iter(range(100))

        def work(connection, verbose):
            with connection:
                behave(connection, next(numbers))

        context = SimpleNamespace(Pipe=Pipe, Process=Played)
        monkeypatch.setattr(workers, "work", work)
        monkeypatch.setattr(workers, "multiprocessing", SimpleNamespace(get_context=lambda how: context))

    return install


def diligent(connection, number: int) -> None:
    connection.send(None)
    with suppress(EOFError):
        while run := connection.recv():
            connection.send(Result(run, DONE, f"by {number}"))


def test_workers_share_the_threads_and_the_runs(runs, played, monkeypatch, caplog):
    played(diligent)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    with caplog.at_level("INFO"):
        assert {result.run for result in run_in_workers(runs, 2)} == set(runs)
        assert len(list(run_in_workers(runs[:1], 8))) == 1
    assert "2 workers with OMP_NUM_THREADS=2 each" in caplog.text
    assert "1 workers with OMP_NUM_THREADS=5" in caplog.text
    assert os.environ["OMP_NUM_THREADS"] == "5"


def test_a_worker_that_dies_fails_its_run_alone_and_another_takes_its_place(runs, played):
    def dies_over_seed_2(connection, number: int) -> None:
        connection.send(None)
        with suppress(EOFError):
            while (run := connection.recv()).seed != 2:
                connection.send(Result(run, DONE, ""))

    played(dies_over_seed_2)
    results = {result.run.seed: result for result in run_in_workers(runs, 1)}
    assert [results[seed].status for seed in range(4)] == [DONE, DONE, FAILED, DONE]
    said = json.loads((runs[2].folder / "error.json").read_text())["message"]
    assert said == f"RuntimeError: {results[2].message.partition(': ')[2]}"
    assert "ended with code 7" in said


def test_workers_that_die_while_they_start_are_replaced_a_few_times_in_a_row(runs, played):
    played(lambda connection, number: diligent(connection, number) if number >= STARTS - 1 else None)
    assert [result.status for result in run_in_workers(runs, 1)] == [DONE] * 4
    played(lambda connection, number: None)
    with pytest.raises(UserError, match=f"{STARTS} worker processes ended before their first run, .* code 7"):
        list(run_in_workers(runs, 2))
    assert not any(run.folder.exists() for run in runs)


def team(*loads: str | None) -> list:
    return [SimpleNamespace(loads=None if bank is None else (f"{bank}.safetensors", "")) for bank in loads]


def test_a_worker_keeps_to_what_it_has_opened_and_takes_then_what_fewest_have(tmp_path):
    def run(bank: str, seed: int) -> Run:
        return Run(tmp_path, f"{bank}.safetensors", "vit_b32", "ZeroShot", 1, seed)

    waiting = deque([run("a", 1), run("a", 2), run("b", 1), run("b", 2), run("b", 3)])
    first, second = both = team("a", None)
    assert take(waiting, first, both) == run("a", 1)
    assert take(waiting, second, both) == run("b", 1)
    second.loads = ("b.safetensors", "")
    assert take(waiting, first, both) == run("a", 2)
    assert take(waiting, first, both) == run("b", 2)
    assert list(waiting) == [run("b", 3)]
    waiting = deque([run("a", 1), run("a", 2), run("a", 3), run("b", 1), run("b", 2)])
    third, _ = both = team(None, "a")
    assert take(waiting, third, both) == run("b", 1), "three runs that a worker has begun are less than two of nobody"


def test_the_runs_of_most_shots_are_taken_first_since_they_take_longest(tmp_path):
    grid = [Run(tmp_path, "a.safetensors", "v", "ZeroShot", shots, seed) for shots, seed in [(1, 1), (4, 1), (-1, 1)]]
    waiting, [worker] = deque(grid), team("a")
    assert [take(waiting, worker, [worker]) for _ in grid] == [grid[2], grid[1], grid[0]]  # -1: all images


def test_a_worker_does_what_it_is_given_until_nobody_is_there(runs, monkeypatch):
    monkeypatch.setattr(workers.os, "setsid", lambda: None)
    ours, theirs = Pipe()
    worker = threading.Thread(target=workers.work, args=(Connection(os.dup(theirs.fileno())), False))
    worker.start()
    assert ours.recv() is None
    ours.send(runs[0])
    assert (ours.recv().status, read_record(runs[0].folder)["seed"]) == (DONE, 0)
    theirs.close()
    ours.close()
    worker.join(60)
    assert not worker.is_alive()


def test_a_process_that_is_started_unheard_hears_no_signal_and_this_one_does_again():
    blocked = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    show = "import signal; print(*map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ())))"
    with workers.unheard():
        printed = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True).stdout
    assert {int(number) for number in printed.split()} >= set(blocked)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_a_sweep_that_is_ended_kills_what_is_at_a_run_and_removes_what_that_has_half_done(runs, monkeypatch):
    killed, folder = [], runs[0].folder
    (folder / ".model.x.tmp").mkdir(parents=True)
    for name in (LOCK, HOLDER, ".result.json.x.tmp", ".model.x.tmp/file"):
        (folder / name).touch()
    worker = Worker.__new__(Worker)
    worker.run, worker.connection = runs[0], Pipe()[0]
    worker.process = SimpleNamespace(
        pid=4711, is_alive=lambda: True, kill=lambda: killed.append("it"), join=lambda: killed.append("gone")
    )
    monkeypatch.setattr(workers.os, "killpg", lambda *group: killed.append(group))
    worker.end()
    assert killed == [(4711, signal.SIGKILL), "it", "gone"]
    assert not folder.exists()


def test_what_an_interrupt_has_turned_into_another_error_is_no_failure_of_the_run(runs, monkeypatch):
    def run(cfg, bank, opened):
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise ImportError("half a module")

    monkeypatch.setattr(execute, "run_one", run)
    with noted_interrupts(), pytest.raises(KeyboardInterrupt):
        attempt(runs[0], Opened())
    assert attempt(runs[0], Opened()).status == FAILED


def test_a_run_in_its_own_process_is_what_its_command_says(runs, tmp_path, monkeypatch, capsys):
    run = replace(runs[0], separate=True)
    attempt(replace(run, separate=False), Opened())
    python = tmp_path / "python"
    monkeypatch.setattr(execute.sys, "executable", str(python))

    def says(line: str, code: int = 0, folder: Path = run.folder) -> Result:
        python.write_text(f'#!/bin/sh\necho "$@"\necho {line}\nexit {code}\n')
        python.chmod(0o755)
        return attempt(replace(run, folder=folder), Opened(), verbose=True)

    assert says("well").status == DONE
    words = capsys.readouterr().err.split()
    assert words[:4] == ["-m", "trainers.hegraph", "--features", run.source]
    assert words[-3:] == ["--output-dir", str(run.folder), "well"]
    assert says("error: no such bank", 2, runs[1].folder).message == "no such bank"
    assert says("killed", 9, runs[2].folder).message == "RuntimeError: killed"
    traceback = json.loads((runs[2].folder / "error.json").read_text())["traceback"]
    assert "--features" in traceback
    assert "has no record" in says("well", 0, runs[3].folder).message
    with lock_folder(runs[3].folder):
        assert says("in use", 2, runs[3].folder).status == LOCKED


@pytest.mark.slow
def test_real_workers_and_processes_leave_the_same(tiny_bank, tmp_path, left_by, monkeypatch):
    swept = ["sweep", "--datasets", str(tiny_bank), "--configs", "vit_b32", "--shots", "2", "--seeds", "1", "2"]
    assert main([*swept, "--output", str(tmp_path / "here")]) == 0
    for flags, share in ((["--workers", "2"], 2), (["--separate"], 1)):
        monkeypatch.setenv("OMP_NUM_THREADS", str(share * torch.get_num_threads()))
        assert main([*swept, "--output", str(tmp_path / flags[0]), *flags]) == 0
        assert left_by(tmp_path / flags[0]) == left_by(tmp_path / "here") != {}


# Several sweeps on one folder


def test_a_folder_is_locked_for_one_and_is_as_before_when_it_is_left(tmp_path):
    folder = tmp_path / "deep" / "run"
    with lock_folder(folder):
        assert is_locked(folder)
        assert json.loads((folder / HOLDER).read_text()) == {"pid": os.getpid(), "host": socket.gethostname()}
        with pytest.raises(Locked), lock_folder(folder):
            pass
    assert not folder.exists()
    folder.mkdir(parents=True)
    (folder / "file").touch()
    with lock_folder(folder):
        pass
    assert [path.name for path in folder.iterdir()] == ["file"]
    assert not is_locked(folder)


def test_a_single_run_or_test_on_a_locked_folder_is_refused_in_one_line_unless_it_is_finished(
    tiny_bank, tmp_path, capsys
):
    alone = ["--features", str(tiny_bank), "--shots", "1", "--output-dir"]
    train = [*alone, str(tmp_path / "o"), "OPTIM.MAX_EPOCH", "1"]
    test = [*alone, str(tmp_path / "t"), "--eval-only", "--model-dir", str(tmp_path / "o"), "OPTIM.MAX_EPOCH", "1"]
    for words, folder in ((train, "o"), (test, "t")):
        with lock_folder(tmp_path / folder):
            capsys.readouterr()
            assert main(words) == 2
            error = capsys.readouterr().err
        assert f"process {os.getpid()} on {socket.gethostname()}" in error
        assert error.count("\n") == 1
        assert main(words) == 0
    with lock_folder(tmp_path / "o"):
        assert main(train) == 0


def test_what_another_process_is_at_is_waited_for_and_done_where_it_left_it_undone(runs, monkeypatch):
    first, second, third, fourth = runs
    attempt(first, Opened())
    execute.record_failure(second, UserError("it went wrong"))
    attempt(Run(third.folder, third.source, third.config, "TipAdapter", 1, 2), Opened())  # with other settings
    looks = []
    monkeypatch.setattr(command, "is_locked", lambda folder: folder == fourth.folder and len(looks) < 2)
    monkeypatch.setattr(command.time, "sleep", looks.append)
    progress = Progress(4)
    assert await_others(runs, progress) == [fourth]
    assert looks == [command.POLL] * 2
    assert progress.done == 1
    assert [(run.seed, str(third.folder) in said) for run, said in progress.failures] == [(1, False), (2, True)]


def test_a_run_that_is_locked_comes_again_until_its_record_is_there(runs):
    answers = {runs[0]: [LOCKED, DONE], runs[1]: [DONE], runs[2]: [FAILED]}
    progress = command.do_runs(runs[:3], lambda left: [Result(run, answers[run].pop(0), "", 1.0) for run in left])
    assert progress.done == 2
    assert [run.seed for run, _ in progress.failures] == [2]


def test_a_line_of_progress_counts_and_says_how_long_it_will_take(runs, caplog, monkeypatch):
    clock = iter([120.0, 160.0])
    monkeypatch.setattr(command, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with caplog.at_level("INFO"):
        progress = Progress(4, started=100.0)
        progress.finished(runs[0], "91.00 in 2.0 s")
        progress.failed(runs[1], "no space")
    assert caplog.messages == [
        "[1/4] tiny ZeroShot vit_b32, 1 shots, seed 0: 91.00 in 2.0 s (3 left, 20 s a run, 60 s to go)",
        "[2/4] tiny ZeroShot vit_b32, 1 shots, seed 1: failed: no space (2 left, 1 failed, 30 s a run, 60 s to go)",
    ]
    assert [in_words(s) for s in (0.44, 9.96, 89, 91, 5399, 5400)] == [
        "0.4 s",
        "10.0 s",
        "89 s",
        "2 min",
        "90 min",
        "1.5 h",
    ]


# Kills and signals, with processes

LONG = ("TRAINER.HEGRAPHADAPTER.MIN_STEPS", "200")  # so that a run takes a while


@pytest.fixture
def grid(tiny_bank, tmp_path) -> list[str]:
    return [
        "sweep", "--datasets", str(tiny_bank), "--configs", "vit_b32", "--shots", "1", "2", "--output",
        str(tmp_path / "out"), "--seeds", *"1234", *LONG,
    ]  # fmt: skip


def left_undone(tmp_path: Path) -> int:
    return 8 - len(list((tmp_path / "out").rglob("result.json")))


def at_work(tmp_path: Path) -> list[Path]:
    """The notes of who is in the middle of a run."""
    return list((tmp_path / "out").rglob(HOLDER))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "send", "number"),
    [
        ([], os.killpg, signal.SIGINT),
        (["--workers", "2"], os.killpg, signal.SIGINT),
        (["--workers", "2", "--separate"], os.kill, signal.SIGTERM),
    ],
    ids=["Ctrl-C", "Ctrl-C with workers", "docker stop with processes"],
)
def test_a_sweep_that_is_ended_leaves_no_lock_and_the_same_command_goes_on(
    grid, tmp_path, start, hold, wait_for, workers, send, number
):
    sweep = start(*grid, *workers)
    wait_for(lambda: left_undone(tmp_path) < 8, sweep)
    held, _ = hold(lambda: at_work(tmp_path), sweep)
    send(sweep.pid, number)
    with suppress(ProcessLookupError):  # it has been killed
        os.kill(held, signal.SIGCONT)
    out, error = sweep.communicate(timeout=240)  # its workers have let go of stderr too
    assert (sweep.returncode, out) == (130, ""), error
    assert "Traceback" not in error
    assert not list(tmp_path.rglob("error.json"))
    assert not list(tmp_path.rglob(LOCK))
    assert left_undone(tmp_path)
    again = start(*grid)
    out, error = again.communicate(timeout=240)
    assert (again.returncode, left_undone(tmp_path)) == (0, 0), error
    assert "finished before" in out


@pytest.mark.slow
def test_a_killed_sweep_has_its_workers_end_silently_and_the_next_removes_its_locks(grid, tmp_path, start, hold):
    sweep = start(*grid, "--workers", "2")
    held, _ = hold(lambda: at_work(tmp_path), sweep)
    sweep.kill()
    os.kill(held, signal.SIGCONT)
    _, error = sweep.communicate(timeout=240)  # the workers hold stderr until they end
    assert "Traceback" not in error
    for record in tmp_path.rglob("result.json"):
        (record.parent / LOCK).touch()  # as one that was killed between its record and its end
    again = start(*grid)
    _, error = again.communicate(timeout=240)
    assert (again.returncode, left_undone(tmp_path)) == (0, 0), error
    assert not list(tmp_path.rglob(LOCK))


@pytest.mark.slow
def test_a_worker_that_is_killed_fails_its_run_alone(grid, tmp_path, start, hold):
    sweep = start(*grid, "--workers", "2")
    pid, folder = hold(lambda: at_work(tmp_path), sweep)
    os.kill(pid, signal.SIGKILL)
    out, error = sweep.communicate(timeout=240)
    assert (sweep.returncode, left_undone(tmp_path)) == (1, 1), error
    [failure] = tmp_path.rglob("error.json")
    assert failure.parent == folder
    assert "was ended by signal 9" in json.loads(failure.read_text())["message"]
    assert f"failed: {folder}: " in out


@pytest.mark.slow
def test_two_sweeps_share_the_work(grid, tmp_path, start, hold):
    sweeps = []
    for _ in range(2):
        sweeps.append(start(*grid))
        hold(lambda: at_work(tmp_path), sweeps[-1])
    for sweep in sweeps:
        sweep.send_signal(signal.SIGCONT)
    for sweep in sweeps:
        out, error = sweep.communicate(timeout=240)
        assert sweep.returncode == 0, error
        assert " in 0." in error or " s (" in error, "one of them has done nothing"
        assert out.startswith("8 runs: 8 done") or "finished before" in out
    assert not left_undone(tmp_path)
    assert not list(tmp_path.rglob(LOCK))
