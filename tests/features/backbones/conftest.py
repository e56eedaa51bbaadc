"""Fixtures of the backbones: mini, a tiny ViT, and bundles."""

import json
from copy import deepcopy
from pathlib import Path

import open_clip
import pytest
import torch
from tiny import HALF_MEAN, SIGLIP_CONFIG, TINY, TINY_CONFIG, save_weights
from torch import nn

from trainers.hegraph.features.backbones.base import Backbone
from trainers.hegraph.features.backbones.loading import load_backbone
from trainers.hegraph.features.backbones.open_clip_models import create_model


@pytest.fixture(scope="session", autouse=True)
def tiny_names(tmp_path_factory) -> None:
    """Register TINY, its variant without QuickGELU, and one with another resolution in open_clip."""
    folder = tmp_path_factory.mktemp("configs")
    larger = {**TINY_CONFIG, "vision_cfg": {**TINY_CONFIG["vision_cfg"], "image_size": 48}}
    for name, config in ((TINY, TINY_CONFIG), ("tiny-vit", {**TINY_CONFIG, "quick_gelu": False}), ("tiny-48", larger)):
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


@pytest.fixture(scope="session")
def tiny_model() -> nn.Module:
    """A random TINY whose matrices are exact in half precision, like OpenAI's."""
    model, _, _ = create_model(TINY)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(parameter.half())
    return model.eval()


@pytest.fixture(scope="session")
def tiny(tiny_model, tmp_path_factory) -> Backbone:
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    save_weights(tiny_model, path)
    return load_backbone(TINY, str(path))


@pytest.fixture
def bundle(tiny_model, tmp_path) -> Path:
    """A bundle: the tiny model with its own preprocessing."""
    folder = tmp_path / "birds"
    folder.mkdir()
    config = {"model_cfg": TINY_CONFIG, "preprocess_cfg": HALF_MEAN}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.save(tiny_model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return folder


@pytest.fixture
def siglip(tmp_path) -> Path:
    """A folder of a random SigLIP."""
    folder = tmp_path / "siglip"
    folder.mkdir()
    config = {"model_cfg": SIGLIP_CONFIG, "preprocess_cfg": HALF_MEAN}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    build = {key: value for key, value in deepcopy(SIGLIP_CONFIG).items() if key != "custom_text"}
    save_weights(open_clip.CustomTextCLIP(**build), folder / "open_clip_model.safetensors")
    return folder
