"""Runs that two processes of `torchrun` start together: both encode, and the first alone trains, tests and writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NODE = "TRAINER.HEGRAPHADAPTER"
# With 10 images a batch a chunk has 160, so that either process encodes some of the 448 or 451 test images
QUICK = ("OPTIM.MAX_EPOCH", "3", f"{NODE}.MIN_STEPS", "0", f"{NODE}.FEATURES.VIEWS", "2",
         "DATALOADER.TEST.BATCH_SIZE", "10")  # fmt: skip
# The base classes, five digits, are the classes of DigitsLow
TARGETS = ("--target-domains", "DigitsLow", "--target-datasets", "DigitsHigh", "DATASET.SUBSAMPLE_CLASSES", "base")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def start(folder: Path, launcher: tuple[str, ...], dataset: str, *flags: str) -> dict:
    """Runs a command on images of digits by a launcher or in one process; gives its record."""
    out, features = folder / "out", folder / "features"
    common = ("--dataset-config-file", dataset, "--config-file", "mini", "--shots", "2", "--output-dir", out)
    command = [*launcher, "-m", "trainers.hegraph", *common, *flags, *QUICK, f"{NODE}.FEATURES.DIR", features]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # torchrun sets it as well
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    assert (done.returncode, done.stdout.count("\n")) == (0, 1), done.stderr
    return json.loads((out / "result.json").read_text())


def encoded(folder: Path) -> dict[str, bytes]:
    features = folder / "features"
    return {str(file.relative_to(features)): file.read_bytes() for file in features.rglob("*.safetensors")}


def test_an_unseeded_run_with_targets_has_the_result_of_a_single_process_and_so_has_a_test_of_its_model(tmp_path):
    together, alone, test = (tmp_path / name for name in ("together", "alone", "test"))
    record = start(together, TORCHRUN, "digits", "--seed", "-1", *TARGETS)
    again = start(alone, (), "digits", "--seed", str(record["seed"]), *TARGETS)
    for key in ("run_id", "targets", "accuracy", "accuracy_text", "macro_f1"):
        assert record[key] == again[key], key
    assert set(record["targets"]) == {"DigitsLow", "DigitsHigh"}
    assert encoded(together) == encoded(alone) != {}
    tested = start(test, TORCHRUN, "digits_high", "--eval-only", "--model-dir", str(together / "out"))
    assert tested.items() >= record["targets"]["DigitsHigh"].items()
    assert tested["rule"] == "other classes"
    parts = sorted(name.partition("-")[0] for name in map(os.path.basename, encoded(test)))
    assert parts == ["test", "text"]
