"""Banks of real CLIP features: the shipped configuration beats zero-shot on each, at one shot and at sixteen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainers.hegraph.__main__ import main

CONFIG = Path(__file__).parents[2] / "configs" / "trainers" / "HeGraphAdapter" / "vit_b32.yaml"

# Zero-shot accuracy by independent code, from the README beside the banks
ZERO_SHOT = {"caltech101": 90.18, "oxford_pets": 67.87, "stanford_cars": 58.96, "ucf101": 61.49}


@pytest.mark.parametrize("shots", [1, 16])
@pytest.mark.parametrize("name", ZERO_SHOT)
def test_the_shipped_configuration_beats_zero_shot(shared, tmp_path, name, shots):
    arguments = ["--features", str(shared / "data" / f"{name}.safetensors"), "--shots", str(shots), "--seed", "1"]
    assert main([*arguments, "--config-file", str(CONFIG), "--output-dir", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "result.json").read_text())
    assert record["accuracy_zero_shot"] == pytest.approx(ZERO_SHOT[name], abs=0.05)
    assert record["accuracy"] > record["accuracy_zero_shot"]
    if shots == 16:
        assert record["accuracy"] > record["accuracy_zero_shot"] + 3
