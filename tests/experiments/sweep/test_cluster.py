"""Sweeps on a Ray cluster: a fake one without processes, and a real one with several nodes on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from tools.free_ports import free_port
from trainers.hegraph.experiments.run import run as run_alone
from trainers.hegraph.experiments.sweep import cluster as module
from trainers.hegraph.experiments.sweep.cluster import AHEAD, Cluster, connected, do_run
from trainers.hegraph.experiments.sweep.grid import Run
from trainers.hegraph.experiments.sweep.workers import DONE, FAILED, LOCKED
from trainers.hegraph.method.training.loop import CHECKPOINT
from trainers.hegraph.results.records import read_record
from trainers.hegraph.utils.errors import UserError
from trainers.hegraph.utils.locks import HOLDER, LOCK, is_locked, lock_folder


class Lost(Exception):
    """Fake of Ray's errors of lost workers and machines."""


class TaskError(Lost):
    """Fake of Ray's error of a function that raises."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause


class FakeRay:
    """Fake of the module `ray`: one machine with two CPUs, which answers the oldest run first.

    Args:
        answer: Function of a worker, called when its result is requested.
    """

    exceptions = SimpleNamespace(RayError=Lost, RayTaskError=TaskError)

    def __init__(self, answer: Callable = do_run) -> None:
        self.answer, self.submitted, self.most, self.count, self.banks = answer, {}, 0, 0, 0

    def remote(self, function: Callable) -> FakeRay:
        return self

    def options(self, **resources: object) -> SimpleNamespace:
        self.resources = resources
        return SimpleNamespace(remote=self.submit)

    def submit(self, *job: object) -> int:
        self.count += 1
        self.submitted[self.count] = job
        self.most = max(self.most, len(self.submitted))
        return self.count

    def put(self, value: object) -> object:
        self.banks += 1
        return value

    def wait(self, references: Sequence[int], **_: object) -> tuple[list[int], list[int]]:
        return [min(references)], []

    def get(self, reference: int) -> tuple:
        return self.answer(*self.submitted.pop(reference))

    def nodes(self) -> list[dict]:
        return [{"Alive": True, "Resources": {"CPU": 2.0}}, {"Alive": False, "Resources": {"CPU": 50.0}}]


def test_cluster_writes_the_files_of_a_local_run(runs, tmp_path, files_of, monkeypatch):
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))
    ray = FakeRay()
    cluster = Cluster(ray, 1, 0, False)
    assert cluster.runs_at_a_time() == 2
    results = []
    for result in cluster.results(runs):
        results.append(result)
        assert all(is_locked(run.folder) for run, _ in cluster.submitted.values())
    assert [(result.run, result.status) for result in results] == [(run, DONE) for run in runs]
    assert (ray.most, ray.banks) == (AHEAD * 2, 1)
    assert ray.resources == {"num_cpus": 1.0, "num_gpus": 0.0, "max_retries": 3, "retry_exceptions": False}
    assert all(read_record(run.folder)["seed"] == run.seed for run in runs)
    assert not [path for run in runs for path in run.folder.rglob(LOCK)]
    assert not list(tmp_path.glob("hegraph-run-*"))
    alone = Run(tmp_path / "alone", *list(vars(runs[3]).values())[1:])
    run_alone(alone.configuration(), alone.bank)
    assert results[3].message == f"{read_record(alone.folder)['accuracy']:.2f}"
    assert files_of(alone.folder) == files_of(runs[3].folder) != {}


def test_worker_with_another_version_ends_the_sweep(runs):
    def answer(*job: object) -> tuple:
        raise TaskError(ModuleNotFoundError("No module named 'hegraph'"))

    with pytest.raises(UserError, match=r"expected version 0\.1 as on the driver, got version .*; install"):
        do_run(runs[0], runs[0].configuration(), None, None, ".", "version 0.1", False)
    cluster = Cluster(FakeRay(answer), 1, 0, False)
    with pytest.raises(UserError, match="a Ray worker failed: No module named 'hegraph'"):
        list(cluster.results(runs))
    cluster.ray = None  # `close` sends no request to Ray
    cluster.close()
    assert not any(run.folder.exists() for run in runs)


def test_lost_runs_and_full_disks_are_failures(runs, disk_full_after, monkeypatch):
    unpack = module.unpack

    def answer(run: Run, *job: object) -> tuple:
        if run.seed < 2:
            raise Lost if run.seed else TaskError(OSError(28, "No space left on device"))
        return do_run(run, *job)

    def full_for_one(packed: bytes, folder: Path) -> None:
        with disk_full_after(200 if folder == runs[2].folder else 10**9):
            unpack(packed, folder)

    monkeypatch.setattr(module, "unpack", full_for_one)
    results = {result.run.seed: result for result in Cluster(FakeRay(answer), 1, 0, False).results(runs[:4])}
    assert [results[n].status for n in range(4)] == [FAILED, FAILED, FAILED, DONE]
    for run, words in zip(runs, ("No space left", "(Lost)", "File too large")):
        assert words in json.loads((run.folder / "error.json").read_text())["message"] == results[run.seed].message
        assert [path.name for path in run.folder.iterdir()] == ["error.json"]


def test_foreign_folders_are_not_changed(runs):
    other = Run(runs[2].folder, *list(vars(runs[2]).values())[1:3], "TipAdapter", 1, 2)
    for run in (runs[1], other):
        run_alone(run.configuration(), run.bank)
    before = (other.folder / "result.json").read_bytes()
    with lock_folder(runs[0].folder):
        results = list(Cluster(FakeRay(), 1, 0, False).results(runs[:3]))
    assert [result.status for result in results] == [LOCKED, DONE, FAILED]
    assert results[1].message == "done by another process" and str(other.folder) in results[2].message
    assert (other.folder / "result.json").read_bytes() == before
    assert not (other.folder / "error.json").exists()


def test_missing_bank_fails_its_runs_only(runs, tmp_path):
    other, gone = tmp_path / "other.safetensors", tmp_path / "gone.safetensors"
    other.write_bytes(b"no bank")
    damaged, lost = (Run(tmp_path / path.stem, str(path), "vit_b32", "ZeroShot", 1, 1) for path in (other, gone))
    results = {result.run: result for result in Cluster(FakeRay(), 1, 0, False).results([damaged, lost, runs[0]])}
    assert [results[run].status for run in (damaged, lost, runs[0])] == [FAILED, FAILED, DONE]
    assert str(gone) in results[lost].message
    failure = json.loads((damaged.folder / "error.json").read_text())
    assert str(other) in failure["message"] and str(other) in results[damaged].message
    assert failure["command"] == damaged.command()


def test_interrupted_run_continues_from_its_checkpoint(runs, tmp_path, stopped_at_checkpoint, caplog):
    keys = (("TRAIN.CHECKPOINT_FREQ", 3), ("OPTIM.MAX_EPOCH", 6), ("TRAINER.HEGRAPHADAPTER.MIN_STEPS", 0))
    run = Run(tmp_path / "out", runs[0].source, "vit_b32", "HeGraphAdapter", 1, 1, keys)
    with stopped_at_checkpoint(), pytest.raises(KeyboardInterrupt):
        run_alone(run.configuration(), run.bank)
    assert (run.folder / CHECKPOINT).exists()
    (run.folder / "error.json").write_text("{}")
    with caplog.at_level("INFO"):
        [result] = Cluster(FakeRay(), 1, 0, True).results([run])
    assert result.status == DONE and "after epoch 3 of 6" in caplog.text
    assert {CHECKPOINT, "error.json"}.isdisjoint(path.name for path in run.folder.iterdir())


@pytest.mark.parametrize(("cpus", "gpus", "count"), [(3, 0, 2), (0.5, 0, 16), (1, 0.25, 4), (9, 0, 0)])
def test_number_of_simultaneous_runs(runs, caplog, monkeypatch, cpus, gpus, count):
    ray = FakeRay()
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0}}])
    cluster = Cluster(ray, cpus, gpus, False)
    assert cluster.runs_at_a_time() == count
    if not count:
        assert [result.status for result in cluster.results(runs[:1])] == [DONE]
        assert "no machine of the Ray cluster has 9 CPUs" in caplog.text


# Connection


def test_missing_ray_is_refused(long_grid, cli_error, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'ray[serve]>=2.49'\n" in cli_error(*long_grid, "--ray")


@pytest.mark.parametrize(("cpus", "gpus"), [(0, 0), (1.5, 0), (1, float("nan")), (1, -1), (1, 2.5)])
def test_invalid_resources_are_refused(cpus, gpus, refused):
    with refused("ray.resources", "expected --cpus-per-run above 0"), connected("local", cpus, gpus, False):
        pass


def test_unreachable_clusters_are_refused(long_grid, cli_error):
    assert "--workers and --ray exclude each other" in cli_error(*long_grid, "--ray", "auto", "--workers", "2")
    pytest.importorskip("ray", reason="Ray is not installed")
    for address in (f"127.0.0.1:{free_port()}", "ray://head:port"):
        error = cli_error(*long_grid, "--ray", address)
        assert error.startswith(f"error: no Ray cluster answers at {address} (")


def test_connection_sets_threads_and_keeps_signal_handlers(monkeypatch):
    arguments, shutdowns = {}, []

    def init(**values: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Ray sets a handler, too
        arguments.update(values)

    before = signal.getsignal(signal.SIGTERM)
    ray = FakeRay()
    ray.init, ray.shutdown, ray.cluster_resources = init, lambda: shutdowns.append(1), lambda: {"CPU": 2.0}
    monkeypatch.setitem(sys.modules, "ray", ray)
    for cpus, threads in ((2.0, "2"), (0.5, "1")):
        with connected("local", cpus, 0, False) as found:
            assert found.ray is ray and (arguments["address"], arguments["include_dashboard"]) == ("local", False)
            assert arguments["runtime_env"] == {"env_vars": {"OMP_NUM_THREADS": threads}}
            assert signal.getsignal(signal.SIGTERM) == before
    with (
        pytest.raises(UserError, match="expected a machine with 3 CPUs .* got 1 smaller"),
        connected("auto", 3, 0, False),
    ):
        pass
    assert len(shutdowns) == 3


# A real cluster


@pytest.fixture
def nodes() -> Iterator:
    """Ray cluster of two nodes with one CPU each, `other` is the second one; its temporary folder is `temporary`.

    The folder is not one of pytest's, because the paths of Ray's sockets have at most 107 bytes.
    """
    pytest.importorskip("ray", reason="Ray is not installed")
    from ray.cluster_utils import Cluster as Nodes

    folder = tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True)
    with folder as temporary, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", temporary)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # by default workers yield to all other tests
        node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}  # bytes; Ray allows no less
        found = Nodes(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        try:
            found.other = found.add_node(**node)
            found.temporary = Path(temporary)
            yield found
        finally:
            found.shutdown()


@pytest.mark.slow
def test_real_cluster_repeats_lost_runs(nodes, long_grid, tmp_path, start, pause_run, wait_for, count_pending):
    words, at_work = [*long_grid, "--ray", nodes.address], partial(nodes.temporary.glob, f"hegraph-run-*/run/{HOLDER}")
    first = start(*words)
    killed, _ = pause_run(at_work, first)
    os.kill(killed, signal.SIGKILL)  # as the system does when memory runs out
    wait_for(lambda: count_pending() < 4, first)
    pause_run(at_work, first)  # not all runs end before the driver is killed
    first.kill()
    first.communicate()
    before = 4 - count_pending()
    assert 0 < before < 4
    again = start(*words)
    paused, _ = pause_run(at_work, again)
    nodes.remove_node(nodes.other, allow_graceful=False)
    with suppress(ProcessLookupError):
        os.kill(paused, signal.SIGCONT)
    out, log = again.communicate(timeout=300)
    assert (again.returncode, count_pending()) == (0, 0), log
    assert "Ray cluster of 2 machines" in log and f"{before} finished before" in out
    assert not list((tmp_path / "out").rglob("error.json")) and not list((tmp_path / "out").rglob(LOCK))


# SLURM

SCRIPT = Path(__file__).parents[3] / "scripts" / "hegraph" / "slurm_sweep.sh"


@pytest.mark.slow
def test_slurm_script_starts_ray_and_the_sweep(tmp_path):
    for name, line in (("scontrol", r"printf 'node7\nnode8\n'"), ("srun", """printf '%s\\n' "$@" """)):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "32"}
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "PYTHON": "py"}
    words = ["GRID.yaml", "--output", "a folder"]
    ran = subprocess.run(["bash", str(SCRIPT), *words], env=environment | job, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    printed = ran.stdout.splitlines()
    sweep = printed.index("--") + 1
    assert printed[sweep:] == ["py", "-m", "trainers.hegraph", "sweep", "--ray", "auto", *words]
    for flag, value in (("--nodes", "2"), ("--min-nodes", "2"), ("--address", "node7:6379"), ("--num-cpus", "32")):
        assert printed[printed.index(flag) + 1] == value
    outside = subprocess.run(["bash", str(SCRIPT)], env=environment, capture_output=True, text=True)
    assert outside.returncode == 2 and outside.stderr.startswith("error: not in a SLURM job; run: sbatch ")
