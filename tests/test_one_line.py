"""Mistakes on the command line that used to end in a traceback, a hang or a page of text: one line, exit code 2."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from trainers.hegraph.__main__ import SUBCOMMANDS, main
from trainers.hegraph.features.bank import load_bank

NODE = "TRAINER.HEGRAPHADAPTER"
LONG = "x" * 300


@pytest.fixture
def refused(tiny_bank, tmp_path, capsys, monkeypatch):
    """Runs a training on the tiny bank with more arguments, which must be refused; returns the line."""
    monkeypatch.chdir(tmp_path)

    def check(*arguments: str, bank: bool = True) -> str:
        capsys.readouterr()
        first = ["--features", str(tiny_bank), "--output-dir", str(tmp_path / "out")] if bank else []
        assert main([*first, *arguments]) == 2
        out, error = capsys.readouterr()
        assert out == ""
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert len(error) < 300
        assert not (tmp_path / "out").exists()
        return error

    return check


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("OPTIM.MAX_EPOCH", "9" * 5000),
        (f"{NODE}.FREE.OMEGA", "[[1, 0x1" + "0" * 4000 + "]]"),
        ("INPUT.SIZE", "[" * 50_000),
        (f"{NODE}.PROMPTS.TEMPLATES", "['\\ud800 {}']"),
        (f"{NODE}.BY_DATASET", "[['x', ['OPTIM.LR', {1, 2}]]]"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused_with_its_key(refused, key, value):
    assert key.removeprefix(f"{NODE}.") in refused(key, value)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--config-file", f"{LONG}.yaml"),
        ("--features", LONG),
        ("--root", "~nosuchuser", "--dataset-config-file", "dtd"),
        ("--root", LONG, "--dataset-config-file", "folder"),
        ("--root", "\udcff", "--dataset-config-file", "folder"),
        ("--eval-only", "--model-dir", LONG),
    ],
)
def test_a_path_that_cannot_be(refused, arguments):
    refused(*arguments, bank=False)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--features", "pipe"),
        ("--config-file", "pipe"),
        ("results", "compare", "pipe"),
        ("features", "import-tip", ".", "--out", "new", "--classnames", "pipe"),
        ("describe", "--classes", "pipe", "--context", "photos", "--out", "o.json"),
        ("predict", "pipe", "image.png"),
    ],
)
def test_a_pipe_is_never_waited_for(refused, tmp_path, arguments):
    os.mkfifo(tmp_path / "pipe")
    refused(*arguments, bank=False)


@pytest.mark.parametrize("command", ["", *SUBCOMMANDS])
def test_a_flag_that_no_command_knows_is_one_line(command, capsys):
    assert main([*([command] if command else []), "--no-such-flag"]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("error: ")
    assert error.endswith(" --help)\n")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"WORLD_SIZE": "x"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "2"}, "RANK"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK must be from 0 to 1"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR"),
    ],
)
def test_variables_that_torchrun_does_not_set_so_are_no_traceback(refused, monkeypatch, variables, words):
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    said = refused()
    assert "cannot join the processes of torchrun: " in said and words in said


@pytest.fixture
def one_class(tiny_bank, tmp_path) -> str:
    """A feature bank of the first class alone."""
    bank = load_bank(tiny_bank)
    one = {"classnames": ["ant"], "text_positive": bank.text_positive[:1], "text_negative": bank.text_negative[:1]}
    for split in ("train", "val", "test"):
        rows = getattr(bank, f"{split}_labels") == 0
        one |= {f"{split}_features": getattr(bank, f"{split}_features")[..., rows, :]}
        one |= {f"{split}_labels": getattr(bank, f"{split}_labels")[rows]}
    replace(bank, **one).save(tmp_path / "one.safetensors")
    return str(tmp_path / "one.safetensors")


@pytest.mark.parametrize("method", ["HeGraphAdapter", "ZeroShot"])
def test_one_class_is_neither_learned_nor_tested(tiny_bank, tmp_path, refused, one_class, method):
    words = "there must be at least two classes to tell apart, got 1"
    assert words in refused("--trainer", method, "--features", one_class)
    model = str(tmp_path / "model")
    quick = ("--shots", "2", "OPTIM.MAX_EPOCH", "1", f"{NODE}.MIN_STEPS", "0")
    assert main(["--trainer", method, "--features", str(tiny_bank), "--output-dir", model, *quick]) == 0
    test = ("--eval-only", "--model-dir", model)
    assert words in refused("--trainer", method, "--features", one_class, *test)
