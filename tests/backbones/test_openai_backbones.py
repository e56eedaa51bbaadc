"""The whole path with the architectures of OpenAI's CLIP, randomly initialised, on images in CoOp's layout."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trainers.hegraph.__main__ import main
from trainers.hegraph.backbones.loading import create_model
from trainers.hegraph.utils.reading import read_tensors

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"


@pytest.fixture(scope="module")
def tree(shared, tmp_path_factory) -> Path:
    """Six breeds of pets, drawn by the generator of the shared data."""
    root = tmp_path_factory.mktemp("data")
    subprocess.run([sys.executable, shared / "golden" / "make_data.py", root, "--only", "oxford_pets"], check=True)
    return root


@pytest.mark.slow
@pytest.mark.parametrize(("config", "name", "width"), [("rn50", "RN50", 1024), ("vit_b16", "ViT-B-16", 512)])
def test_images_become_a_record_through_a_randomly_initialised_clip(tree, tmp_path, capsys, config, name, width):
    torch.manual_seed(0)
    model, *_ = create_model(f"{name}-quickgelu")
    save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, tmp_path / "random.safetensors")
    arguments = [
        "--root", str(tree), "--shots", "1", "--seed", "1", "--output-dir", str(tmp_path / "out"),
        "--dataset-config-file", str(CONFIGS / "datasets" / "oxford_pets.yaml"),
        "--config-file", str(CONFIGS / "trainers" / "HeGraphAdapter" / f"{config}.yaml"),
        "MODEL.BACKBONE.PRETRAINED", str(tmp_path / "random.safetensors"),
        "TRAINER.HEGRAPHADAPTER.FEATURES.VIEWS", "1", "TRAINER.HEGRAPHADAPTER.FEATURES.DIR", str(tmp_path / "features"),
    ]  # fmt: skip
    assert main(arguments) == 0, capsys.readouterr().err
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (record["dataset"], record["num_train"], record["num_test"]) == ("OxfordPets", 6, 48)
    assert record["backbone"] == f"{name}-quickgelu/random"
    assert 0 <= record["accuracy"] <= 100
    [train] = (tmp_path / "features").rglob("train-*.safetensors")
    assert read_tensors(train, "the features")[0]["features"].shape == (1, 6, width)
