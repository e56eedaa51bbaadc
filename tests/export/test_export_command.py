"""`export` as a user calls it: what it prints, and one line for each mistake."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

onnx = pytest.importorskip("onnx", reason="the extra `onnx` is not installed: pip install onnx onnxruntime")
pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed: pip install onnx onnxruntime")

from trainers.hegraph.__main__ import main  # noqa: E402
from trainers.hegraph.backbones.identity import MINI_WEIGHTS  # noqa: E402
from trainers.hegraph.models.folder import save_model  # noqa: E402


def export(*arguments: object) -> int:
    return main(["export", *map(str, arguments)])


def inputs_of(file: Path) -> list[str]:
    return [entry.name for entry in onnx.load(file).graph.input]


def test_it_says_what_it_wrote_and_how_far_it_is_from_torch(finished_digits_once, tmp_path, capsys):
    file = tmp_path / "new" / "folder" / "model.onnx"
    assert export(finished_digits_once, "--onnx", file) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{file}: {file.stat().st_size / 1e6:.2f} MB; ")
    found = re.search(r"largest difference from torch: logits (\S+) of the largest, probabilities (\S+)\n$", said)
    assert max(map(float, found.groups())) <= 1e-4
    assert list(file.parent.iterdir()) == [file] and inputs_of(file) == ["pixel_values"]
    assert export(finished_digits_once / "model", "--onnx", file, "--part", "head", "--fp16") == 0  # replaces it
    assert inputs_of(file) == ["features"]


def test_a_model_from_a_bank_needs_a_backbone_for_its_images(random_model, tmp_path, capsys):
    model, file = tmp_path / "of_bank", tmp_path / "full.onnx"
    save_model(random_model(64), model)
    assert export(model, "--onnx", file) == 2
    assert "from a feature bank (" in capsys.readouterr().err and not file.exists()
    assert export(model, "--onnx", file, "--backbone", "hegraph-mini") == 0
    assert inputs_of(file) == ["pixel_values"]


def test_neither_the_model_nor_its_weights_are_written_over(finished_digits, tmp_path, capsys):
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(MINI_WEIGHTS.read_bytes())
    for file in (finished_digits / "model" / "config.json", weights):
        assert export(finished_digits, "--pretrained", weights, "--onnx", file) == 2
        assert "is read by this command" in capsys.readouterr().err


def test_a_missing_package_and_flags_that_make_no_sense_are_one_line(finished_digits_once, capsys, monkeypatch):
    assert export(finished_digits_once, "--onnx", "x", "--part", "head", "--backbone", "RN50") == 2
    assert "--part head takes features" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert export(finished_digits_once, "--onnx", "x") == 2
    assert "export needs the package onnxruntime: pip install 'onnx" in capsys.readouterr().err
