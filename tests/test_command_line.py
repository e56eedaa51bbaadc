"""The command line: sub-commands, words that are none, and what answers without torch."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest

from trainers.hegraph.__main__ import SUBCOMMANDS, main

ROOT = Path(__file__).parents[1]
SLOW = ["torch", "torchvision", "open_clip", "sklearn", "matplotlib"]
SLOW += [] if int(huggingface_hub.__version__.split(".")[0]) < 1 else ["requests"]  # which its old versions import


def python(program: str, *arguments: str) -> list[str]:
    """The last line that a program prints in a process of its own, in words."""
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=900)
    return done.stdout.splitlines()[-1].split()


def test_help_and_mistakes_in_the_flags_answer_without_torch():
    lines = (
        "--help", "--shots many", "prediction", "--trainer Tip", "--eval-only", "--host alone OPTIM.LRR 1",
        "--host alone --config-file mino",
    )  # fmt: skip
    program = (
        "import contextlib, sys\n"
        "from trainers.hegraph.__main__ import main\n"
        "codes = []\n"
        "for line in sys.argv[1:]:\n"
        "    try:\n"
        "        codes.append(main(line.split()))\n"
        "    except SystemExit as ended:\n"
        "        codes.append(ended.code)\n"
        f"print(*codes, *(name for name in {SLOW} if name in sys.modules))\n"
    )
    assert python(program, *lines) == ["0", *"2" * (len(lines) - 1)]


def test_a_run_from_a_bank_imports_nothing_before_its_first_step_that_it_does_not_need_there(tiny_bank, tmp_path):
    late = {*SLOW, "torch_geometric"} - {"torch"}  # whose optimizer imports torch._dynamo
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
    assert python(program, *arguments) == ["imported"]


def test_the_help_lists_the_sub_commands_and_the_flags(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: python -m trainers.hegraph [FLAG ...] [KEY VALUE ...]\n")
    for name, (_, summary) in SUBCOMMANDS.items():
        assert f"  {name:12}{summary}\n" in out
    assert "--config-file" in out


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_a_sub_command_is_the_program_of_its_module(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: ")
    assert f"trainers.hegraph {name}" in out.splitlines()[0]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_a_sub_command_of_the_package_run_as_a_module_is_that_module(capsys, monkeypatch):
    outputs = []
    for module, first in (("trainers.hegraph", ["results"]), ("trainers.hegraph.results", [])):
        words = [*first, "compare", str(ROOT / "results" / "digits.jsonl")]
        monkeypatch.setattr(sys, "argv", [module, *words])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(module, run_name="__main__")
        assert ended.value.code == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != ""


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("result",), "; did you mean 'results'?"),
        (("xyz",), ""),
    ],
)
def test_a_word_that_is_no_sub_command_is_one_clear_line(words, hint, capsys):
    assert main(list(words)) == 2
    word = next(word for word in words if word.isalpha())
    error = f"error: unknown sub-command {word!r}{hint} (known: {', '.join(sorted(SUBCOMMANDS))})\n"
    assert capsys.readouterr().err == error


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--trainer HeGraphAdaptor", "unknown trainer 'HeGraphAdaptor'; did you mean 'HeGraphAdapter'"),
        ("--load-epoch 1", "--load-epoch goes with --eval-only"),
        ("--eval-only --model-dir x --load-epoch 1 --trainer GDA", "--load-epoch goes with --eval-only"),
        ("--trainer GDA --select val", "--select chooses HeGraphAdapter's values"),
        ("--trainer CLIPAdapter --eval-only --model-dir x", "CLIPAdapter leaves no model"),
    ],
)
def test_flags_that_do_not_go_together_are_one_line(flags, said, capsys):
    assert main(flags.split()) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("key", ["OPTIM.LRR", "optim.lr", "SEEDS"])
def test_a_word_that_looks_like_a_configuration_key_is_taken_for_one(key, capsys):
    assert main(["--host", "alone", key, "1"]) == main([key, "1"]) == 2
    error = capsys.readouterr().err
    assert error.count(f"unknown configuration key {key!r}") == 2
