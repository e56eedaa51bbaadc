"""Grids of sweeps: runs, folders and invalid input; finished and failed runs."""

import json
import re
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from trainers.hegraph import UserError, load_bank
from trainers.hegraph.__main__ import main
from trainers.hegraph.baselines import METHODS
from trainers.hegraph.commands.sweep import parse_arguments
from trainers.hegraph.commands.train import configure
from trainers.hegraph.commands.train_arguments import parse_arguments as parse_single
from trainers.hegraph.experiments.sweep.grid import Grid, read_grid
from trainers.hegraph.experiments.sweep.plan import grid_of

NODE = "TRAINER.HEGRAPHADAPTER"
ROOT = Path(__file__).parents[3]
DIGITS = ("--datasets", "digits", "--configs", "mini")


def grid(*words: str) -> Grid:
    return read_grid(*grid_of(parse_arguments(words)))


def folders(*words: str) -> list[str]:
    return [str(run.folder) for run in grid(*words).runs()]


def test_grid_is_the_product_of_its_lists():
    found = folders(
        "--datasets", "digits", "digits_low", "--configs", "mini", "--methods", "TaskRes", "APE", "--shots", "1", "2",
        "--seeds", "1", "2", "3", "--output", "out",
    )  # fmt: skip
    assert found == [
        f"out/{dataset}/{method}/mini_{shots}shots/seed{seed}"
        for dataset in ("digits", "digits_low")
        for method in ("TaskRes", "APE")
        for shots in (1, 2)
        for seed in (1, 2, 3)
    ]
    assert folders(*DIGITS) == [f"output/digits/HeGraphAdapter/mini_16shots/seed{seed}" for seed in (1, 2, 3)]
    every = grid(*DIGITS, "--methods", "all", "--seeds", "1").runs()
    assert [run.method for run in every] == [*METHODS, "HeGraphAdapter"]
    graph = grid(str(ROOT / "configs" / "sweeps" / "graph.yaml"), "--datasets", "digits").runs()
    assert len({str(run.configuration()) for run in graph}) == len(graph)


def test_methods_that_need_images_skip_banks(tiny_bank, caplog):
    words = ("--datasets", str(tiny_bank), "digits", "--configs", "mini", "--methods", "CoOp", "APE", "--seeds", "1")
    with caplog.at_level("INFO"):
        runs = grid(*words).runs()
    assert [(run.method, run.bank is None) for run in runs] == [("APE", False), ("CoOp", True), ("APE", True)]
    assert caplog.messages == [f"CoOp is skipped: it needs images, and {tiny_bank} is a feature bank"]
    assert [run.loads for run in runs] == [(str(tiny_bank), ""), ("digits", "mini"), ("digits", "mini")]
    with pytest.raises(UserError, match="all methods need images"):
        grid("--datasets", str(tiny_bank), "--configs", "mini", "--methods", "CoOp").runs()


def test_varied_keys_name_the_folders():
    words = (*DIGITS, "--seeds", "1", "--vary", f"{NODE}.VARIANT", "T", "full", "--vary", "OPTIM.LR", "0.1")
    assert folders(*words) == [
        f"output/digits/HeGraphAdapter/mini_16shots_VARIANT={v}_LR=0.1/seed1" for v in ("T", "full")
    ]
    assert folders(*words, "--suffix", "_s/{VARIANT}!") == [
        f"output/digits/HeGraphAdapter/mini_16shots_s/{v}!/seed1" for v in ("T", "full")
    ]
    runs = grid(*words).runs()
    assert [run.title for run in runs] == [
        f"digits HeGraphAdapter mini, VARIANT={v}, LR=0.1, 16 shots, seed 1" for v in ("T", "full")
    ]
    assert [run.configuration().model.variant for run in runs] == ["T", "full"]


def test_command_of_a_run_has_its_configuration(tiny_bank):
    for words in (
        ("--datasets", str(tiny_bank), "--methods", "TaskRes", "--configs", "mini", "TRAINER.TASKRES.WARMUP_LR", "1"),
        (*DIGITS, "--root", "some where", "INPUT.RRCROP_SCALE", "(0.5, 1.0)", f"{NODE}.PREC", "fp32"),
    ):
        run = grid(*words, "--seeds", "3", "--shots", "2").runs()[0]
        arguments = shlex.split(run.command().removeprefix("python -m trainers.hegraph "))
        assert configure(parse_single(arguments))[0] == run.configuration()


def test_page_documents_the_grid_file(tmp_path):
    page, file = (ROOT / "docs" / "guides" / "sweep.md").read_text(), tmp_path / "grid.yaml"
    [text] = re.findall(r"^```yaml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    file.write_text(text)
    runs = grid(str(file)).runs()
    assert f"makes {len(runs)} runs" in page
    assert str(runs[-1].folder) == "output/bias/digits_low/HeGraphAdapter/mini_16shots_without_VARIANT=full/seed3"
    assert len({str(run.configuration()) for run in runs}) == len(runs)
    [sentence] = re.findall(r"^- \*\*Keys:\*\* (.*?\.)$", page, re.DOTALL | re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", sentence)) == set(Grid.model_fields)
    file.write_text(f"{text}  OPTIM.LR: [0.5]\nseparate: true\n")
    flags = ("--seeds", "4", "--vary", "OPTIM.LR", "0.1", "OPTIM.MAX_EPOCH", "7", f"{NODE}.BIAS", "False")
    run = grid(str(file), *flags, "--methods", "TaskRes", "--output", "out").runs()[0]
    assert str(run.folder) == "out/digits/TaskRes/mini_1shots_with_VARIANT=T_LR=0.1/seed4"
    cfg = run.configuration()
    assert (cfg.training.learning_rate, cfg.training.epochs, cfg.run.calibrate, run.separate) == (0.1, 7, "off", True)


def test_root_of_the_grid_wins(tmp_path):
    (tmp_path / "pets.yaml").write_text("DATASET:\n  NAME: ImageFolder\n  ROOT: /images/pets\n")
    words = ("--datasets", str(tmp_path / "pets.yaml"), "digits", "--configs", "mini", "--seeds", "1")
    assert [run.configuration().data.root for run in grid(*words).runs()] == ["/images/pets", "data"]
    assert [run.configuration().data.root for run in grid(*words, "--root", "here").runs()] == ["here"] * 2


def test_cases_have_their_own_keys_and_folders():
    flags = ("--case", "", f"{NODE}.VARIANT", "full", "--case", "1", f"{NODE}.VARIANT", "T", f"{NODE}.ALPHA_PP", "0.2")
    runs = grid(*DIGITS, "--seeds", "1", f"{NODE}.ALPHA_PP", "0.1", *flags).runs()
    assert [str(run.folder) for run in runs] == [
        f"output/digits/HeGraphAdapter/mini_16shots{case}/seed1" for case in ("", "_1")
    ]
    models = [run.configuration().model for run in runs]
    assert [(model.variant, model.metapath["ALPHA_PP"]) for model in models] == [("full", 0.1), ("T", 0.2)]
    assert runs[1].title == "digits HeGraphAdapter mini, 1, 16 shots, seed 1"


# Invalid input


@pytest.mark.parametrize(("words", "message"), [
    (("--datasets", "digit", "--configs", "mini"), "'digits'"),
    ((*DIGITS, "--methods", "TipAdaptor"), "'TipAdapter'"),
    ((*DIGITS, "--shots", "few"), "shots.0"), ((*DIGITS, "--vary", "SEED", "5"), "SEED"),
    ((*DIGITS, "--vary", "OPTIM.LR"), "vary.OPTIM.LR"),
    ((*DIGITS, "--vary", "OPTIM.LR", "0.1", "0.2", "--suffix", ""), "two runs have the folder"),
    ((*DIGITS, "--vary", "OPTIM.LR", "/../../../..", "--suffix", "{LR}"), "must stay below output"),
    ((*DIGITS, "--case", "é" * 150), "of at most 255 bytes, got 313: 'mini_16shots_"),
    (("--datasets", "no.safetensors", "--configs", "mini"), "no.safetensors: No such file"),
    (("--workers", "-1", *DIGITS), "--workers"),
])  # fmt: skip
def test_invalid_grids_are_refused(words, message, cli_error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in cli_error("sweep", *words) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("text", "message"), [("- 1", "dictionary"), ("dataset: [digits]", "dataset")])
def test_invalid_grid_files_are_refused(tmp_path, text, message):
    (tmp_path / "grid.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_grid(tmp_path / "grid.yaml", {})


# Finished and failed runs


@pytest.fixture
def sweep(tiny_bank, tmp_path, capsys) -> Callable[..., tuple[int, str, str]]:
    """Run a sweep of ZeroShot on the tiny bank in this process; returns its exit code and output."""

    def run(*words: str, seeds: str = "1 2") -> tuple[int, str, str]:
        grid = ["--datasets", str(tiny_bank), "--configs", "vit_b32", "--methods", "ZeroShot", "--shots", "1"]
        capsys.readouterr()
        code = main(["sweep", *grid, "--seeds", *seeds.split(), "--output", str(tmp_path / "out"), *words])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def tiny(tmp_path) -> Path:
    """Output folder of the runs of `sweep`."""
    return tmp_path / "out" / "tiny"


def records(tiny: Path) -> list[str]:
    return sorted(str(path.parent.relative_to(tiny)) for path in tiny.rglob("result.json"))


def test_finished_runs_are_skipped(sweep, tiny_bank, tiny, caplog):
    assert sweep(seeds="1")[0] == 0
    before = {path: path.stat().st_mtime_ns for path in tiny.rglob("*") if path.is_file()}
    code, out, _ = sweep()
    assert code == 0 and out.startswith("2 runs: 1 done in ") and "1 finished before" in out
    assert "1 of 2 runs are finished: skipped" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in before} == before
    load_bank(tiny_bank).without_test().save(tiny_bank)
    code, out, error = sweep(seeds="1 2 3")
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert f"{tiny}/ZeroShot/vit_b32_1shots/seed1 holds the result of a run with other settings or data" in error
    assert records(tiny) == [f"ZeroShot/vit_b32_1shots/seed{seed}" for seed in (1, 2)]


def test_dry_run_lists_runs_with_expected_time(sweep, tiny):
    sweep(seeds="1 2")
    for seed, training in ((1, 2.0), (2, 4.0)):
        path = tiny / "ZeroShot" / "vit_b32_1shots" / f"seed{seed}" / "result.json"
        record = json.loads(path.read_text()) | {"seconds": {"features": 1.0, "training": training, "test": 4.0}}
        path.write_text(json.dumps(record))
    words = ("--methods", "ZeroShot", "APE", "--shots", "1", "2")
    code, out, _ = sweep("--dry-run", *words, seeds="1 3")
    assert (code, len(records(tiny))) == (0, 2)
    *listed, last = out.splitlines()
    assert listed == [
        f"{tiny}/ZeroShot/vit_b32_1shots/seed3  8.0 s",
        *[f"{tiny}/ZeroShot/vit_b32_2shots/seed{seed}  8.0 s" for seed in (1, 3)],
        *[f"{tiny}/APE/vit_b32_{shots}shots/seed{seed}  ?" for shots in (1, 2) for seed in (1, 3)],
    ]
    counts = "7 runs to do, 1 finished, 0 failed before"
    others = f"the methods of the others have no finished run in {tiny.parent}"
    assert last == f"{counts}; about 24 s in one process for 3 of them; {others}"
    *_, last = sweep("--dry-run", "--methods", "APE", "--shots", "1", seeds="1")[1].splitlines()
    unknown = f"no expected time, because no run of these methods is finished in {tiny.parent}"
    assert last == f"1 runs to do, 0 finished, 0 failed before; {unknown}"
    assert sweep("--folders", *words)[1].splitlines() == [
        f"{tiny}/{method}/vit_b32_{shots}shots" for method in ("ZeroShot", "APE") for shots in (1, 2)
    ]


def test_failed_runs_are_skipped_until_requested(sweep, tiny, caplog):
    grid = ("--methods", "HeGraphAdapter", "--vary", "OPTIM.LR", "1e30", "0.001", f"{NODE}.TEXT_W", "True")
    failing = partial(sweep, *grid, seeds="1")  # at the first rate training diverges
    bad = tiny / "HeGraphAdapter" / "vit_b32_1shots_LR=1e30" / "seed1"
    code, out, error = failing()
    assert (code, records(tiny)) == (1, ["HeGraphAdapter/vit_b32_1shots_LR=0.001/seed1"])
    head, line = out.splitlines()
    assert head.startswith("2 runs: 1 done in ") and head.endswith(", 1 failed")
    failure = json.loads((bad / "error.json").read_text())
    assert line == f"failed: {bad}: {failure['message']}" and "the loss is" in failure["message"]
    assert "Traceback" in failure["traceback"] and "Traceback" not in error
    assert failure["configuration"]["OPTIM.LR"] == 1e30 and f"--output-dir {bad}" in failure["command"]

    (bad / "error.json").write_text(first := (bad / "error.json").read_text() + " ")  # equal, but distinguishable
    code, out, _ = failing()
    assert (code, f"failed before: {bad}" in out, ", 1 failed\n" in out) == (1, True, True)
    assert "1 runs failed before: skipped; --retry-failed runs them again" in caplog.text
    assert ((bad / "error.json").read_text(), failing("--retry-failed")[0]) == (first, 1)
    assert (bad / "error.json").read_text() != first

    words = ("--suffix", "_LR={LR}", f"{NODE}.VARIANT", "base")  # nothing to train
    assert failing(*words)[0] == 2  # the other folder holds a result of other settings
    (bad.parents[1] / "vit_b32_1shots_LR=0.001" / "seed1" / "result.json").unlink()
    assert failing(*words)[0] == 0 and not (bad / "error.json").exists() and len(records(tiny)) == 2
