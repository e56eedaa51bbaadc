"""Shell scripts: syntax, a run of main.sh as a new user starts it, and errors."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from standin.hosts import QUICK, STANDIN, copy_coop, install, make_images, write_split

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts" / "hegraph"
SOURCED = ("env", "runs")  # files that scripts source
CLEARED = ("VIRTUAL_ENV", "CONDA_PREFIX", "SEEDS", "DATA", "OUTPUT")  # variables that tests do not inherit


def bash(script: str, *arguments: str, cwd: Path = ROOT, code: int = 0, **environment: str | None) -> str:
    """Run a script; returns its output, or its error line if it must fail. None removes an environment variable."""
    inherited = {k: v for k, v in os.environ.items() if k not in CLEARED}
    variables = {k: v for k, v in (inherited | {"PYTHON": sys.executable} | environment).items() if v is not None}
    command = ["bash", str(SCRIPTS / script), *arguments]
    ran = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=900)
    assert ran.returncode == code, ran.stderr
    if code == 0:
        return ran.stdout + ran.stderr
    assert (ran.stdout, ran.stderr.count("\n")) == ("", 1)
    return ran.stderr


def test_shellcheck_finds_nothing():
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("shellcheck is not installed (the extra dev has it)")
    scripts = [*sorted(SCRIPTS.glob("*.sh")), ROOT / ".ci" / "run"]
    checked = subprocess.run([program, *map(str, scripts)], capture_output=True, text=True)
    assert (checked.returncode, checked.stdout) == (0, "")


@pytest.fixture
def sweep_of(tmp_path):
    """Function that runs a script without its commands, and returns the arguments of its first sweep."""
    commands, python = tmp_path / "commands", tmp_path / "python"
    python.write_text(f'#!/bin/sh\nprintf "%s\\t" "$@" >>{commands}\necho >>{commands}\n')
    python.chmod(0o755)

    def arguments(script: str, *words: str, **environment: str) -> list[str]:
        commands.unlink(missing_ok=True)
        bash(script, *words, **{"PYTHON": str(python), "OUTPUT": str(tmp_path), "SHOTS": None, **environment})
        called = [line.rstrip("\t").split("\t") for line in commands.read_text().splitlines()]
        return next(words for words in called if "sweep" in words)

    return arguments


def values_of(flag: str, words: list[str]) -> list[str]:
    """Arguments of a flag, until the next flag or key."""
    following = words[words.index(flag) + 1 :]
    return list(itertools.takewhile(lambda word: not word.startswith("--") and "." not in word, following))


SCRIPTS_OF_DATA_SETS = (
    "ablation", "backbones", "base_to_new", "compare", "complexity", "cross_dataset", "domain_generalization",
    "features", "few_shot", "main", "reproduce", "sensitivity", "tsne", "unlabelled",
)  # fmt: skip


OF_IMAGES = ("cross_dataset", "domain_generalization", "reproduce")  # which test on other data sets


@pytest.mark.parametrize("name", SCRIPTS_OF_DATA_SETS)
def test_every_script_takes_the_same_arguments(sweep_of, name):
    dataset = "digits_low" if name == "cross_dataset" else "digits"
    words = sweep_of(f"{name}.sh", dataset, "mini", "2", "OPTIM.LR", "0.1")
    assert [values_of(f"--{flag}", words) for flag in ("datasets", "configs", "shots")] == [[dataset], ["mini"], ["2"]]
    assert words[words.index("OPTIM.LR") + 1] == "0.1"
    assert values_of("--shots", sweep_of(f"{name}.sh", dataset, "mini", "OPTIM.LR", "0.1", SHOTS="4")) == ["4"]
    assert values_of("--shots", sweep_of(f"{name}.sh", dataset, "mini", "1,8")) == ["1", "8"]


def test_scripts_take_several_targets_and_configurations(sweep_of):
    words = sweep_of("cross_dataset.sh", "digits", "mini", "2", "DigitsLow", "EuroSAT", "OPTIM.LR", "1")
    assert "['DigitsLow','EuroSAT',]" in words
    assert values_of("--configs", sweep_of("backbones.sh", "dtd", "rn50", "vit_b16", "8")) == ["rn50", "vit_b16"]
    assert values_of("--datasets", sweep_of("few_shot.sh", "dtd,eurosat", "rn50")) == ["dtd", "eurosat"]
    assert values_of("--configs", sweep_of("main.sh")) == ["mini"]


@pytest.mark.parametrize("name", [name for name in SCRIPTS_OF_DATA_SETS if name not in OF_IMAGES])
def test_every_script_takes_paths_with_spaces(sweep_of, tmp_path, name):
    bank = tmp_path / "my banks" / "a bank.safetensors"
    bank.parent.mkdir()
    bank.touch()
    words = sweep_of(f"{name}.sh", str(bank), "mini", OUTPUT=str(tmp_path / "my output"), DATA="my data")
    assert words[words.index("--datasets") + 1] == str(bank)
    output = words[words.index("--output") + 1]
    assert output == str(tmp_path / "my output" / ("complexity" if name == "complexity" else "")).rstrip("/")
    assert words[words.index("--root") + 1] == "my data"


def test_memory_is_measured_in_processes_of_one_method(sweep_of):
    words = sweep_of("complexity.sh", "digits", "mini")
    assert "--separate" in words and words[words.index("TRAINER.HEGRAPHADAPTER.CALIBRATE") + 1] == "off"


@pytest.mark.parametrize("name", ["main", "compare", "reproduce"])
def test_flags_take_precedence_over_variables(sweep_of, tmp_path, name):
    flags = (
        "--root",
        "images",
        f"--output-dir={tmp_path / 'o'}",
        "--seeds",
        "5",
        "6",
        "--methods",
        "APE",
        "--shots",
        "3",
    )
    others = {"DATA": "other", "SEEDS": "9", "SHOTS": "9", "METHODS": "GDA"}
    words = sweep_of(f"{name}.sh", "digits", "mini", *flags, "--workers", "2", "OPTIM.LR", "1", **others)
    assert [values_of(flag, words) for flag in ("--seeds", "--methods", "--shots")] == [["5", "6"], ["APE"], ["3"]]
    assert [values_of(flag, words) for flag in ("--root", "--workers")] == [["images"], ["2"]]
    assert words[words.index("--output") + 1] == str(tmp_path / "o") and words[words.index("OPTIM.LR") + 1] == "1"


@pytest.mark.parametrize(("words", "message"), [
    (("caltech", "rn50"), "unknown data set 'caltech'; did you mean 'caltech101'?"),
    (("digits", "ViT-B-32"), "unknown configuration of a backbone 'ViT-B-32'; did you mean 'vit_b32'?"),
    (("mini_paper", "1", "4"), "main.sh digits mini_paper"),
    (("caltech101",), "mini, knows only digits"),
    (("digits", "mini", "--datasets", "x"), "--datasets is set by this script"),
    (("digits", "mini", "--seeds"), "--seeds needs a value"),
])  # fmt: skip
def test_wrong_words_are_answered_before_an_installation(tmp_path, words, message):
    assert message in bash("main.sh", *words, code=2, OUTPUT=str(tmp_path), VIRTUAL_ENV=None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [script.stem for script in sorted(SCRIPTS.glob("*.sh")) if script.stem not in SOURCED])
def test_help_runs_nothing(tmp_path, name):
    printed = bash(f"{name}.sh", "--help", PYTHON="/nowhere/python", cwd=tmp_path)
    assert f"scripts/hegraph/{name}.sh" in printed and not list(tmp_path.iterdir())
    assert ("--output-dir DIR" in printed) == (name in SCRIPTS_OF_DATA_SETS)


def test_main_script_names_both_recipes(tmp_path):
    for config, whose, other in (("mini", "ours", "mini_paper"), ("mini_paper", "the paper's; ours", "mini")):
        message = bash("main.sh", "digits", config, "4", PYTHON="true", OUTPUT=str(tmp_path))
        assert message.startswith(f"recipe: {whose}")
        assert message.endswith(f": bash scripts/hegraph/main.sh digits {other} 4\n")


@pytest.mark.slow
def test_main_script_ends_with_the_table(tmp_path):
    printed = bash("main.sh", "digits", "mini", "4", OUTPUT=str(tmp_path), SEEDS="1 2").splitlines()
    runs = tmp_path / "digits" / "HeGraphAdapter" / "mini_4shots"
    assert sorted(folder.name for folder in runs.iterdir()) == ["seed1", "seed2"]
    records = [json.loads((runs / f"seed{seed}" / "result.json").read_text()) for seed in (1, 2)]
    assert [record["seed"] for record in records] == [1, 2]
    assert list((tmp_path / "features").rglob("test-*.safetensors"))
    start = next(number for number, line in enumerate(printed) if line.startswith("Digits, hegraph-mini"))
    title, header, zero_shot, text, full = [line for line in printed[start:] if line][:5]
    assert "4 shots, accuracy on 899 test images (%)" in title
    assert header.split()[-3:] == ["seeds", "1,", "2"]
    assert [line.split()[0] for line in (zero_shot, text, full)] == ["zero-shot", "HeGraphAdapter(T)", "HeGraphAdapter"]
    mean, _, *by_seed = map(float, full.split()[1:])
    accuracies = [record["accuracy"] for record in records]
    assert by_seed == pytest.approx(accuracies, abs=0.005)
    assert mean == pytest.approx(sum(accuracies) / 2, abs=0.006) and mean > float(zero_shot.split()[1])

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    again = bash("main.sh", "digits", "mini", "4", OUTPUT=str(tmp_path), SEEDS="1 2")
    assert "2 of 2 runs are finished: skipped" in again and title in again and full in again
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_unknown_data_set_is_refused(tmp_path):
    message = bash("main.sh", "digit", "mini", "4", code=2, OUTPUT=str(tmp_path))
    assert "'digit'" in message and "'digits'" in message and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_script_in_coop_runs_with_dassl(tmp_path):
    coop = install(copy_coop("standin", tmp_path / "CoOp"))
    make_images(tmp_path / "images")
    write_split(tmp_path / "images")
    places = {"DATA": str(tmp_path / "images"), "OUTPUT": str(tmp_path / "out"), "PYTHONPATH": str(STANDIN)}
    job = [str(coop / "scripts" / "hegraph" / "main.sh"), "caltech101", "mini", "2", *QUICK]
    assert "Caltech101, hegraph-mini" in bash(*job, SEEDS="1", **places)
    record = tmp_path / "out" / "caltech101" / "HeGraphAdapter" / "mini_2shots" / "seed1" / "result.json"
    assert json.loads(record.read_text())["host"] == "dassl"
    assert "1 of 1 runs are finished: skipped" in bash(*job, SEEDS="1", **places)


# The environment


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """Virtual environment without packages."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return folder


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
@pytest.mark.parametrize("script", ["main.sh", "test.sh"])
def test_bare_environment_gets_the_pip_line(bare, tmp_path, script, variable):
    before = sorted(bare.rglob("*")), sorted(path.name for path in ROOT.iterdir())
    active = {"PYTHON": str(bare / "bin" / "python"), "OUTPUT": str(tmp_path), variable: str(bare)}
    message = bash(script, code=2, **active)
    assert message.startswith("error: ")
    assert f"{bare / 'bin' / 'python'} -m pip install -r {ROOT / 'requirements.txt'}" in message
    assert (sorted(bare.rglob("*")), sorted(path.name for path in ROOT.iterdir())) == before
    assert not list(tmp_path.iterdir())


def test_interpreter_is_found_or_reported(bare, tmp_path):
    path = f"{bare / 'bin'}:/usr/bin:/bin"
    message = bash("main.sh", code=2, PYTHON=None, PATH=path, VIRTUAL_ENV=str(bare), OUTPUT=str(tmp_path))
    assert f"{bare / 'bin' / 'python3'} -m pip install" in message
    assert "/nowhere/python" in bash("main.sh", code=2, PYTHON="/nowhere/python", OUTPUT=str(tmp_path))
    assert not (ROOT / ".venv").exists() or (ROOT / ".venv" / "bin").exists()


@pytest.mark.slow
def test_relative_folders_begin_at_the_working_directory(tiny_bank, tmp_path):
    bash("features.sh", tiny_bank.name, "vit_b32", "1", cwd=tmp_path, OUTPUT="out", SEEDS="1")
    assert (tmp_path / "out" / "tiny" / "HeGraphAdapter" / "vit_b32_1shots" / "seed1" / "result.json").exists()


@pytest.mark.slow
def test_teach_script_passes_arguments_on():
    assert "FOLDER" in bash("teach.sh", "--help")
