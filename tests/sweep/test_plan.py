"""What of a grid is run: not what is finished, not what has failed, nothing where something else lies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from trainers.hegraph.__main__ import main
from trainers.hegraph.features.bank import load_bank

LR = "OPTIM.LR"
OURS = "TRAINER.HEGRAPHADAPTER"


@pytest.fixture
def sweep(tiny_bank, tmp_path, capsys) -> Callable[..., tuple[int, str, str]]:
    """Runs a sweep of ZeroShot on the tiny bank in this process; returns its exit code and what it printed."""

    def run(*words: str, seeds: str = "1 2") -> tuple[int, str, str]:
        grid = ["--datasets", str(tiny_bank), "--configs", "vit_b32", "--methods", "ZeroShot", "--shots", "1"]
        capsys.readouterr()
        code = main(["sweep", *grid, "--seeds", *seeds.split(), "--output", str(tmp_path / "out"), *words])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def tiny(tmp_path) -> Path:
    """Where the runs of `sweep` go."""
    return tmp_path / "out" / "tiny"


def records(tiny: Path) -> list[str]:
    return sorted(str(path.parent.relative_to(tiny)) for path in tiny.rglob("result.json"))


def test_finished_runs_are_not_done_again_and_those_of_other_data_refused_before_anything_runs(
    sweep, tiny_bank, tiny, caplog
):
    assert sweep(seeds="1")[0] == 0
    before = {path: path.stat().st_mtime_ns for path in tiny.rglob("*") if path.is_file()}
    code, out, _ = sweep()
    assert code == 0
    assert out.startswith("2 runs: 1 done in ") and "1 finished before" in out
    assert "1 of 2 runs are finished: skipped" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in before} == before
    load_bank(tiny_bank).without_test().save(tiny_bank)
    code, out, error = sweep(seeds="1 2 3")
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert f"{tiny}/ZeroShot/vit_b32_1shots/seed1 holds the result of a run with other settings or data" in error
    assert records(tiny) == [f"ZeroShot/vit_b32_1shots/seed{seed}" for seed in (1, 2)]


def test_a_dry_run_lists_what_would_be_run_and_how_long_by_the_records_of_the_method(sweep, tiny):
    sweep(seeds="1 2")
    for seed, training in ((1, 2.0), (2, 4.0)):
        path = tiny / "ZeroShot" / "vit_b32_1shots" / f"seed{seed}" / "result.json"
        record = json.loads(path.read_text()) | {"seconds": {"features": 1.0, "training": training, "test": 4.0}}
        path.write_text(json.dumps(record))
    words = ("--methods", "ZeroShot", "APE", "--shots", "1", "2")
    code, out, _ = sweep("--dry-run", *words, seeds="1 3")
    assert code == 0
    *listed, last = out.splitlines()
    assert listed == [
        f"{tiny}/ZeroShot/vit_b32_1shots/seed3  8.0 s",
        *[f"{tiny}/ZeroShot/vit_b32_2shots/seed{seed}  8.0 s" for seed in (1, 3)],
        *[f"{tiny}/APE/vit_b32_{shots}shots/seed{seed}  ?" for shots in (1, 2) for seed in (1, 3)],
    ]
    assert last == (
        "7 runs to do, 1 finished, 0 failed before; about 24 s in one process for the 3 whose method has records"
    )
    assert len(records(tiny)) == 2
    assert sweep("--folders", *words)[1].splitlines() == [
        f"{tiny}/{method}/vit_b32_{shots}shots" for method in ("ZeroShot", "APE") for shots in (1, 2)
    ]


# Failures


@pytest.fixture
def failing(sweep) -> Callable[..., tuple[int, str, str]]:
    """A sweep of HeGraphAdapter over two learning rates, at one of which training diverges."""

    def run(*words: str) -> tuple[int, str, str]:
        rates = ("--vary", LR, "1e30", "0.001")
        return sweep("--methods", "HeGraphAdapter", *rates, *words, f"{OURS}.TEXT_W", "True", seeds="1")

    return run


def test_a_failed_run_leaves_why_and_is_skipped_until_it_is_to_be_tried_again_or_its_configuration_is_another(
    failing, tiny, caplog
):
    bad = tiny / "HeGraphAdapter" / "vit_b32_1shots_LR=1e30" / "seed1"
    code, out, error = failing()
    assert (code, records(tiny)) == (1, ["HeGraphAdapter/vit_b32_1shots_LR=0.001/seed1"])
    head, line = out.splitlines()
    assert head.startswith("2 runs: 1 done in ")
    assert head.endswith(", 1 failed")
    failure = json.loads((bad / "error.json").read_text())
    assert line == f"failed: {bad}: {failure['message']}"
    assert "the loss is" in failure["message"]
    assert "Traceback" in failure["traceback"] and "Traceback" not in error
    assert failure["configuration"][LR] == 1e30
    assert f"--output-dir {bad}" in failure["command"]

    (bad / "error.json").write_text(first := (bad / "error.json").read_text() + " ")  # the same, and yet told apart
    code, out, _ = failing()
    assert (code, f"failed before: {bad}" in out, ", 1 failed\n" in out) == (1, True, True)
    assert "1 runs failed before: skipped; --retry-failed runs them again" in caplog.text
    assert (bad / "error.json").read_text() == first
    assert failing("--retry-failed")[0] == 1
    assert (bad / "error.json").read_text() != first

    words = ("--suffix", "_LR={LR}", f"{OURS}.VARIANT", "base")  # of which nothing is trained
    assert failing(*words)[0] == 2  # the other folder holds a result of other settings
    (bad.parents[1] / "vit_b32_1shots_LR=0.001" / "seed1" / "result.json").unlink()
    assert failing(*words)[0] == 0
    assert not (bad / "error.json").exists()
    assert len(records(tiny)) == 2
