"""Plugin in the real FiftyOne: fields and saved views of the operator."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from trainers.hegraph.datasets.digits import load_digits_dataset

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("fiftyone_run.py")


def fiftyone_python() -> str:
    """Python that has FiftyOne and this package's requirements; skip the test without it."""
    named = os.environ.get("HEGRAPH_FIFTYONE_PYTHON")
    if named is None and find_spec("fiftyone") is None:
        pytest.skip("fiftyone is not installed, and HEGRAPH_FIFTYONE_PYTHON does not name a Python that has it")
    return named or sys.executable


def environment(folder: Path) -> dict[str, str]:
    """Variables of FiftyOne, whose files and database are in a folder, with the plugin of this checkout."""
    own = {
        "FIFTYONE_DATABASE_DIR": str(folder / "database"), "FIFTYONE_CONFIG_PATH": str(folder / "config.json"),
        "FIFTYONE_APP_CONFIG_PATH": str(folder / "app.json"), "FIFTYONE_PLUGINS_DIR": str(ROOT / "integrations"),
        "FIFTYONE_DO_NOT_TRACK": "1", "FIFTYONE_DATABASE_VALIDATION": "0", "PYTHONPATH": str(ROOT / "trainers"),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    return {**os.environ, **own}


def save_digits(folder: Path) -> None:
    """Save 20 scans of each digit."""
    dataset = load_digits_dataset()
    for item in dataset.train[:260]:
        place = folder / item.classname
        place.mkdir(parents=True, exist_ok=True)
        if len([*place.iterdir()]) < 20:
            dataset.open(item.path).save(place / f"{Path(item.path).name}.png")


def test_operator_writes_predictions_suspicious_labels_and_suggestions(tmp_path):
    python = fiftyone_python()
    save_digits(tmp_path / "images")
    words = [python, str(PROGRAM), str(tmp_path / "images")]
    ran = subprocess.run(words, env=environment(tmp_path), capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-2000:]
    answer = json.loads(ran.stdout.splitlines()[-1])
    assert answer["listed"] and answer["result"]["labelled"] == 120 and answer["result"]["predicted"] == 200
    assert answer["suspicious"][:3] == [["planted"]] * 3
    assert answer["result"]["suspicious"] == len(answer["suspicious"]) <= 15
    assert answer["next"] == [1, 2, 3, 4, 5] and answer["next labels"] == [None] * 5
    assert sum(answer["right"]) > 180
    assert answer["confidence"] == sorted(answer["confidence"]) and len(answer["confidence"]) == 200
