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


def start(folder: Path, launcher: tuple[str, ...], dataset: str, *flags: str) -> tuple[dict, list[str]]:
    """Runs a command on images of digits by a launcher or in one process; gives its record, and what it encoded."""
    out, features = folder / "out", folder / "features"
    common = ("--dataset-config-file", dataset, "--config-file", "mini", "--shots", "2", "--output-dir", out)
    command = [*launcher, "-m", "trainers.hegraph", *common, *flags, *QUICK, f"{NODE}.FEATURES.DIR", features]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # torchrun sets it as well
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    parts = [file.relative_to(features) for file in features.rglob("*.safetensors")]
    encoded = sorted(f"{part.parts[0]} {part.name.partition('-')[0]}" for part in parts)
    return json.loads((out / "result.json").read_text()), encoded


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("together")


@pytest.fixture(scope="module")
def together(folder) -> tuple[dict, list[str]]:
    """An unseeded training of two processes in `folder`, which is tested on other data sets."""
    return start(folder, TORCHRUN, "digits", "--seed", "-1", *TARGETS)


def test_an_unseeded_run_with_targets_has_the_result_of_a_single_process(together, folder, tmp_path):
    record, encoded = together
    alone, encoded_alone = start(tmp_path, (), "digits", "--seed", str(record["seed"]), *TARGETS)
    for key in ("run_id", "targets", "accuracy", "accuracy_text", "macro_f1"):
        assert record[key] == alone[key], key
    assert set(record["targets"]) == {"DigitsLow", "DigitsHigh"}
    assert encoded == encoded_alone
    for file in (folder / "features").rglob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / file.relative_to(folder)).read_bytes()


def test_a_model_is_tested_on_other_classes_as_right_after_training(together, folder, tmp_path):
    tested, encoded = start(tmp_path, TORCHRUN, "digits_high", "--eval-only", "--model-dir", str(folder / "out"))
    for key, value in together[0]["targets"]["DigitsHigh"].items():
        assert tested[key] == value, key
    assert (tested["rule"], encoded) == ("other classes", ["DigitsHigh test", "DigitsHigh text"])
