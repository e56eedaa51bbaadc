"""`export` as a user calls it: what it prints, and one line for each mistake."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

onnx = pytest.importorskip("onnx", reason="the extra `onnx` is not installed: pip install onnx onnxruntime")
pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed: pip install onnx onnxruntime")

from trainers.hegraph.__main__ import main as program  # noqa: E402
from trainers.hegraph.backbones.identity import MINI_WEIGHTS  # noqa: E402
from trainers.hegraph.export.__main__ import main  # noqa: E402
from trainers.hegraph.models.folder import save_model  # noqa: E402


@pytest.fixture
def trained(finished_digits_once: Path) -> Path:
    return finished_digits_once


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
    said = capsys.readouterr().out
    assert said.startswith(f"{file}: {file.stat().st_size / 1e6:.2f} MB; ")
    found = re.search(r"largest difference from torch: logits (\S+) of the largest, probabilities (\S+)\n$", said)
    assert max(map(float, found.groups())) <= 1e-4
    onnx.checker.check_model(str(file), full_check=True)
    assert list(file.parent.iterdir()) == [file]
    assert main([str(trained / "model"), "--onnx", str(file), "--part", "head", "--fp16"]) == 0  # replaces it
    assert [entry.name for entry in onnx.load(file).graph.input] == ["features"]


def test_a_model_from_a_bank_needs_a_backbone_for_its_images(of_bank, refused, tmp_path):
    line = refused(of_bank)
    assert "from a feature bank (" in line
    file = tmp_path / "full.onnx"
    assert main([str(of_bank), "--onnx", str(file), "--backbone", "hegraph-mini"]) == 0
    assert [entry.name for entry in onnx.load(file).graph.input] == ["pixel_values"]


def test_a_backbone_of_another_width_or_another_fingerprint_is_refused(random_model, trained, refused, tmp_path):
    save_model(random_model(32), tmp_path / "narrow")
    assert "width 64, but the model takes 32" in refused(tmp_path / "narrow", "--backbone", "hegraph-mini")
    other = tmp_path / "weights.safetensors"
    other.write_bytes(MINI_WEIGHTS.read_bytes()[:-4] + b"\0\0\0\0")
    assert "has another weights" in refused(trained, "--pretrained", other)


def test_neither_the_model_nor_its_weights_are_written_over(finished_digits, refused, tmp_path):
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(MINI_WEIGHTS.read_bytes())
    for file in (finished_digits / "model" / "config.json", weights):
        assert "is read by this command" in refused(finished_digits, "--pretrained", weights, file=file)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--part", "head", "--backbone", "RN50"], "--part head takes features"),
        (["--backbone", "hegraph-mimi", "--pretrained", "openai"], "did you mean 'hegraph-mini'?"),
    ],
)
def test_flags_that_make_no_sense_are_refused(flags, said, trained, refused):
    assert said in refused(trained, *flags)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_one_line(package, trained, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    assert f"export needs the package {package}: pip install 'onnx" in refused(trained)
