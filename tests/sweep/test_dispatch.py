"""How runs are sent to a cluster and what becomes of them, with a cluster that is played: no process is started."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from trainers.hegraph.experiments.lock import LOCK, is_locked, lock_folder
from trainers.hegraph.experiments.run import run as run_alone
from trainers.hegraph.results.records import read_record
from trainers.hegraph.sweep import dispatch as module
from trainers.hegraph.sweep.cluster import Demand
from trainers.hegraph.sweep.dispatch import AHEAD, TRIES, Dispatch
from trainers.hegraph.sweep.execute import DONE, FAILED, LOCKED
from trainers.hegraph.sweep.grid import Run
from trainers.hegraph.sweep.remote import Answer, Job, do_run
from trainers.hegraph.sweep.run_files import read_files, write_files
from trainers.hegraph.training.checkpoints import CHECKPOINT
from trainers.hegraph.utils.errors import UserError

ray = pytest.importorskip("ray", reason="Ray is not installed")


class Played:
    """A stand-in for the module `ray`: one machine of two CPUs, which answers the oldest run first.

    Args:
        answer: What a worker does with a job; called when its result is asked for.
    """

    exceptions = ray.exceptions
    util = ray.util

    def __init__(self, answer: Callable[[Job], Answer]) -> None:
        self.answer, self.away, self.most, self.store = answer, {}, 0, {}

    def remote(self, function: Callable) -> Played:
        return self

    def options(self, **_: object) -> SimpleNamespace:
        return SimpleNamespace(remote=self.send)

    def send(self, job: object) -> int:
        number = len(self.store)
        self.store[number] = self.away[number] = job
        self.most = max(self.most, len(self.away))
        return number

    def put(self, value: object) -> int:
        self.store[len(self.store)] = value
        return len(self.store) - 1

    def wait(self, references: Sequence[int], **_: object) -> tuple[list[int], list[int]]:
        return [min(references)], []

    def get(self, reference: int) -> Answer:
        return self.answer(self.away.pop(reference))

    def nodes(self) -> list[dict]:
        return [{"Alive": True, "NodeID": "one", "Resources": {"CPU": 2.0}}]


@pytest.fixture
def runs(tiny_bank, tmp_path) -> list[Run]:
    return [Run(tmp_path / f"seed{n}", str(tiny_bank), "vit_b32", "ZeroShot", 1, n) for n in range(8)]


@pytest.fixture
def done_here(monkeypatch, tmp_path) -> Callable[[Job], Answer]:
    """Does a job as a worker would, whose temporary folder holds the bank already."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def do(job: Job) -> Answer:
        bank = tmp_path / job.bank.place
        bank.parent.mkdir(parents=True, exist_ok=True)
        bank.write_bytes(Path(job.run.source).read_bytes())
        return do_run(job)

    return do


def test_runs_are_done_a_bounded_number_at_a_time_and_no_lock_is_left(runs, done_here):
    played = Played(done_here)
    dispatch = Dispatch(played, Demand())
    results = []
    for result in dispatch.results(runs):
        results.append(result)
        assert len(dispatch._away) <= AHEAD * 2
        assert all(is_locked(away.run.folder) for away in dispatch._away.values())
    assert [result.run for result in results] == runs
    assert {result.status for result in results} == {DONE}
    assert played.most == AHEAD * 2
    assert all(read_record(run.folder)["seed"] == run.seed for run in runs)
    assert not [path for run in runs for path in run.folder.rglob(LOCK)]
    assert dispatch._banks == {}, "a bank stays in the object store after its last run"


def test_a_run_that_is_lost_is_sent_again_and_at_last_has_failed(runs, done_here):
    lost = {0: 1, 1: TRIES - 1, 2: TRIES}

    def answer(job: Job) -> Answer:
        if lost.get(job.run.seed, 0):
            lost[job.run.seed] -= 1
            raise ray.exceptions.WorkerCrashedError
        return done_here(job)

    results = {result.run.seed: result for result in Dispatch(Played(answer), Demand()).results(runs[:4])}
    assert [results[n].status for n in range(4)] == [DONE, DONE, FAILED, DONE]
    failure = json.loads((runs[2].folder / "error.json").read_text())
    assert f"lost {TRIES} times (WorkerCrashedError)" in failure["message"]
    assert not is_locked(runs[2].folder)


def test_a_full_disk_fails_the_run_and_leaves_nothing_half_written(runs, done_here, disk_full_after, monkeypatch):
    write = module.write_files

    def full_for_the_first(folder: Path, files: dict) -> None:
        if folder != runs[0].folder:
            return write(folder, files)
        with disk_full_after(200):
            write(folder, files)

    monkeypatch.setattr(module, "write_files", full_for_the_first)
    first, second = Dispatch(Played(done_here), Demand()).results(runs[:2])
    assert (first.status, second.status) == (FAILED, DONE)
    assert first.message.startswith("cannot write ") and "File too large" in first.message
    assert [path.name for path in runs[0].folder.iterdir()] == ["error.json"]


def test_a_worker_with_another_package_ends_the_sweep_in_one_line(runs, done_here, monkeypatch):
    monkeypatch.setattr(module, "state_here", lambda: {"version": "0.1", "sources": "0" * 64})
    dispatch = Dispatch(Played(done_here), Demand())
    with pytest.raises(UserError, match=r" has version .* and this machine another; install the same"):
        list(dispatch.results(runs))
    dispatch.close()
    assert not any(run.folder.exists() for run in runs)


def test_a_folder_that_another_process_has_is_left_to_it(runs, done_here):
    with lock_folder(runs[0].folder):
        first, second = Dispatch(Played(done_here), Demand()).results(runs[:2])
    assert (first.status, second.status) == (LOCKED, DONE)


def test_a_bank_that_has_gone_fails_its_runs_and_no_others(runs, done_here, tiny_bank, tmp_path):
    other = tmp_path / "other.safetensors"
    other.write_bytes(tiny_bank.read_bytes())
    kept = Run(tmp_path / "kept", str(other), "vit_b32", "ZeroShot", 1, 1)
    tiny_bank.unlink()
    first, second = Dispatch(Played(done_here), Demand()).results([runs[0], kept])
    assert (first.status, second.status) == (FAILED, DONE)
    assert f"cannot read the feature bank {tiny_bank}: No such file" in first.message


def test_what_a_failed_run_says_of_itself_it_says_with_the_names_that_the_user_knows(runs, done_here, tiny_bank):
    tiny_bank.write_bytes(b"no bank")
    [result] = Dispatch(Played(done_here), Demand()).results(runs[:1])
    failure = json.loads((runs[0].folder / "error.json").read_text())
    assert result.status == FAILED
    assert f"cannot read the feature bank {tiny_bank}" in result.message
    assert failure["message"].startswith(f"cannot read the feature bank {tiny_bank}")
    assert failure["command"] == runs[0].command()


def test_an_interrupted_run_goes_on_from_its_checkpoint_which_is_gone_when_it_is_finished(
    tiny_bank, tmp_path, done_here, stopped_at_checkpoint, caplog
):
    keys = (("TRAIN.CHECKPOINT_FREQ", 3), ("OPTIM.MAX_EPOCH", 6), ("TRAINER.HEGRAPHADAPTER.MIN_STEPS", 0))
    run = Run(tmp_path / "out", str(tiny_bank), "vit_b32", "HeGraphAdapter", 1, 1, keys)
    with stopped_at_checkpoint(), pytest.raises(KeyboardInterrupt):
        run_alone(run.configuration(), run.bank)
    assert (run.folder / CHECKPOINT).exists()
    (run.folder / "error.json").write_text("{}")
    with caplog.at_level("INFO"):
        [result] = Dispatch(Played(done_here), Demand(), verbose=True).results([run])
    assert result.status == DONE
    assert "after epoch 3 of 6" in caplog.text
    assert {CHECKPOINT, "error.json"}.isdisjoint(path.name for path in run.folder.iterdir())


def test_a_damaged_checkpoint_fails_the_run_and_stays_where_it_is(runs, done_here):
    folder = runs[0].folder
    folder.mkdir()
    (folder / CHECKPOINT).write_bytes(b"damaged")
    [result] = Dispatch(Played(done_here), Demand()).results(runs[:1])
    assert result.status == FAILED
    assert f"the checkpoint {folder / CHECKPOINT} is damaged" in result.message
    assert {path.name: path.read_bytes() for path in folder.glob("*.pt")} == {CHECKPOINT: b"damaged"}
    assert read_record(folder) is None


def test_files_are_written_as_they_were_read_and_folders_are_replaced_whole(tmp_path):
    files = {"split.json": b"{}", "model/config.json": b"1", "model/deep/er": b"2", "result.json": b"{}"}
    write_files(tmp_path / "run", files)
    assert read_files(tmp_path / "run") == files
    write_files(tmp_path / "run", {"model/config.json": b"3"})
    assert read_files(tmp_path / "run") == {"split.json": b"{}", "model/config.json": b"3", "result.json": b"{}"}
