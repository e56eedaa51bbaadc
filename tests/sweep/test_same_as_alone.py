"""A sweep leaves what single runs leave, and nothing in its process."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from trainers.hegraph.__main__ import main
from trainers.hegraph.baselines import METHODS, load_method
from trainers.hegraph.experiments.opened import Opened
from trainers.hegraph.features.bank import load_bank
from trainers.hegraph.features.bank_file import BankFile
from trainers.hegraph.sweep import execute
from trainers.hegraph.sweep.grid import Run

ROOT = Path(__file__).parents[2]
FROM_BANK = [name for name in METHODS if not load_method(name).needs_backbone]


def single(bank: Path, method: str, shots: int, seed: int, output: Path) -> list[object]:
    """The command line of the run that a sweep on a bank does in this place."""
    folder = output / "tiny" / method / f"vit_b32_{shots}shots" / f"seed{seed}"
    return [
        "--features", bank, "--trainer", method, "--shots", shots, "--seed", seed, "--config-file", "vit_b32",
        "--output-dir", folder,
    ]  # fmt: skip


def sweep_in_own_process(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "trainers.hegraph", "sweep", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    return done


def test_every_method_on_a_bank_leaves_what_it_leaves_alone_byte_for_byte(tiny_bank, tmp_path, alone, left_by):
    grid = [(method, 2, seed) for method in (*FROM_BANK, "HeGraphAdapter") for seed in (1, 2)]
    alone([single(tiny_bank, *run, tmp_path / "alone") for run in grid])
    swept = ["--datasets", tiny_bank, "--configs", "vit_b32", "--shots", "2", "--seeds", "1", "2"]
    sweep_in_own_process(*swept, "--methods", "all", "--output", tmp_path / "swept")
    expected = left_by(tmp_path / "alone")
    assert len([path for path in expected if path.endswith("result.json")]) == len(grid)
    found = left_by(tmp_path / "swept")
    assert sorted(found) == sorted(expected)
    assert [path for path in expected if found[path] != expected[path]] == []


def test_workers_leave_the_same_as_well(tiny_bank, tmp_path, alone, left_by):
    methods = ("TaskRes", "LinearProbe", "HeGraphAdapter")
    alone([single(tiny_bank, m, 2, seed, tmp_path / "alone") for m in methods for seed in (1, 2)])
    swept = ["--datasets", tiny_bank, "--configs", "vit_b32", "--shots", "2", "--seeds", "1", "2"]
    done = sweep_in_own_process(*swept, "--methods", *methods, "--output", tmp_path / "swept", "--workers", "2")
    assert "2 workers with OMP_NUM_THREADS=1 each" in done.stderr
    assert left_by(tmp_path / "swept") == left_by(tmp_path / "alone")


def test_hegraphadapter_and_coop_on_the_digits_leave_what_they_leave_alone(tmp_path, alone, left_by):
    """The backbone is loaded once; the views of a seed are encoded after those of another."""
    quick = ("TRAINER.HEGRAPHADAPTER.FEATURES.VIEWS", "2")
    coop = ("TRAINER.COOP.EPOCHS", "[[1, 1]]")

    def line(method: str, seed: int, *pairs: str) -> list[object]:
        folder = tmp_path / "alone" / "digits" / method / "mini_1shots" / f"seed{seed}"
        return [
            "--dataset-config-file", "digits", "--config-file", "mini", "--shots", "1", "--seed", seed, "--trainer",
            method, "--output-dir", folder, "TRAINER.HEGRAPHADAPTER.FEATURES.DIR", tmp_path / "alone" / "features",
            *quick, *pairs,
        ]  # fmt: skip

    alone([line("HeGraphAdapter", 1), line("HeGraphAdapter", 2), line("CoOp", 2, *coop)])
    swept = ["--datasets", "digits", "--configs", "mini", "--shots", "1", "--output", tmp_path / "swept"]
    sweep_in_own_process(*swept, "--seeds", "1", "2", *quick)
    sweep_in_own_process(*swept, "--seeds", "2", "--methods", "CoOp", *quick, *coop)
    assert left_by(tmp_path / "swept" / "digits") == left_by(tmp_path / "alone" / "digits")
    features = left_by(tmp_path / "alone" / "features")
    assert features
    assert left_by(tmp_path / "swept" / "features") == features


@pytest.fixture
def a_run(tiny_bank, tmp_path) -> Run:
    return Run(tmp_path / "out", str(tiny_bank), "vit_b32", "ZeroShot", 1, 1)


def test_what_a_run_changes_in_its_process_does_not_reach_the_next(a_run, monkeypatch):
    def careless(cfg, bank, opened):
        logging.getLogger().addHandler(logging.NullHandler())
        logging.getLogger("trainers.hegraph").setLevel(logging.DEBUG)
        logging.getLogger("trainers.hegraph").addHandler(logging.NullHandler())
        warnings.simplefilter("ignore")
        torch.set_num_threads(torch.get_num_threads() + 1)
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        torch.use_deterministic_algorithms(True)
        os.environ["LEFT_BEHIND"] = "1"
        os.chdir("/")
        return {"accuracy": 50.0}

    def state() -> list:
        named = [logging.getLogger(), logging.getLogger("trainers.hegraph")]
        return [
            [(list(log.handlers), log.level) for log in named], list(warnings.filters), torch.get_num_threads(),
            torch.get_default_dtype(), torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(),
            dict(os.environ), os.getcwd(),
        ]  # fmt: skip

    before = state()
    monkeypatch.setattr(execute, "run_one", careless)
    assert execute.attempt(a_run, Opened()).status == execute.DONE
    assert state() == before


def test_a_warning_is_shown_for_every_run_and_not_for_the_first_alone(a_run, monkeypatch, recwarn):
    def warns(cfg, bank, opened):
        warnings.warn("something is odd", UserWarning, stacklevel=1)
        return {"accuracy": None}

    monkeypatch.setattr(execute, "run_one", warns)
    warnings.simplefilter("default")
    for _ in range(2):
        execute.attempt(a_run, Opened())
    assert [str(warning.message) for warning in recwarn] == ["something is odd"] * 2


def test_memory_that_one_run_took_is_not_counted_for_the_next(a_run, monkeypatch):
    from trainers.hegraph.experiments.provenance import peak_memory_mb

    peaks = []

    def hungry(megabytes: int):
        def run(cfg, bank, opened):
            torch.ones(megabytes * 250_000)
            peaks.append(peak_memory_mb())
            return {"accuracy": None}

        return run

    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("this system cannot count memory anew")
    for megabytes in (400, 1):
        monkeypatch.setattr(execute, "run_one", hungry(megabytes))
        execute.attempt(a_run, Opened())
    assert peaks[0] - peaks[1] > 300


def test_the_bank_is_read_once_and_again_when_its_file_has_changed(tiny_bank, tmp_path, monkeypatch):
    from trainers.hegraph.experiments import opened

    reads = []
    monkeypatch.setattr(opened, "BankFile", lambda path: reads.append(path) or BankFile(path))
    shared = Opened()
    first = shared.bank(tiny_bank)
    assert shared.bank(tiny_bank) is first
    assert len(reads) == 1
    identity = first.identity([], [])
    load_bank(tiny_bank).without_test().save(tiny_bank)
    changed = shared.bank(tiny_bank)
    assert len(reads) == 2
    assert "test" in first.labels and "test" not in changed.labels
    assert changed.identity([], []) != identity


def test_a_sweep_in_this_process_loads_a_bank_once(tiny_bank, tmp_path, monkeypatch):
    from trainers.hegraph.experiments import opened

    reads = []
    monkeypatch.setattr(opened, "BankFile", lambda path: reads.append(path) or BankFile(path))
    swept = ["sweep", "--datasets", str(tiny_bank), "--configs", "vit_b32", "--methods", "ZeroShot", "TipAdapter"]
    assert main([*swept, "--shots", "1", "2", "--output", str(tmp_path / "out")]) == 0
    assert len(list(tmp_path.rglob("result.json"))) == 12
    assert len(reads) == 1
