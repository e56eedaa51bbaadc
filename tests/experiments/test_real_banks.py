"""Banks of real CLIP features: the shipped configuration beats zero-shot on each, at one shot and at sixteen."""

from __future__ import annotations

from pathlib import Path

import pytest

CONFIG = Path(__file__).parents[2] / "configs" / "trainers" / "HeGraphAdapter" / "vit_b32.yaml"

# Zero-shot accuracy by independent code, from the README beside the banks
ZERO_SHOT = {"caltech55": 97.04, "imagenet283": 74.32, "oxford_pets": 74.73, "stanford_cars": 58.96, "ucf101": 61.49}


@pytest.mark.parametrize(
    ("name", "shots", "gain"),
    [
        *((name, 1, 0) for name in ZERO_SHOT),
        ("caltech55", 16, 1),
        ("imagenet283", 4, 3),  # its pool has four images a class
        ("oxford_pets", 16, 8),
        ("stanford_cars", 16, 15),
        ("ucf101", 16, 15),
    ],
)
def test_the_shipped_configuration_beats_zero_shot(shared, run, name, shots, gain):
    bank, off = shared / "banks" / f"{name}.safetensors", ("TRAINER.HEGRAPHADAPTER.CALIBRATE", "off")
    record, _ = run("--config-file", str(CONFIG), "--shots", str(shots), bank=bank, quick=off)
    assert record["accuracy_zero_shot"] == pytest.approx(ZERO_SHOT[name], abs=0.05)
    assert record["accuracy"] > record["accuracy_zero_shot"] + gain
