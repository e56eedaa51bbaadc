"""The command line: sub-commands, words that are none, and what answers without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trainers.hegraph.__main__ import SUBCOMMANDS, main

ROOT = Path(__file__).parents[1]
SLOW = ("torch", "torchvision", "open_clip", "sklearn", "matplotlib", "requests")


def imported_by(*arguments: str) -> set[str]:
    """Which of the packages that take long to import a command line imports, in a process of its own."""
    program = (
        "import contextlib, sys\n"
        "from trainers.hegraph.__main__ import main\n"
        "with contextlib.suppress(SystemExit):\n"
        "    main(sys.argv[1:])\n"
        f"print('imported', *(name for name in {SLOW} if name in sys.modules))\n"
    )
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=900)
    first, *names = done.stdout.splitlines()[-1].split()
    assert first == "imported"
    return set(names)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("--shots", "many"),
        ("prediction",),
        ("--trainer", "Tip"),
        ("--eval-only",),
        ("--host", "alone", "OPTIM.LRR", "1"),
        ("--host", "alone", "--config-file", "mino"),
    ],
    ids=" ".join,
)
def test_help_and_mistakes_in_the_flags_answer_without_torch(arguments):
    assert imported_by(*arguments) == set()


def test_a_run_from_a_bank_imports_nothing_before_its_first_step_that_it_does_not_need_there(tiny_bank, tmp_path):
    late = (*SLOW[1:], "torch_geometric")  # all but torch, whose optimizer imports torch._dynamo
    program = (
        "import sys\n"
        "from trainers.hegraph.__main__ import main\n"
        "from trainers.hegraph.training.loop import AdapterTraining\n"
        "class End(BaseException): pass\n"
        "step = AdapterTraining.step\n"
        "def only(self, batch):\n"
        "    step(self, batch)\n"
        "    raise End\n"
        "AdapterTraining.step = only\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "except End:\n"
        f"    print('imported', *(name for name in {late} if name in sys.modules))\n"
    )
    arguments = ["--features", str(tiny_bank), "--shots", "1", "--output-dir", str(tmp_path / "out")]
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=900)
    assert done.stdout.split() == ["imported"]


def test_the_help_lists_the_sub_commands_and_the_flags(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: python -m trainers.hegraph [FLAG ...] [KEY VALUE ...]\n")
    for name, summary in SUBCOMMANDS.items():
        assert f"  {name:12}{summary}\n" in out
    assert "--config-file" in out


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_a_sub_command_is_the_program_of_its_module(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: ")
    assert f" {name}" in out.splitlines()[0] or f".{name}" in out.splitlines()[0]


def test_the_exit_code_and_the_message_are_those_of_the_sub_command(capsys, tmp_path):
    assert main(["results", "compare", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_sub_command_of_the_package_run_as_a_module_is_that_module():
    outputs = []
    for program in (("trainers.hegraph", "results"), ("trainers.hegraph.results",)):
        command = [sys.executable, "-m", *program, "compare", "results/digits.jsonl"]
        outputs.append(
            subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=900).stdout
        )
    assert outputs[0] == outputs[1] != ""


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("result", "; did you mean 'results'?"),
        ("Datasets", "; did you mean 'datasets'?"),
        ("prediction", "; did you mean 'predict'?"),
        ("train", ""),
    ],
)
def test_a_word_that_is_no_sub_command_is_one_clear_line(word, hint, capsys):
    assert main([word]) == 2
    error = f"error: unknown sub-command {word!r}{hint} (known: {', '.join(sorted(SUBCOMMANDS))})\n"
    assert capsys.readouterr().err == error


@pytest.mark.parametrize("key", ["OPTIM.LRR", "optim.lr", "SEEDS"])
def test_a_word_that_looks_like_a_configuration_key_is_taken_for_one(key, capsys):
    assert main(["--host", "alone", key, "1"]) == main([key, "1"]) == 2
    error = capsys.readouterr().err
    assert error.count(f"unknown configuration key {key!r}") == 2
