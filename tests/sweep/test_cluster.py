"""Sweeps on a Ray cluster of several nodes on this machine: the same results, whatever is lost on the way."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from trainers.hegraph.__main__ import main
from trainers.hegraph.experiments.lock import HOLDER, is_locked
from trainers.hegraph.sweep import cluster as module
from trainers.hegraph.sweep.__main__ import grid_of, parse_arguments
from trainers.hegraph.sweep.cluster import Demand
from trainers.hegraph.utils.errors import UserError

SLOW = ("TRAINER.HEGRAPHADAPTER.MIN_STEPS", "600")  # so that a run takes a while
STORE = 80 * 2**20  # bytes of a node's object store; Ray allows no less


def patiently(start: Callable[[], Any], tries: int = 3) -> Any:
    """Starts a node of Ray, which gives its own processes 15 s to start: too little where many others run."""
    for left in reversed(range(tries)):
        try:
            return start()
        except Exception as error:
            if not left or "timed out during startup" not in str(error):
                raise
    raise AssertionError


@pytest.fixture(scope="module")
def nodes() -> Iterator:
    """The head and another node, of one CPU each; their temporary folder is `nodes.temporary`.

    It is none of pytest's, since the paths of Ray's sockets may have 107 bytes.
    """
    pytest.importorskip("ray", reason="Ray is not installed")
    from ray.cluster_utils import Cluster

    folder = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
    with folder as temporary, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", temporary)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        node = {"num_cpus": 1, "object_store_memory": STORE}
        cluster = patiently(lambda: Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False}))
        try:
            cluster.other = patiently(lambda: cluster.add_node(**node))
            cluster.temporary = Path(temporary)
            yield cluster
        finally:
            cluster.shutdown()


@pytest.fixture
def grid(tiny_bank, tmp_path) -> list[str]:
    output = str(tmp_path / "out")
    return ["sweep", "--datasets", str(tiny_bank), "--configs", "vit_b32", "--shots", "1", "--output", output]


def records(tmp_path: Path) -> int:
    return len(list((tmp_path / "out").rglob("result.json")))


def at_work(nodes) -> Iterator[Path]:
    """The notes of workers that are in the middle of a run."""
    return nodes.temporary.glob(f"hegraph-run-*/run/{HOLDER}")


def test_a_cluster_leaves_what_this_process_leaves_of_runs_that_are_done_and_of_runs_that_fail(
    nodes, grid, tmp_path, start, left_by
):
    grid += ["--methods", "TaskRes", "LinearProbe", "HeGraphAdapter", "--seeds", "1", "2"]
    grid += ["--vary", "TRAINER.HEGRAPHADAPTER.FEATURES.MODE", "bank", "online"]  # a bank cannot be encoded online
    swept = start(*grid, "--ray", nodes.address)
    _, said = swept.communicate(timeout=300)
    assert swept.returncode == 1, said
    assert "Ray cluster of 2 machines" in said
    found = left_by(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "away")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert main(grid) == 1
    finally:
        torch.set_num_threads(threads)
    expected = left_by(tmp_path / "out")
    assert len([name for name in expected if name.endswith("result.json")]) == 6
    assert len([name for name in expected if name.endswith("error.json")]) == 6
    for failure in (value for name in expected for value in (found, expected) if name.endswith("error.json")):
        for entry in failure.values():
            for changing in ("pid", "failed_at", "traceback") if isinstance(entry, dict) else ():
                entry.pop(changing, None)
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []
    assert list(nodes.temporary.glob("hegraph-*")) == [], "workers leave files behind"


def test_the_run_of_a_killed_worker_is_done_again_and_a_killed_driver_goes_on(
    nodes, grid, tmp_path, start, hold, wait_for
):
    grid += ["--seeds", *"1234", "--ray", nodes.address, *SLOW]
    first = start(*grid)
    killed, _ = hold(lambda: at_work(nodes), first)
    os.kill(killed, signal.SIGKILL)  # as the system does when memory runs out
    hold(lambda: at_work(nodes), first)  # so that not all are done before the driver is killed
    wait_for(lambda: records(tmp_path), first)
    first.kill()
    _, said = first.communicate()
    assert "its worker or machine was lost (WorkerCrashedError); it is sent again" in said
    before = records(tmp_path)
    assert before < 4
    again = start(*grid)
    out, said = again.communicate(timeout=300)
    assert again.returncode == 0, said
    assert f"{before} finished before" in out
    assert records(tmp_path) == 4
    assert not list((tmp_path / "out").rglob("error.json"))
    # The lock file of a run that the killed driver had just finished may lie there, but nobody holds it
    assert not [record for record in (tmp_path / "out").rglob("result.json") if is_locked(record.parent)]


def refused(nodes, grid: list[str], capsys, *words: str) -> str:
    assert main([*grid, "--ray", nodes.address, *words]) == 2
    out, said = capsys.readouterr()
    assert out == ""
    [line] = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in said
    return line


def test_a_machine_with_another_version_is_named_and_so_is_a_demand_that_none_can_meet(
    nodes, grid, tmp_path, capsys, monkeypatch
):
    assert "a run takes 3 CPUs, and none of the 2 machines" in refused(nodes, grid, capsys, "--cpus-per-run", "3")
    monkeypatch.setattr(module, "state_here", lambda: {"version": "0.1", "sources": "f" * 64})
    line = refused(nodes, grid, capsys)
    assert (
        "has version 0.1 of trainers.hegraph (sources ffffffff); install the same on all machines"
        in line.split("this one ")[1]
    )
    assert not (tmp_path / "out").exists()


def test_a_node_that_is_lost_has_its_runs_done_by_the_others(nodes, grid, tmp_path, start, hold):
    swept = start(*grid, "--seeds", *"1234", "--ray", nodes.address, *SLOW)
    held = [hold(lambda: at_work(nodes), swept)[0] for _ in range(2)]  # each node has one CPU, and does one run
    nodes.remove_node(nodes.other, allow_graceful=False)
    for worker in held:
        os.kill(worker, signal.SIGCONT)
    _, said = swept.communicate(timeout=300)
    assert swept.returncode == 0, said
    assert "it is sent again" in said
    assert records(tmp_path) == 4


# What is asked for wrongly


def test_without_ray_one_line_says_how_to_install_it(grid, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main([*grid, "--ray"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --ray needs Ray, which is not installed")
    assert "pip install 'hegraph-adapter[ray]'" in said
    assert said.count("\n") == 1


def test_an_address_that_nobody_answers_at_is_one_line_and_never_a_wait_without_end(grid, capsys, monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed")
    monkeypatch.setattr(module, "ANSWERED_WITHIN", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert main([*grid, "--ray", address]) == 2
    assert main([*grid, "--ray", address]) == 2
    waited, refused = capsys.readouterr().err.splitlines()
    assert waited.startswith(f"error: no Ray cluster answers at {address} (no answer in 3 s)")
    assert refused.startswith(f"error: no Ray cluster answers at {address} (Connection refused)")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--ray", "head"), "--ray takes local, auto or HOST:PORT of the cluster's head"),
        (("--ray", "ray://head:10001"), "--ray takes local, auto or HOST:PORT"),
        (("--ray", "auto", "--workers", "2"), "--workers are of this machine, and --ray has its own"),
        (("--ray", "auto", "--cpus-per-run", "0"), "--cpus-per-run must be above 0, got 0"),
        (("--ray", "auto", "--cpus-per-run", "1.5"), "--cpus-per-run above 1 must be a whole number, got 1.5"),
        (("--ray", "auto", "--gpus-per-run", "-1"), "--gpus-per-run must be at least 0, got -1"),
    ],
)
def test_wrong_words_for_a_cluster_are_one_clear_line(grid, capsys, words, said):
    assert main([*grid, *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_without_an_address_ray_takes_no_other_word_for_it(tmp_path):
    file = tmp_path / "grid.yaml"
    file.write_text("datasets: [digits]\n")
    for words in (["--ray"], ["--ray", "OPTIM.LR", "0.5"], ["--ray", "--seeds", "1"], ["--ray", str(file)]):
        assert parse_arguments(words).ray == "local"
    assert parse_arguments(["--ray", "auto", str(file)]).ray == "auto"
    assert parse_arguments([]).ray is None
    assert grid_of(parse_arguments(["--ray", str(file), "OPTIM.LR", "0.5"]))[0] == file
    assert grid_of(parse_arguments(["--ray", "OPTIM.LR", "0.5"]))[1]["set"] == {"OPTIM.LR": "0.5"}


def test_as_many_runs_fit_a_machine_as_their_demands_say():
    machine = {"CPU": 8.0, "GPU": 1.0}
    assert [Demand(*demand).times_in(machine) for demand in [(1, 0), (3, 0), (0.5, 0), (1, 0.25), (1, 1), (9, 0)]] == [
        8, 2, 16, 4, 1, 0,
    ]  # fmt: skip
    assert [Demand(cpus).threads for cpus in (0.5, 1, 4)] == [1, 1, 4]
    with pytest.raises(UserError):
        Demand(float("nan"))


def test_a_dry_run_asks_no_cluster(grid, capsys):
    assert main([*grid, "--ray", "nowhere.invalid:1", "--dry-run"]) == 0
    assert "3 runs to do" in capsys.readouterr().out


# SLURM

SCRIPT = Path(__file__).parents[2] / "scripts" / "hegraph" / "slurm_sweep.sh"


def test_shellcheck_finds_nothing_in_the_script_for_slurm():
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    checked = subprocess.run([shellcheck, str(SCRIPT)], capture_output=True, text=True)
    assert (checked.returncode, checked.stdout) == (0, "")


def test_the_script_for_slurm_starts_ray_on_every_node_and_the_sweep_with_its_words(tmp_path):
    for name, line in (("scontrol", r"printf 'node7\nnode8\n'"), ("srun", """printf '%s\\n' "$@" """)):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "32"}
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "PYTHON": "py"}
    words = ["GRID.yaml", "--output", "a folder"]
    ran = subprocess.run(["bash", str(SCRIPT), *words], env=environment | job, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    said = ran.stdout.splitlines()
    sweep = said.index("--") + 1
    assert said[sweep:] == ["py", "-m", "trainers.hegraph", "sweep", "--ray", "auto", *words]
    for flag, value in (("--nodes", "2"), ("--min-nodes", "2"), ("--address", "node7:6379"), ("--num-cpus", "32")):
        assert said[said.index(flag) + 1] == value
    outside = subprocess.run(["bash", str(SCRIPT)], env=environment, capture_output=True, text=True)
    assert outside.returncode == 2
    assert outside.stderr.startswith("error: this is a job for SLURM")
