"""Runs in this process, in worker processes and in separate processes; several sweeps on one folder."""

import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import Mock, call

import pytest
import torch

from trainers.hegraph.__main__ import main
from trainers.hegraph.experiments.sweep import plan, workers
from trainers.hegraph.experiments.sweep.grid import FEATURES_DIR, Run
from trainers.hegraph.experiments.sweep.plan import Sweep, do_runs, in_words
from trainers.hegraph.experiments.sweep.workers import (
    DONE,
    FAILED,
    LOCKED,
    Result,
    attempt,
    kill_workers,
    new_worker,
    next_run,
    run_here,
    run_in_workers,
)
from trainers.hegraph.method.training import memory
from trainers.hegraph.results.records import read_record
from trainers.hegraph.utils.files import atomic_path, writing_folder
from trainers.hegraph.utils.locks import HOLDER, LOCK, lock_folder
from trainers.hegraph.utils.signals import noted_interrupts


def test_attempt_logs_warnings_and_records_failures(runs, monkeypatch):
    log = logging.getLogger("trainers.hegraph")
    before, levels = log.level, []

    def broken(cfg, bank):
        levels.append(log.level)
        log.setLevel(logging.DEBUG)
        raise ZeroDivisionError("of all things")

    done = attempt(runs[0], False)
    assert done.status == DONE and 0 < done.seconds < 100
    monkeypatch.setattr(workers, "run_one", broken)
    failed = [attempt(run, verbose) for run, verbose in zip(runs, (False, True))]
    assert (levels, log.level) == ([logging.WARNING, logging.INFO], before)
    assert [(result.status, result.message) for result in failed] == [(FAILED, "ZeroDivisionError: of all things")] * 2
    assert not (runs[0].folder / "error.json").exists()
    failure = json.loads((runs[1].folder / "error.json").read_text())
    assert "in broken" in failure["traceback"] and failure["command"] == runs[1].command()


def test_runs_of_one_process_record_no_peak_memory(runs, monkeypatch):
    monkeypatch.setattr(memory, "_started", Counter())
    attempt(runs[0], False)
    assert read_record(runs[0].folder)["peak_memory_mb"] is None
    attempt(replace(runs[1], separate=True), False)
    assert read_record(runs[1].folder)["peak_memory_mb"] > 10


def test_interrupt_as_another_error_is_no_failure(runs, monkeypatch):
    def run(cfg, bank):
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise ImportError("half a module")

    monkeypatch.setattr(workers, "run_one", run)
    with noted_interrupts(), pytest.raises(KeyboardInterrupt):
        attempt(runs[0], False)
    assert attempt(runs[0], False).status == FAILED


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupt_lost_in_a_callback_ends_the_sweep(runs):
    sweep = Sweep(runs[:3])

    def interrupt_in_callback(runs: list[Run]) -> Generator[Result]:
        for result in run_here(runs, verbose=False):
            target = threading.Thread()
            callback = weakref.ref(target, lambda _: signal.raise_signal(signal.SIGINT))
            del target  # Python drops the KeyboardInterrupt that the callback raises
            yield result if callback() is None else None

    with noted_interrupts(), pytest.raises(KeyboardInterrupt):
        do_runs(sweep, interrupt_in_callback)
    assert len(sweep.results) == 1


# Workers


def write_for_ever(folder: Path, shared: Path) -> None:
    with atomic_path(folder / "file"), writing_folder(shared / "folder") as temporary:
        (temporary / "begun").touch()
        time.sleep(600)


@pytest.mark.slow
def test_killed_workers_leave_no_temporary_files(runs, tmp_path, wait_for):
    worker, features, before = new_worker(), tmp_path / "features", multiprocessing.active_children()
    worker.submit(write_for_ever, runs[0].folder, features)
    [process] = set(multiprocessing.active_children()) - set(before)
    try:
        wait_for(lambda: [*features.rglob("begun")])
        assert len([*tmp_path.rglob("*.tmp")]) == 2
        (features / ".0123456701234567.tmp").touch()  # of another process
    finally:
        kill_workers([process], [replace(runs[0], keys=((FEATURES_DIR, str(features)),))])
    assert [path.name for path in tmp_path.rglob("*.tmp")] == [".0123456701234567.tmp"]


@pytest.fixture
def worker_threads(monkeypatch) -> Mock:
    """Replace workers by threads, one of which breaks in run 2. Returns the mock that creates a worker."""

    def attempt(run: Run, verbose: bool) -> Result:
        if run.seed == 2:
            raise BrokenProcessPool
        return Result(run, DONE, str(verbose))

    monkeypatch.setattr(workers, "attempt", attempt)
    monkeypatch.setattr(workers, "new_worker", begin := Mock(side_effect=lambda: ThreadPoolExecutor(1)))
    return begin


def test_dead_worker_fails_its_run_only(runs, worker_threads, monkeypatch, caplog):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    with caplog.at_level("INFO"):
        results = {result.run.seed: result for result in run_in_workers(runs, 2, verbose=True)}
        assert [results[seed].status for seed in range(8)] == [DONE] * 2 + [FAILED] + [DONE] * 5
        assert worker_threads.call_count == 2 + 1
        [alone] = run_in_workers(runs[:1], 8, False)
        monkeypatch.delenv("OMP_NUM_THREADS")
        monkeypatch.setattr(workers, "cores", lambda: 1)
        assert len(list(run_in_workers(runs[3:5], 2, False))) == 2
    assert (results[0].message, alone.message) == ("True", "False")
    assert results[2].message.startswith("RuntimeError: its worker process was killed")
    assert json.loads((runs[2].folder / "error.json").read_text())["message"] == results[2].message
    assert "2 workers with OMP_NUM_THREADS=2 each" in caplog.text and "1 workers with OMP_NUM_THREADS=5" in caplog.text
    assert "2 workers with OMP_NUM_THREADS=1 each" in caplog.text and "OMP_NUM_THREADS" not in os.environ


def test_order_of_runs_for_a_worker(tmp_path):
    def run(bank: str, shots: int = 1) -> Run:
        return Run(tmp_path, f"{bank}.safetensors", "vit_b32", "ZeroShot", shots, 1)

    (a, b), waiting = (run(bank).loads for bank in "ab"), [run("a", 2), run("b", 3), run("b", 4), run("a", 1)]
    assert (next_run(waiting, a, [a, a]), next_run(waiting, None, [a])) == (run("a", 2), run("b", 4))
    assert (next_run(waiting, None, [a, b]), next_run(waiting, None, [b, b, a])) == (run("b", 4), run("a", 2))
    assert next_run([*waiting, run("a", -1)], None, []) == run("a", -1)  # all images, which take longest


def test_separate_run_is_its_command_line(runs, capsys, monkeypatch):
    monkeypatch.setattr(workers.subprocess, "run", process := Mock())

    def attempt_separately(run: Run, printed: str, code: int = 0) -> Result:
        process.return_value = Mock(stdout=printed, returncode=code)
        return attempt(replace(run, separate=True), True)

    first, second, third, fourth = runs[:4]
    attempt(first, False)
    assert (attempt_separately(first, "well\n").status, capsys.readouterr().err) == (DONE, "well\n")
    assert process.call_args[0][0] == [sys.executable, "-m", "trainers.hegraph", *first.arguments()]
    assert attempt_separately(second, "loading\nerror: no such bank\n", 2).message == "no such bank"
    assert attempt_separately(third, "loading\nkilled\n", 9).message == "RuntimeError: killed"
    assert "loading" in json.loads((third.folder / "error.json").read_text())["traceback"]
    assert "without a record" in attempt_separately(fourth, "well\n").message
    with lock_folder(fourth.folder):
        assert attempt_separately(fourth, "", 2).status == LOCKED


def test_interrupted_sweep_kills_its_workers(runs, worker_threads, monkeypatch):
    seen, process = [], Mock(pid=4711)
    children = iter([["another"], ["another", process]])
    monkeypatch.setattr(workers.multiprocessing, "active_children", lambda: next(children))
    monkeypatch.setattr(workers.os, "killpg", process.killpg)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())

    def submit(*_: object) -> Future:
        seen.append((os.environ["OMP_NUM_THREADS"], signal.pthread_sigmask(signal.SIG_BLOCK, ())))
        return Future()

    monkeypatch.setattr(ThreadPoolExecutor, "submit", submit)
    monkeypatch.setattr(workers, "wait", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        list(run_in_workers(runs[:2], 2, False))
    assert process.mock_calls == [call.killpg(4711, signal.SIGKILL), call.kill(), call.join()]
    assert [threads for threads, _ in seen] == ["3", "3"]
    assert all(blocked >= {signal.SIGINT, signal.SIGTERM, signal.SIGHUP} for _, blocked in seen)
    assert (os.environ["OMP_NUM_THREADS"], signal.pthread_sigmask(signal.SIG_BLOCK, ())) == ("7", before)


# Several sweeps on one folder


def test_locked_runs_come_last(runs, monkeypatch):
    monkeypatch.setattr(plan, "POLL", 0)
    answers = {runs[0]: [LOCKED, DONE], runs[1]: [DONE], runs[2]: [FAILED]}
    begun, locked = [], {runs[2].folder}
    monkeypatch.setattr(plan, "is_locked", lambda folder: folder in locked)
    monkeypatch.setattr(plan.time, "sleep", lambda seconds: locked.clear())

    def start(left: list[Run]) -> Generator[Result]:
        begun.append([run.seed for run in left])
        return (Result(run, answers[run].pop(0), "") for run in left)

    do_runs(sweep := Sweep(runs[:3]), start)
    assert begun == [[0, 1], [2, 0]]
    assert [(result.run.seed, result.status) for result in sweep.results] == [(1, DONE), (2, FAILED), (0, DONE)]


def test_progress_shows_counts_and_remaining_time(runs, caplog, monkeypatch):
    monkeypatch.setattr(plan, "time", Mock(**{"monotonic.side_effect": [120.0, 160.0]}))
    with caplog.at_level("INFO"):
        sweep = Sweep(runs[:4], started=100.0)
        sweep.count(Result(runs[0], DONE, "91.00", 2.0))
        sweep.count(Result(runs[1], FAILED, "no space", 1.0))
    assert caplog.messages == [
        "[1/4] tiny ZeroShot vit_b32, 1 shot, seed 0: 91.00 in 2.0 s (3 left, 20 s a run, 60 s to go)",
        "[2/4] tiny ZeroShot vit_b32, 1 shot, seed 1: failed: no space (2 left, 1 failed, 30 s a run, 60 s to go)",
    ]
    times = (0.44, 9.96, 89, 91, 5399, 5400)
    assert list(map(in_words, times)) == ["0.4 s", "10.0 s", "89 s", "2 min", "90 min", "1.5 h"]


# Real processes, kills and signals


@pytest.mark.slow
def test_workers_write_the_files_of_single_commands(tiny_bank, tmp_path, files_of, monkeypatch):
    methods = ("TaskRes", "HeGraphAdapter")
    for method in methods:
        alone = ["--features", tiny_bank, "--trainer", method, "--shots", 2, "--seed", 1, "--config-file", "vit_b32"]
        folder = tmp_path / "alone" / "tiny" / method / "vit_b32_2shots" / "seed1"
        assert main([str(word) for word in [*alone, "--output-dir", folder]]) == 0
    swept = ["sweep", "--datasets", str(tiny_bank), "--configs", "vit_b32", "--shots", "2", "--seeds", "1"]
    monkeypatch.setenv("OMP_NUM_THREADS", str(2 * torch.get_num_threads()))
    assert main([*swept, "--methods", *methods, "--output", str(tmp_path / "swept"), "--workers", "2"]) == 0
    assert files_of(tmp_path / "swept") == files_of(tmp_path / "alone") != {}


def send_twice(group: int, number: int) -> None:
    os.killpg(group, number)
    time.sleep(0.05)
    with suppress(ProcessLookupError):
        os.killpg(group, number)


@pytest.mark.slow
@pytest.mark.parametrize(("flags", "send", "number"), [
    ([], os.kill, signal.SIGTERM),
    (["--workers", "2", "--separate"], os.killpg, signal.SIGINT),
    (["--workers", "2"], send_twice, signal.SIGINT),
], ids=["docker stop", "Ctrl-C", "Ctrl-C twice"])  # fmt: skip
def test_interrupted_sweep_continues(
    long_grid, tmp_path, start, pause_run, wait_for, count_pending, flags, send, number, capsys
):
    sweep = start(*long_grid, *flags)
    if flags:  # the other worker goes on
        paused, _ = pause_run(partial((tmp_path / "out").rglob, HOLDER), sweep)
    wait_for(lambda: count_pending() < 4, sweep)
    if not flags:
        paused, _ = pause_run(partial((tmp_path / "out").rglob, HOLDER), sweep)
    send(sweep.pid, number)
    with suppress(ProcessLookupError):  # it has been killed
        os.kill(paused, signal.SIGCONT)
    out, error = sweep.communicate(timeout=240)  # until its workers have closed stderr
    assert (sweep.returncode, out) == (130, ""), error
    assert "Traceback" not in error
    assert not [*tmp_path.rglob("error.json"), *tmp_path.rglob("*.tmp")] and count_pending()
    assert (main(long_grid), count_pending()) == (0, 0) and not list(tmp_path.rglob(LOCK))
    assert "finished before" in capsys.readouterr().out


@pytest.mark.slow
def test_killed_worker_fails_its_run_only(long_grid, tmp_path, start, pause_run, wait_for, count_pending):
    sweep = start(*long_grid, "--workers", "2")
    pause = partial(pause_run, partial((tmp_path / "out").rglob, HOLDER), sweep)
    pid, folder = pause()
    paused = [pause()[0]]
    os.kill(pid, signal.SIGKILL)
    wait_for((folder / "error.json").exists, sweep)
    assert "worker process was killed" in json.loads((folder / "error.json").read_text())["message"]
    paused += [pause()[0]]
    sweep.kill()  # both workers are in a run: one that is starting would miss its first message
    for process in paused:
        os.kill(process, signal.SIGCONT)
    _, error = sweep.communicate(timeout=240)  # the workers hold stderr until they end
    assert "Traceback" not in error and (main([*long_grid, "--retry-failed"]), count_pending()) == (0, 0)
