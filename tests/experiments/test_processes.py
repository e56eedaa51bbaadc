"""Runs that two processes of `torchrun` start together: both encode, and the first alone trains, tests and writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

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


class Ran(NamedTuple):
    """The output folder of a command, the folder of its features, and what it printed."""

    folder: Path
    features: Path
    out: str

    @property
    def record(self) -> dict:
        return json.loads((self.folder / "result.json").read_text())

    @property
    def parts(self) -> list[str]:
        """The parts of features that were encoded: data set and name of each."""
        files = (path.relative_to(self.features) for path in self.features.rglob("*.safetensors"))
        return sorted(f"{file.parts[0]} {file.name.partition('-')[0]}" for file in files)


def start(folder: Path, launcher: tuple[str, ...], dataset: str, *flags: str) -> Ran:
    """Runs a command on images of digits, with features of its own, by a launcher or in one process."""
    ran = Ran(folder / "out", folder / "features", "")
    common = ("--dataset-config-file", dataset, "--config-file", "mini", "--shots", "2", "--output-dir", ran.folder)
    command = [*launcher, "-m", "trainers.hegraph", *common, *flags, *QUICK, f"{NODE}.FEATURES.DIR", ran.features]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # torchrun sets it as well
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return ran._replace(out=done.stdout)


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Ran:
    """An unseeded training of two processes, which is tested on other data sets."""
    return start(tmp_path_factory.mktemp("together"), TORCHRUN, "digits", "--seed", "-1", *TARGETS)


def test_an_unseeded_run_with_targets_has_the_result_of_a_single_process(together, tmp_path):
    record = together.record
    alone = start(tmp_path, (), "digits", "--seed", str(record["seed"]), *TARGETS)
    for key in ("run_id", "targets", "accuracy", "accuracy_text", "macro_f1"):
        assert record[key] == alone.record[key], key
    assert set(record["targets"]) == {"DigitsLow", "DigitsHigh"}
    assert together.parts == alone.parts
    assert together.out.count("\n") == 1


def test_a_model_is_tested_on_other_classes_as_right_after_training(together, tmp_path):
    tested = start(tmp_path, TORCHRUN, "digits_high", "--eval-only", "--model-dir", str(together.folder))
    for key, value in together.record["targets"]["DigitsHigh"].items():
        assert tested.record[key] == value, key
    assert tested.record["rule"] == "other classes"
    assert tested.parts == ["DigitsHigh test", "DigitsHigh text"]
    assert tested.out.count("\n") == 1
