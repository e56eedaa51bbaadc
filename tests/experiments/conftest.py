"""What the tests of runs share: the command on the tiny bank."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from trainers.hegraph.__main__ import main, summary

QUICK = ("OPTIM.MAX_EPOCH", "3", "OPTIM.WARMUP_EPOCH", "0", "TRAINER.HEGRAPHADAPTER.MIN_STEPS", "0")


@pytest.fixture
def run(tiny_bank, tmp_path, capsys) -> Callable[..., tuple[dict, Path] | str]:
    """Function of flags, then pairs, of a run of 2 shots and seed 1 of a bank: its record and folder.

    Where it has to end with another code, what it says: with the code 2 one line.
    """

    def start(*words: str, name: str = "run", bank: Path | None = tiny_bank, quick: tuple = QUICK, code: int = 0):
        out, source = tmp_path / name, [] if bank is None else ["--features", str(bank)]
        assert main([*source, "--shots", "2", "--seed", "1", "--output-dir", str(out), *words, *quick]) == code
        printed, said = capsys.readouterr()
        if code == 2:
            assert (printed, said[:7], said.count("\n")) == ("", "error: ", 1)
        if code:
            return said
        record = json.loads((out / "result.json").read_text())
        assert printed == f"{summary(record)} -> {out}\n"
        return record, out

    return start
