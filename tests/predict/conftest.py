"""A run on the digits with mini, and images of digits in files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from trainers.hegraph.__main__ import main as train
from trainers.hegraph.datasets.digits import open_digit

QUICK = ["OPTIM.MAX_EPOCH", "2", "OPTIM.WARMUP_EPOCH", "0", "TRAINER.HEGRAPHADAPTER.MIN_STEPS", "0"]


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a short training."""
    folder = tmp_path_factory.mktemp("digits")
    features = ["TRAINER.HEGRAPHADAPTER.FEATURES.DIR", str(folder / "features")]
    shots = ["--shots", "4", "--seed", "1", "--output-dir", str(folder / "run")]
    assert train(["--config-file", "mini", "--dataset-config-file", "digits", *shots, *features, *QUICK]) == 0
    return folder / "run"


@pytest.fixture
def write_digit() -> Callable[[Path, int], Path]:
    """Function of a path and a row: writes that scan."""

    def write(path: Path, row: int) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            open_digit(f"digits/{row:04d}").save(file, format="PNG")
        return path

    return write
