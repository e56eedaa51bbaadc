"""`export` as a user calls it: what it prints, and one line for each mistake."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from trainers.hegraph.__main__ import main as program
from trainers.hegraph.backbones.identity import MINI_WEIGHTS
from trainers.hegraph.export.__main__ import main
from trainers.hegraph.models.folder import load_model, save_model

ROOT = Path(__file__).parents[2]


@pytest.fixture
def refused(capsys, tmp_path) -> Callable[..., str]:
    """Runs the command; it must exit with 2, say one line and leave the folder `out` as it is. Returns the line."""

    def run(*arguments: object, file: Path | None = None) -> str:
        file = file or tmp_path / "out" / "model.onnx"
        before = sorted(file.parent.iterdir()) if file.parent.is_dir() else []
        capsys.readouterr()
        assert main([str(argument) for argument in (*arguments, "--onnx", file)]) == 2
        after = sorted(file.parent.iterdir()) if file.parent.is_dir() else []
        assert after == before
        [line] = capsys.readouterr().err.splitlines()
        return line

    return run


@pytest.fixture
def of_bank(random_model, tmp_path) -> Path:
    """The model folder of a model that was trained from a bank of mini's features, or of others as wide."""
    save_model(random_model(64), tmp_path / "of_bank")
    return tmp_path / "of_bank"


def test_it_says_what_it_wrote_and_how_far_it_is_from_torch(trained, tmp_path, capsys):
    file = tmp_path / "new" / "folder" / "model.onnx"
    assert program(["export", str(trained), "--onnx", str(file)]) == 0
    wrote, differs = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        rf"{file}: \d+\.\d\d MB, pixel_values \[B, 3, 32, 32\] to logits and probabilities \[B, 10\]", wrote
    )
    found = re.fullmatch(r"largest difference from torch: logits (\S+) of the largest, probabilities (\S+)", differs)
    assert max(map(float, found.groups())) <= 1e-4
    onnx.checker.check_model(str(file), full_check=True)
    assert list(file.parent.iterdir()) == [file]


def test_the_model_folder_itself_may_be_given_and_an_older_file_is_replaced(trained, tmp_path):
    file = tmp_path / "head.onnx"
    file.write_text("older")
    assert main([str(trained / "model"), "--onnx", str(file), "--part", "head", "--fp16"]) == 0
    assert [entry.name for entry in onnx.load(file).graph.input] == ["features"]


def test_a_model_from_a_bank_needs_a_backbone_for_its_images(of_bank, refused, tmp_path):
    line = refused(of_bank)
    assert line.startswith("error: the model was trained from a feature bank (")
    assert "; give --backbone NAME --pretrained TAG (in Python" in line and line.endswith("), or export --part head")
    line = refused(of_bank, "--backbone", "RN50")  # whose weights are not guessed, as `predict` guesses none
    assert "the weights of RN50 are not named; give --pretrained" in line
    file = tmp_path / "full.onnx"
    assert main([str(of_bank), "--onnx", str(file), "--backbone", "hegraph-mini"]) == 0
    assert main([str(of_bank), "--onnx", str(file), "--part", "head"]) == 0


def test_a_backbone_of_another_width_or_another_fingerprint_is_refused(random_model, trained, refused, tmp_path):
    save_model(random_model(32), tmp_path / "narrow")
    line = refused(tmp_path / "narrow", "--backbone", "hegraph-mini")
    assert "gives features of width 64, but the model takes 32" in line
    other = tmp_path / "weights.safetensors"
    mini = load_model(trained).backbone
    other.write_bytes(MINI_WEIGHTS.read_bytes()[:-4] + b"\0\0\0\0")
    for flags in (["--backbone", mini.model], []):
        assert "has another weights: " in refused(trained, *flags, "--pretrained", other)


def test_damaged_models_are_refused(trained, refused, tmp_path):
    assert "is not there; give the model folder of a run" in refused(tmp_path / "nowhere")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text("{")
    assert "is damaged" in refused(damaged)
    (damaged / "config.json").write_bytes((trained / "model" / "config.json").read_bytes())
    (damaged / "model.safetensors").write_bytes((trained / "model" / "model.safetensors").read_bytes()[:-8])
    assert "is damaged" in refused(damaged)


def test_a_file_that_cannot_be_written_is_refused(trained, refused, tmp_path):
    (tmp_path / "file").write_text("")
    line = refused(trained, "--part", "head", file=tmp_path / "file" / "model.onnx")
    assert "cannot write" in line
    os.mkfifo(tmp_path / "pipe")
    for taken in (tmp_path, tmp_path / "pipe"):
        assert "is no file but a folder, a pipe or a device" in refused(trained, "--part", "head", file=taken)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_refused(trained, refused, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    assert "cannot write" in refused(trained, "--part", "head", file=locked / "model.onnx")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--part", "head", "--backbone", "RN50"], "--backbone is for what encodes images, and --part head takes"),
        (["--part", "head", "--pretrained", "openai"], "--pretrained is for what encodes images, and --part head"),
        (
            ["--backbone", "hegraph-mimi", "--pretrained", "openai"],
            "unknown backbone 'hegraph-mimi'; did you mean 'hegraph-mini'?",
        ),
    ],
)
def test_flags_that_make_no_sense_are_refused(flags, said, trained, refused):
    assert said in refused(trained, *flags)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_one_line(package, trained, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    assert f"export needs the package {package}: pip install 'onnx" in refused(trained)


def test_help_does_not_wait_for_torch():
    heavy = {"torch", "onnx", "open_clip"}
    asked = f"import sys, trainers.hegraph.export.__main__; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", asked], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]"]
