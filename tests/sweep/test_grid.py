"""What a grid runs: its product, its folders, and what is said of a grid that is wrong."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from trainers.hegraph.__main__ import configure, main
from trainers.hegraph.__main__ import parse_arguments as parse_single
from trainers.hegraph.baselines import METHODS
from trainers.hegraph.sweep.__main__ import grid_of, parse_arguments
from trainers.hegraph.sweep.grid import Grid, read_grid
from trainers.hegraph.utils.errors import UserError

NODE = "TRAINER.HEGRAPHADAPTER"
ROOT = Path(__file__).parents[2]
DIGITS = ("--datasets", "digits", "--configs", "mini")


def grid(*words: str) -> Grid:
    return read_grid(*grid_of(parse_arguments(words)))


def folders(*words: str) -> list[str]:
    return [str(run.folder) for run in grid(*words).runs()]


def test_a_grid_is_the_product_of_its_lists_in_the_folders_of_the_scripts():
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


def test_on_a_bank_the_methods_that_need_images_are_left_out_and_that_is_said(tiny_bank, caplog):
    words = ("--datasets", str(tiny_bank), "digits", "--configs", "mini", "--methods", "CoOp", "APE", "--seeds", "1")
    with caplog.at_level("INFO"):
        runs = grid(*words).runs()
    assert [(run.method, run.bank is None) for run in runs] == [("APE", False), ("CoOp", True), ("APE", True)]
    assert caplog.messages == [f"CoOp is left out: it needs images, and {tiny_bank} is a feature bank"]
    assert [run.loads for run in runs] == [(str(tiny_bank), ""), ("digits", "mini"), ("digits", "mini")]
    with pytest.raises(UserError, match="every method needs images"):
        grid("--datasets", str(tiny_bank), "--configs", "mini", "--methods", "CoOp").runs()


def test_varied_keys_are_in_the_folders_by_name_or_where_the_suffix_says():
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


def test_a_run_of_a_grid_has_the_configuration_of_the_command_that_does_it_alone(tiny_bank):
    for words in (
        ("--datasets", str(tiny_bank), "--methods", "TaskRes", "--configs", "mini", "TRAINER.TASKRES.WARMUP_LR", "1"),
        (*DIGITS, "--root", "some where", "INPUT.RRCROP_SCALE", "(0.5, 1.0)", f"{NODE}.PREC", "fp32"),
    ):
        run = grid(*words, "--seeds", "3", "--shots", "2").runs()[0]
        arguments = shlex.split(run.command().removeprefix("python -m trainers.hegraph "))
        assert configure(parse_single(arguments))[0] == run.configuration()


def test_the_page_tells_every_list_and_its_file_makes_the_runs_that_it_says_but_flags_win_over_it(tmp_path):
    page, file = (ROOT / "docs" / "sweep.md").read_text(), tmp_path / "grid.yaml"
    [text] = re.findall(r"^```yaml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    file.write_text(text)
    runs = grid(str(file)).runs()
    assert f"makes {len(runs)} runs" in page
    assert str(runs[-1].folder) == "output/bias/digits_low/HeGraphAdapter/mini_16shots_without_VARIANT=full/seed3"
    assert len({str(run.configuration()) for run in runs}) == len(runs)
    rows = re.findall(r"^\| `[^|]*` \| `(\w+)` \|", page, re.MULTILINE)
    assert {*rows, "suffix"} == set(Grid.model_fields)
    file.write_text(f"{text}  OPTIM.LR: [0.5]\nseparate: true\n")
    flags = ("--seeds", "4", "--vary", "OPTIM.LR", "0.1", "OPTIM.MAX_EPOCH", "7", f"{NODE}.BIAS", "False")
    run = grid(str(file), *flags, "--methods", "TaskRes", "--output", "out").runs()[0]
    assert str(run.folder) == "out/digits/TaskRes/mini_1shots_with_VARIANT=T_LR=0.1/seed4"
    cfg = run.configuration()
    assert (cfg.training.learning_rate, cfg.training.epochs, cfg.run.calibrate, run.separate) == (0.1, 7, "off", True)


def test_data_sets_may_say_their_folders_and_a_root_of_the_grid_wins(tmp_path):
    (tmp_path / "pets.yaml").write_text("DATASET:\n  NAME: ImageFolder\n  ROOT: /images/pets\n")
    words = ("--datasets", str(tmp_path / "pets.yaml"), "digits", "--configs", "mini", "--seeds", "1")
    assert [run.configuration().data.root for run in grid(*words).runs()] == ["/images/pets", "data"]
    assert [run.configuration().data.root for run in grid(*words, "--root", "here").runs()] == ["here"] * 2


def test_cases_are_runs_with_keys_of_their_own_and_their_names_in_the_folders():
    flags = ("--case", "", f"{NODE}.VARIANT", "full", "--case", "1", f"{NODE}.VARIANT", "T", f"{NODE}.ALPHA_PP", "0.2")
    runs = grid(*DIGITS, "--seeds", "1", f"{NODE}.ALPHA_PP", "0.1", *flags).runs()
    assert [str(run.folder) for run in runs] == [
        f"output/digits/HeGraphAdapter/mini_16shots{case}/seed1" for case in ("", "_1")
    ]
    models = [run.configuration().model for run in runs]
    assert [(model.variant, model.metapath["ALPHA_PP"]) for model in models] == [("full", 0.1), ("T", 0.2)]
    assert runs[1].title == "digits HeGraphAdapter mini, 1, 16 shots, seed 1"


# What is wrong


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--datasets", "digit", "--configs", "mini"), "'digits'"),
        ((*DIGITS, "--methods", "TipAdaptor"), "'TipAdapter'"),
        ((*DIGITS, "--shots", "few"), "shots.0"),
        ((*DIGITS, "--vary", "SEED", "5"), "SEED"),
        ((*DIGITS, "--vary", "OPTIM.LR"), "vary.OPTIM.LR"),
        ((*DIGITS, "--vary", "OPTIM.LR", "0.1", "0.2", "--suffix", ""), "two runs of the grid have the folder"),
        ((*DIGITS, "--vary", "OPTIM.LR", "/../../../..", "--suffix", "{LR}"), "lead out"),
        (("--datasets", "no.safetensors", "--configs", "mini"), "no.safetensors: No such file"),
        (("--workers", "-1", *DIGITS), "--workers"),
    ],
)  # fmt: skip
def test_a_wrong_grid_is_one_clear_line_and_nothing_is_written(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", *words]) == 2
    out, error = capsys.readouterr()
    assert (out, said in error, error.count("\n")) == ("", True, 1), error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("text", "said"), [("- 1", "dictionary"), ("dataset: [digits]", "dataset")])
def test_a_wrong_file_of_a_grid_is_refused(tmp_path, text, said):
    (tmp_path / "grid.yaml").write_text(text)
    with pytest.raises(UserError, match=said):
        read_grid(tmp_path / "grid.yaml", {})
