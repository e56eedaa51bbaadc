"""Adding a method takes two files: its own, and a row in the registry."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
METHOD = '''"""Nearest mean: the class whose mean image feature is nearest."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode

from ..features.bank import FeatureBank
from ..method.cache import text_logits
from .base import Defaults, FittedMethod, Method


class NearestMean(Method):
    """Compares an image with the mean of each class's training images."""

    defaults: ClassVar[Defaults] = {"SCALE": 50.0}  # of the logits

    def fit(self, bank: FeatureBank, options: CfgNode, seed: int, backbone: object = None) -> FittedMethod:
        sums = torch.zeros_like(bank.text_positive).index_add(0, bank.train_labels, bank.cache_keys())

        def logits(features: Tensor) -> Tensor:
            return text_logits(features, F.normalize(sums, dim=-1), options.SCALE)

        return FittedMethod(logits)
'''


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A checkout with one more method: a new file, and a row of the registry."""
    package = shutil.copytree(ROOT / "trainers", tmp_path / "trainers", ignore=shutil.ignore_patterns("__pycache__"))
    folder = package / "hegraph" / "baselines"
    (folder / "nearest_mean.py").write_text(METHOD)
    registry = (folder / "__init__.py").read_text()
    assert registry.count('    "APET": "ape_t",\n') == 1
    row = '    "APET": "ape_t",\n    "NearestMean": "nearest_mean",\n'
    (folder / "__init__.py").write_text(registry.replace('    "APET": "ape_t",\n', row))
    return tmp_path


def python(folder: Path, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_new_method_is_listed_and_runs_with_options_of_its_own(checkout, tiny_bank):
    for flags in ([], ["--from-bank"]):
        listed = python(checkout, "trainers.hegraph.baselines", *flags).split()
        assert listed[-2:] == ["NearestMean", "HeGraphAdapter"]
    command = ["trainers.hegraph", "--features", str(tiny_bank), "--trainer", "NearestMean", "--shots", "4"]
    python(checkout, *command, "--output-dir", str(checkout / "out"), "TRAINER.NEARESTMEAN.SCALE", "20.0")
    record = json.loads((checkout / "out" / "result.json").read_text())
    assert record["trainer"] == "NearestMean"
    assert record["accuracy"] > 0
