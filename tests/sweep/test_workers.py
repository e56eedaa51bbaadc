"""Runs in this process, in worker processes and in processes of their own; several processes on one folder."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import socket
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from trainers.hegraph.__main__ import main
from trainers.hegraph.experiments import folder as folder_module
from trainers.hegraph.experiments.folder import HOLDER, LOCK, Locked, is_locked, lock_folder
from trainers.hegraph.experiments.record import peak_memory_mb
from trainers.hegraph.results.records import read_record
from trainers.hegraph.sweep import plan, workers
from trainers.hegraph.sweep.grid import Run
from trainers.hegraph.sweep.plan import Progress, do_runs, in_words
from trainers.hegraph.sweep.workers import DONE, FAILED, LOCKED, Result, attempt, next_run, run_in_workers
from trainers.hegraph.utils.errors import UserError, noted_interrupts


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


def test_a_run_of_another_seed_begins_in_a_process_as_quiet_as_the_first(runs, monkeypatch, recwarn):
    log = logging.getLogger("trainers.hegraph")

    def run(cfg, bank, opened):
        warnings.warn("something is odd", UserWarning, stacklevel=1)
        levels.append(log.level)
        log.setLevel(logging.DEBUG)
        return {"accuracy": None}

    levels: list[int] = []
    monkeypatch.setattr(workers, "run_one", run)
    warnings.simplefilter("default")
    log.setLevel(logging.INFO)
    assert [attempt(runs[0], verbose).message for verbose in (False, True)] == ["no test images"] * 2
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

        monkeypatch.setattr(workers, "run_one", run)
        assert attempt(runs[0]).message == "50.13"
    assert peaks[0] - peaks[1] > 300


def test_an_error_of_the_program_is_a_failure_and_a_record_that_is_there_stays_alone(runs, monkeypatch):
    def broken(cfg, bank, opened):
        raise ZeroDivisionError("of all things")

    done = attempt(runs[0])
    assert done.status == DONE and 0 < done.seconds < 100
    monkeypatch.setattr(workers, "run_one", broken)
    failed = [attempt(run) for run in runs[:2]]
    assert [(result.status, result.message) for result in failed] == [(FAILED, "ZeroDivisionError: of all things")] * 2
    assert not (runs[0].folder / "error.json").exists()
    failure = json.loads((runs[1].folder / "error.json").read_text())
    assert "in broken" in failure["traceback"]
    assert (failure["seed"], failure["command"]) == (1, runs[1].command())


def test_what_an_interrupt_has_turned_into_another_error_is_no_failure_of_the_run(runs, monkeypatch):
    def run(cfg, bank, opened):
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise ImportError("half a module")

    monkeypatch.setattr(workers, "run_one", run)
    with noted_interrupts(), pytest.raises(KeyboardInterrupt):
        attempt(runs[0])
    assert attempt(runs[0]).status == FAILED


# Workers


@pytest.fixture
def played(monkeypatch) -> list[ThreadPoolExecutor]:
    """Has workers be threads, of which the second has died before its first run, and run 2 ends the one that does it.

    Gives the workers that have been begun.
    """
    begun: list[ThreadPoolExecutor] = []

    def new_worker() -> ThreadPoolExecutor:
        begun.append(ThreadPoolExecutor(1))
        if len(begun) == 2:
            begun[-1].submit = lambda *_: (_ for _ in ()).throw(BrokenProcessPool)
        return begun[-1]

    def attempt(run: Run, verbose: bool) -> Result:
        if run.seed == 2:
            raise BrokenProcessPool
        return Result(run, DONE, str(verbose))

    monkeypatch.setattr(workers, "new_worker", new_worker)
    monkeypatch.setattr(workers, "attempt", attempt)
    return begun


def test_workers_share_threads_and_runs_and_one_that_dies_fails_its_run_alone(runs, played, monkeypatch, caplog):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    with caplog.at_level("INFO"):
        results = {result.run.seed: result for result in run_in_workers(runs, 2, verbose=True)}
        assert [results[seed].status for seed in range(8)] == [DONE] * 2 + [FAILED] + [DONE] * 5
        assert len(played) == 2 + 2
        [alone] = run_in_workers(runs[:1], 8)
        monkeypatch.delenv("OMP_NUM_THREADS")
        monkeypatch.setattr(workers, "cores", lambda: 1)
        assert len(list(run_in_workers(runs[3:5], 2))) == 2
    assert (results[0].message, alone.message) == ("True", "False")
    assert results[2].message.startswith("RuntimeError: its worker process was ended")
    assert json.loads((runs[2].folder / "error.json").read_text())["message"] == results[2].message
    assert "2 workers with OMP_NUM_THREADS=2 each" in caplog.text and "1 workers with OMP_NUM_THREADS=5" in caplog.text
    assert "2 workers with OMP_NUM_THREADS=1 each" in caplog.text
    assert "OMP_NUM_THREADS" not in os.environ


def test_a_worker_keeps_to_what_it_has_opened_and_takes_then_what_fewest_have_and_most_shots_first(tmp_path):
    def run(bank: str, shots: int = 1) -> Run:
        return Run(tmp_path, f"{bank}.safetensors", "vit_b32", "ZeroShot", shots, 1)

    (a, b), waiting = (run(bank).loads for bank in "ab"), [run("a", 2), run("b", 3), run("b", 4), run("a", 1)]
    assert next_run(waiting, a, [a, a]) == run("a", 2)
    assert next_run(waiting, None, [a]) == run("b", 4)
    assert next_run(waiting, None, [a, b]) == run("b", 4)
    assert next_run(waiting, None, [b, b, a]) == run("a", 2)
    assert next_run([*waiting, run("a", -1)], None, []) == run("a", -1)  # all images, which take longest


def test_what_is_started_as_a_worker_has_its_threads_and_hears_no_signal(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with workers.of_workers(3):
        assert os.environ["OMP_NUM_THREADS"] == "3"
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) >= {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    assert "OMP_NUM_THREADS" not in os.environ


@pytest.fixture
def half_done(runs) -> Path:
    """The folder of a run that was killed."""
    folder = runs[0].folder
    (folder / ".model.x.tmp").mkdir(parents=True)
    for name in (LOCK, HOLDER, ".result.json.x.tmp", ".model.x.tmp/file"):
        (folder / name).touch()
    return folder


def test_a_sweep_that_is_ended_kills_its_workers_and_removes_what_their_runs_have_half_done(
    runs, played, monkeypatch, half_done
):
    killed: list = []

    class Process:
        pid = 4711

        def kill(self) -> None:
            killed.append("it")

        def join(self) -> None:
            killed.append("gone")

    others = [Process()]
    children = iter([others, [*others, Process()]])
    monkeypatch.setattr(workers.multiprocessing, "active_children", lambda: next(children))
    monkeypatch.setattr(workers.os, "killpg", lambda *group: killed.append(group))
    monkeypatch.setattr(ThreadPoolExecutor, "submit", lambda *_: Future())

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(workers, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(run_in_workers(runs[:1], 1))
    assert killed == [(4711, signal.SIGKILL), "it", "gone"]
    assert not half_done.exists()


@pytest.fixture
def says(monkeypatch, tmp_path) -> Callable[..., Result]:
    """What has become of a run in a process of its own that does these lines of a shell."""
    python = tmp_path / "python"
    monkeypatch.setattr(workers.sys, "executable", str(python))

    def run_it(run: Run, *lines: str) -> Result:
        python.write_text("\n".join(["#!/bin/sh", 'echo "$@"', *lines]))
        python.chmod(0o755)
        return attempt(replace(run, separate=True), True)

    return run_it


def test_a_run_in_its_own_process_is_what_its_command_says(runs, says, capsys):
    first, second, third, fourth = runs[:4]
    attempt(first)
    assert says(first, "echo well").status == DONE
    words = capsys.readouterr().err.split()
    assert words[:4] == ["-m", "trainers.hegraph", "--features", first.source]
    assert words[-3:] == ["--output-dir", str(first.folder), "well"]
    assert says(second, "echo error: no such bank", "exit 2").message == "no such bank"
    assert says(third, "echo killed", "exit 9").message == "RuntimeError: killed"
    assert "--features" in json.loads((third.folder / "error.json").read_text())["traceback"]
    assert "has no record" in says(fourth, "echo well").message
    with lock_folder(fourth.folder):
        assert says(fourth, "exit 2").status == LOCKED


def test_an_interrupt_kills_the_process_of_a_run_and_removes_what_that_has_half_done(
    runs, says, monkeypatch, half_done
):
    class Interrupted:
        def write(self, line: str) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(workers.sys, "stderr", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        says(runs[0], "exec sleep 600")
    assert not half_done.exists()


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


def test_a_file_system_without_locks_is_warned_of_and_a_folder_that_cannot_be_written_refused(
    tmp_path, monkeypatch, caplog
):
    def acquire(*_: object, **__: object) -> None:
        raise OSError(codes[0], os.strerror(codes.pop(0)))

    codes = [errno.ENOLCK, errno.EACCES]
    monkeypatch.setattr(folder_module.FileLock, "acquire", acquire)
    with lock_folder(tmp_path / "run"):
        assert not (tmp_path / "run" / HOLDER).exists()
    assert "cannot be locked" in caplog.text and not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"cannot write .*: Permission denied"), lock_folder(tmp_path / "run"):
        pass


def test_a_single_run_or_test_on_a_locked_folder_is_refused_in_one_line_unless_it_is_finished(
    tiny_bank, tmp_path, capsys
):
    alone = ["--features", str(tiny_bank), "--shots", "1", "OPTIM.MAX_EPOCH", "1"]
    train = ["--output-dir", str(tmp_path / "o"), *alone]
    test = ["--output-dir", str(tmp_path / "t"), "--eval-only", "--model-dir", str(tmp_path / "o"), *alone]
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


def test_what_another_process_is_at_is_waited_for_and_is_recognised_or_done_then(runs, monkeypatch, caplog):
    free, finished, failed, others = runs[:4]
    locked, looks = {finished.folder, failed.folder, others.folder}, []

    def other_process(seconds: float) -> None:
        """It ends one of its runs while this process waits."""
        looks.append(seconds)
        if len(looks) == 1:
            attempt(finished)
            workers.record_failure(failed, UserError("it went wrong"))
            attempt(replace(others, method="TipAdapter"))
            locked.clear()

    monkeypatch.setattr(plan, "is_locked", lambda folder: folder in locked)
    monkeypatch.setattr(plan.time, "sleep", other_process)
    begun, before = [], {}

    def start(left: list[Run]) -> list[Result]:
        begun.append([run.seed for run in left])
        before.update((run.folder, read_record(run.folder)) for run in left)
        return [attempt(run) for run in left]

    with caplog.at_level("INFO"):
        progress = do_runs(runs[:4], start)
    assert (looks, begun, progress.done) == ([plan.POLL], [[0], [1, 2, 3]], 3)
    assert "3 runs are done by another process" in caplog.text
    assert [run.seed for run, _ in progress.failures] == [3]
    assert before[free.folder] is None
    assert before[finished.folder] == read_record(finished.folder)
    assert read_record(others.folder)["trainer"] == "TipAdapter"


def test_a_run_that_is_locked_meanwhile_comes_again(runs, monkeypatch):
    monkeypatch.setattr(plan, "POLL", 0)
    answers = {runs[0]: [LOCKED, DONE], runs[1]: [DONE], runs[2]: [FAILED]}
    progress = do_runs(runs[:3], lambda left: [Result(run, answers[run].pop(0), "") for run in left])
    assert progress.done == 2
    assert [run.seed for run, _ in progress.failures] == [2]


def test_a_line_of_progress_counts_and_says_how_long_it_will_take(runs, caplog, monkeypatch):
    clock = iter([120.0, 160.0])
    monkeypatch.setattr(plan, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with caplog.at_level("INFO"):
        progress = Progress(4, started=100.0)
        progress.count(Result(runs[0], DONE, "91.00", 2.0))
        progress.count(Result(runs[1], FAILED, "no space", 1.0))
    assert caplog.messages == [
        "[1/4] tiny ZeroShot vit_b32, 1 shots, seed 0: 91.00 in 2.0 s (3 left, 20 s a run, 60 s to go)",
        "[2/4] tiny ZeroShot vit_b32, 1 shots, seed 1: failed: no space (2 left, 1 failed, 30 s a run, 60 s to go)",
    ]
    times = (0.44, 9.96, 89, 91, 5399, 5400)
    assert list(map(in_words, times)) == ["0.4 s", "10.0 s", "89 s", "2 min", "90 min", "1.5 h"]


# Real processes, kills and signals


@pytest.fixture
def at_work(tmp_path) -> Callable[[], list[Path]]:
    """The notes of who is in the middle of a run."""
    return lambda: list((tmp_path / "out").rglob(HOLDER))


@pytest.mark.slow
def test_real_workers_leave_what_one_process_leaves(tiny_bank, tmp_path, left_by, monkeypatch):
    swept = ["sweep", "--datasets", str(tiny_bank), "--configs", "vit_b32", "--shots", "2", "--seeds", "1", "2"]
    assert main([*swept, "--output", str(tmp_path / "here")]) == 0
    monkeypatch.setenv("OMP_NUM_THREADS", str(2 * torch.get_num_threads()))
    assert main([*swept, "--output", str(tmp_path / "there"), "--workers", "2"]) == 0
    assert left_by(tmp_path / "there") == left_by(tmp_path / "here") != {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "send", "number"),
    [([], os.kill, signal.SIGTERM), (["--workers", "2", "--separate"], os.killpg, signal.SIGINT)],
    ids=["docker stop", "Ctrl-C"],
)
def test_a_sweep_that_is_ended_leaves_no_lock_and_the_same_command_goes_on(
    long_grid, tmp_path, start, hold, wait_for, at_work, left_undone, flags, send, number, capsys
):
    sweep = start(*long_grid, *flags)
    wait_for(lambda: left_undone() < 4, sweep)
    held, _ = hold(at_work, sweep)
    send(sweep.pid, number)
    with suppress(ProcessLookupError):  # it has been killed
        os.kill(held, signal.SIGCONT)
    out, error = sweep.communicate(timeout=240)  # its workers have let go of stderr too
    assert (sweep.returncode, out) == (130, ""), error
    assert "Traceback" not in error
    assert not list(tmp_path.rglob("error.json"))
    assert not list(tmp_path.rglob(LOCK))
    assert left_undone()
    assert (main(long_grid), left_undone()) == (0, 0)
    assert "finished before" in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_worker_fails_its_run_alone_and_a_killed_sweep_ends_its_workers_silently(
    long_grid, tmp_path, start, hold, wait_for, at_work, left_undone
):
    sweep = start(*long_grid, "--workers", "2")
    pid, folder = hold(at_work, sweep)
    os.kill(pid, signal.SIGKILL)
    wait_for((folder / "error.json").exists, sweep)
    assert "worker process was ended" in json.loads((folder / "error.json").read_text())["message"]
    held, _ = hold(at_work, sweep)
    sweep.kill()
    os.kill(held, signal.SIGCONT)
    _, error = sweep.communicate(timeout=240)  # the workers hold stderr until they end
    assert "Traceback" not in error
    for record in tmp_path.rglob("result.json"):
        (record.parent / LOCK).touch()  # as one that was killed between its record and its end
    assert (main([*long_grid, "--retry-failed"]), left_undone()) == (0, 0)
    assert not list(tmp_path.rglob(LOCK))
