"""What a grid runs: its product, its folders, and what is said of a grid that is wrong."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import fields
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


def grid(*words: str) -> Grid:
    return read_grid(*grid_of(parse_arguments(words)))


def folders(*words: str) -> list[str]:
    return [str(run.folder) for run in grid(*words).runs()[0]]


def test_a_grid_is_the_product_of_its_lists_in_the_folders_of_the_scripts():
    found = folders(
        "--datasets", "digits", "digits_low", "--configs", "mini", "--methods", "TaskRes", "APE", "--shots", "1", "2",
        "--seeds", "1", "2", "3", "--output", "out",
    )  # fmt: skip
    expected = [
        f"out/{dataset}/{method}/mini_{shots}shots/seed{seed}"
        for dataset in ("digits", "digits_low")
        for method in ("TaskRes", "APE")
        for shots in (1, 2)
        for seed in (1, 2, 3)
    ]
    assert found == expected


def test_banks_and_files_give_their_names_to_the_folders(tiny_bank, tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text("OPTIM: {MAX_EPOCH: 3}\n")
    [folder] = folders("--datasets", str(tiny_bank), "--configs", str(config), "--seeds", "0", "--output", "out")
    assert folder == "out/tiny/HeGraphAdapter/mine_16shots/seed0"


def test_data_sets_may_say_their_folders_and_a_root_of_the_grid_wins(tmp_path):
    for name in ("pets", "cars"):
        text = f"DATASET:\n  NAME: ImageFolder\n  ROOT: /images/{name}\n"
        (tmp_path / f"{name}.yaml").write_text(text)
    sources = [str(tmp_path / "pets.yaml"), str(tmp_path / "cars.yaml"), "digits"]
    runs, _ = Grid(sources, ["mini"], seeds=[1]).runs()
    assert [run.root for run in runs] == ["/images/pets", "/images/cars", "data"]
    assert [run.configuration().DATASET.ROOT for run in runs] == [run.root for run in runs]
    runs, _ = Grid(sources, ["mini"], seeds=[1], root="here").runs()
    assert [run.root for run in runs] == ["here"] * 3


def test_on_a_bank_the_methods_that_need_images_are_left_out_and_that_is_said(tiny_bank):
    asked = grid(
        "--datasets", str(tiny_bank), "digits", "--configs", "mini", "--methods", "CoOp", "APE", "--seeds", "1"
    )
    runs, lines = asked.runs()
    assert [(run.method, run.bank is None) for run in runs] == [("APE", False), ("CoOp", True), ("APE", True)]
    assert lines == [f"CoOp is left out: it needs images, and {tiny_bank} is a feature bank"]


def test_all_stands_for_every_method():
    runs, _ = grid("--datasets", "digits", "--configs", "mini", "--methods", "all", "--seeds", "1").runs()
    assert [run.method for run in runs] == [*METHODS, "HeGraphAdapter"]


def test_the_values_of_a_varied_key_are_run_and_name_the_folders():
    words = ("--datasets", "digits", "--configs", "mini", "--seeds", "1", "--vary", f"{NODE}.VARIANT", "T", "full")
    assert folders(*words) == [
        f"output/digits/HeGraphAdapter/mini_16shots_VARIANT={variant}/seed1" for variant in ("T", "full")
    ]
    assert folders(*words, "--suffix", "_ablation/{VARIANT}") == [
        f"output/digits/HeGraphAdapter/mini_16shots_ablation/{variant}/seed1" for variant in ("T", "full")
    ]
    runs, _ = grid(*words, "--vary", f"{NODE}.ALPHA_PP", "0.1", "0.2").runs()
    assert [(run.configuration().TRAINER.HEGRAPHADAPTER.VARIANT) for run in runs] == ["T", "T", "full", "full"]
    assert [(run.configuration().TRAINER.HEGRAPHADAPTER.ALPHA_PP) for run in runs] == [0.1, 0.2, 0.1, 0.2]


def test_pairs_at_the_end_are_of_all_runs_whatever_flag_stands_before_them():
    for words in (
        ("--datasets", "digits", "--configs", "mini", "--seeds", "1", "OPTIM.LR", "0.5"),
        ("--datasets", "digits", "--seeds", "1", "--configs", "mini", "OPTIM.LR", "0.5"),
        ("OPTIM.LR", "0.5", "--datasets", "digits", "--seeds", "1", "--configs", "mini"),
    ):
        [run] = grid(*words).runs()[0]
        assert run.configuration().OPTIM.LR == 0.5


def test_a_run_of_a_grid_has_the_configuration_of_the_command_that_does_it_alone(tiny_bank):
    for words in (
        (
            "--datasets",
            str(tiny_bank),
            "--methods",
            "TaskRes",
            "--configs",
            "vit_b32",
            "TRAINER.TASKRES.WARMUP_LR",
            "1",
        ),
        ("--datasets", "digits", "--configs", "mini", "--root", "some where", "INPUT.RRCROP_SCALE", "(0.5, 1.0)"),
    ):
        run = grid(*words, "--seeds", "3", "--shots", "2").runs()[0][0]
        arguments = shlex.split(run.command().removeprefix("python -m trainers.hegraph "))
        assert configure(parse_single(arguments))[0] == run.configuration()


FILE = f"""
datasets: [digits]
configs: [mini]
methods: [TaskRes]
shots: [1, 2]
seeds: [1]
output: from_file
set:
  OPTIM.LR: 0.5
vary:
  {NODE}.VARIANT: [T, full]
"""


def test_a_grid_is_read_from_a_file_and_flags_win_over_it(tmp_path):
    (tmp_path / "grid.yaml").write_text(FILE)
    runs, _ = grid(
        str(tmp_path / "grid.yaml"), "--methods", "HeGraphAdapter", "--seeds", "4", "OPTIM.MAX_EPOCH", "7"
    ).runs()
    assert [str(run.folder) for run in runs] == [
        f"from_file/digits/HeGraphAdapter/mini_{shots}shots_VARIANT={variant}/seed4"
        for shots in (1, 2)
        for variant in ("T", "full")
    ]
    optim = runs[0].configuration().OPTIM
    assert (optim.LR, optim.MAX_EPOCH) == (0.5, 7)


@pytest.fixture
def refused(capsys, tmp_path) -> Callable[..., str]:
    """Runs a sweep that must exit with 2 after exactly one line, having written nothing; returns the line."""

    def check(*words: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        assert main(["sweep", *words, "--output", str(tmp_path / "out")]) == 2
        out, error = capsys.readouterr()
        assert out == ""
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
        return error

    return check


DIGITS = ("--datasets", "digits", "--configs", "mini")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "give --datasets"),
        (("--datasets", "digits"), "give --configs"),
        (("--datasets", "digit", "--configs", "mini"), "data set configuration 'digit'; did you mean 'digits'?"),
        (("--datasets", "digits", "--configs", "minni"), "did you mean 'mini'?"),
        ((*DIGITS, "--methods", "TipAdaptor"), "unknown method 'TipAdaptor'; did you mean 'TipAdapter'?"),
        ((*DIGITS, "--shots", "few"), "--shots are whole numbers, got 'few'"),
        ((*DIGITS, "--shots", "0"), "DATASET.NUM_SHOTS must be at least 1"),
        ((*DIGITS, "--seeds", "-1"), "the seeds of a sweep are from 0, got -1"),
        ((*DIGITS, "--workers", "-1"), "--workers must be at least 1"),
        ((*DIGITS, "OPTIM.LR"), "'OPTIM.LR' has no value"),
        ((*DIGITS, "--case", "a", "SEED", "1"), "SEED is set by the grid itself"),
        ((*DIGITS, "SEED", "5"), "SEED is set by the grid itself; give --shots, --seeds"),
        ((*DIGITS, "--vary", "DATASET.ROOT", "a", "b"), "DATASET.ROOT is set by the grid itself"),
        ((*DIGITS, "--case", "a", "OPTIM.LR"), "'OPTIM.LR' has no value"),
        ((*DIGITS, "OPTIM.RL", "1"), "unknown configuration key 'OPTIM.RL'"),
        ((*DIGITS, "DATASET.NUM_SHOTS", "1"), "DATASET.NUM_SHOTS is set by the grid itself"),
        ((*DIGITS, "--vary", "OPTIM.LR"), "OPTIM.LR is varied over no value"),
        ((*DIGITS, "--vary", "OPTIM.LR", "0.1", "--suffix", "{LR:>9999999999}"), "name of a varied key (LR)"),
        ((*DIGITS, "--suffix", "_{LR}"), "braces hold the name of a varied key (none)"),
        ((*DIGITS, "--vary", "OPTIM.LR", "0.1", "0.2", "--suffix", ""), "two runs of the grid have the folder"),
        (("--datasets", "nowhere/bank.safetensors", "--configs", "mini"), "no feature bank nowhere/bank.safetensors"),
        (("nowhere.yaml",), "cannot read the grid nowhere.yaml: No such file or directory"),
    ],
)  # fmt: skip
def test_a_wrong_grid_is_one_clear_line(refused, words, said):
    assert said in refused(*words)


def test_a_grid_of_a_bank_and_methods_that_need_images_has_no_run(refused, tiny_bank, capsys):
    assert main(["sweep", "--datasets", str(tiny_bank), "--configs", "mini", "--methods", "CoOp"]) == 2
    assert "the grid has no run: every method needs images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- 1\n", "must hold KEY: VALUE lines, got [1]"),
        ("a: [\n", "is not YAML"),
        ("datasets: !!bool x\n", "is not YAML"),
        ("shots: 2020-13-45\n", "is not YAML"),
        ("dataset: [digits]\n", "unknown key of"),
        ("datasets: [digits]\nconfigs: [mini]\nshots: [many]\n", "shots must be a list of whole numbers, got 'many'"),
        ("datasets: [1]\n", "datasets must be a list of names, got 1"),
        ("vary: [1]\n", "vary must hold KEY: ... lines, got [1]"),
        ("output: 3\n", "output must be text, got 3"),
        ("datasets: []\nconfigs: [mini]\n", "give --datasets, or datasets in the grid's file"),
        ("datasets: [digits]\nconfigs: [mini]\nset: {SEED: 5}\n", "SEED is set by the grid itself"),
        ("datasets: [digits]\nconfigs: [mini]\ncases: {a: {OUTPUT_DIR: x}}\n", "OUTPUT_DIR is set by the grid itself"),
        ("datasets: [digits]\nconfigs: [mini]\nvary: {DATASET.NUM_SHOTS: [4]}\n", "or their names in the grid's file"),
    ],
)
def test_a_wrong_file_of_a_grid_is_one_clear_line(tmp_path, text, said):
    (tmp_path / "grid.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        read_grid(tmp_path / "grid.yaml", {}).runs()
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_cases_are_runs_with_keys_of_their_own_and_their_names_in_the_folders():
    words = ("--datasets", "digits", "--configs", "mini", "--seeds", "1", f"{NODE}.ALPHA_PP", "0.1")
    cases = (
        "--case",
        "",
        f"{NODE}.VARIANT",
        "full",
        "--case",
        "text",
        f"{NODE}.VARIANT",
        "T",
        f"{NODE}.ALPHA_PP",
        "0.2",
    )
    runs, _ = grid(*words, *cases).runs()
    assert [str(run.folder) for run in runs] == [
        f"output/digits/HeGraphAdapter/mini_16shots{case}/seed1" for case in ("", "_text")
    ]
    nodes = [run.configuration().TRAINER.HEGRAPHADAPTER for run in runs]
    assert [(node.VARIANT, node.ALPHA_PP) for node in nodes] == [("full", 0.1), ("T", 0.2)]
    assert [run.title for run in runs] == [
        "digits HeGraphAdapter mini, 16 shots, seed 1", "digits HeGraphAdapter mini, text, 16 shots, seed 1"
    ]  # fmt: skip


def test_the_folders_of_a_grid_are_listed_and_nothing_is_run(capsys, tmp_path):
    words = ["--datasets", "digits", "--configs", "mini", "--methods", "TaskRes", "APE", "--output", str(tmp_path)]
    assert main(["sweep", *words, "--folders"]) == 0
    assert capsys.readouterr() == (f"{tmp_path}/digits/TaskRes/mini_16shots\n{tmp_path}/digits/APE/mini_16shots\n", "")
    assert not list(tmp_path.iterdir())


def test_the_grid_of_the_graph_has_a_configuration_for_each_case(tiny_bank):
    runs, _ = grid(str(ROOT / "configs" / "sweeps" / "graph.yaml"), "--datasets", str(tiny_bank)).runs()
    assert len({str(run.configuration()) for run in runs}) == len(runs)


def test_the_file_in_the_page_makes_the_runs_that_the_page_says(tmp_path):
    page = (ROOT / "docs" / "sweep.md").read_text()
    [text] = re.findall(r"^```yaml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "grid.yaml").write_text(text)
    runs, _ = grid(str(tmp_path / "grid.yaml")).runs()
    assert f"makes {len(runs)} runs" in page
    assert str(runs[-1].folder) == "output/bias/digits_low/HeGraphAdapter/mini_16shots_without_VARIANT=full/seed3"
    assert len({str(run.configuration()) for run in runs}) == len(runs)


def test_every_list_of_a_grid_is_in_the_page():
    rows = re.findall(r"^\| `[^|]*` \| `(\w+)` \|", (ROOT / "docs" / "sweep.md").read_text(), re.MULTILINE)
    assert {*rows, "suffix"} == {field.name for field in fields(Grid)}
