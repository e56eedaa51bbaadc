"""Folders that bring configuration, weights and tokenizer along."""

from __future__ import annotations

import importlib.machinery
import json
import math
import re
import shutil
import sys
from copy import deepcopy
from pathlib import Path
from types import ModuleType, SimpleNamespace

import open_clip
import pytest
from PIL import Image
from tiny import AUGMENTATION, HALF_MEAN, TINY_CONFIG, kinds, save_weights

from trainers.hegraph.backbones.loading import load_backbone
from trainers.hegraph.utils.errors import UserError


def test_a_siglip_in_a_folder_takes_everything_from_the_model(siglip):
    backbone = load_backbone(f"local-dir:{siglip}")
    assert backbone.mean == backbone.std == (0.5, 0.5, 0.5)
    assert kinds(backbone.preprocess)[0] == "Resize" and "CenterCrop" not in kinds(backbone.preprocess)  # squashed
    assert (backbone.width, backbone.tokenizer(["a cat"]).shape) == (192, (1, 64))
    assert math.log(backbone.logit_scale) == pytest.approx(4.7)
    image = Image.new("L", (50, 20), 100).convert("RGB")
    for transform in (backbone.preprocess, backbone.training_transform(AUGMENTATION, (0.08, 1.0), "bicubic")):
        assert transform(image).shape == (3, *backbone.input_size) == (3, 224, 224)


def test_a_folder_without_configuration_or_with_a_choice_of_weights_is_refused(bundle):
    weights = bundle / "open_clip_pytorch_model.bin"
    weights.rename(bundle / "epoch_1.pt")
    assert load_backbone(f"local-dir:{bundle}").name == "birds"
    shutil.copy(bundle / "epoch_1.pt", bundle / "epoch_2.pt")
    with pytest.raises(UserError, match=r"must be a folder with open_clip_config\.json and open_clip_model\.safet"):
        load_backbone(f"local-dir:{bundle}")
    (bundle / "epoch_2.pt").rename(weights)  # a name that goes before others
    assert load_backbone(f"local-dir:{bundle}").name == "birds"
    (bundle / "open_clip_config.json").rename(bundle / "config.json")
    with pytest.raises(UserError, match=r"must be a folder with open_clip_config\.json"):
        load_backbone(f"local-dir:{bundle}")


def test_a_damaged_configuration_is_refused(bundle):
    (bundle / "open_clip_config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot load local-dir:"):
        load_backbone(f"local-dir:{bundle}")


@pytest.mark.parametrize("resize_mode", ["squash", "shortest", "longest"])
def test_images_that_are_not_square_are_made_so_by_both_transforms(bundle, resize_mode):
    config = deepcopy(TINY_CONFIG)
    config["vision_cfg"]["image_size"] = [24, 40]
    preprocessing = {**HALF_MEAN, "resize_mode": resize_mode}
    (bundle / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocessing}))
    save_weights(open_clip.CLIP(**deepcopy(config)), bundle / "open_clip_model.safetensors")
    backbone = load_backbone(f"local-dir:{bundle}")
    assert backbone.input_size == (24, 40)
    image = Image.new("RGB", (50, 20), (100, 100, 100))
    augmentation = backbone.training_transform(AUGMENTATION, (0.08, 1.0), "bicubic")
    for transform in (backbone.preprocess, augmentation, backbone.training_transform(["normalize"], (1, 1), "bicubic")):
        pixels = transform(image)
        assert pixels.shape == (3, 24, 40)
        assert backbone.encode_images(pixels.unsqueeze(0)).shape == (1, backbone.width)
    assert kinds(augmentation)[1] == "RandomResizedCrop"
    assert not re.search("(?<!Random)Resize(?!d)|Keep|Center", repr(augmentation))


# Files of strangers


def change_text(bundle: Path, **keys: object) -> None:
    config = {"model_cfg": {**TINY_CONFIG, "text_cfg": {**TINY_CONFIG["text_cfg"], **keys}}}
    (bundle / "open_clip_config.json").write_text(json.dumps(config))


@pytest.fixture
def transformers(monkeypatch) -> list[tuple[str, dict]]:
    """Takes the place of the package: a list of what tokenizers were asked for."""
    asked: list[tuple[str, dict]] = []
    package, utils = ModuleType("transformers"), ModuleType("transformers.dynamic_module_utils")
    package.__spec__ = importlib.machinery.ModuleSpec("transformers", None)
    package.AutoTokenizer = SimpleNamespace(from_pretrained=lambda place, **keys: asked.append((place, keys)))
    utils.TIME_OUT_REMOTE_CODE = 15
    package.dynamic_module_utils = utils
    monkeypatch.setitem(sys.modules, "transformers", package)
    monkeypatch.setitem(sys.modules, "transformers.dynamic_module_utils", utils)
    return asked


@pytest.mark.parametrize("more", [{}, {"hf_tokenizer_name": "org/name"}])
def test_a_configuration_cannot_ask_for_code(bundle, transformers, more):
    change_text(bundle, tokenizer_kwargs={"clean": "lower", "trust_remote_code": True}, **more)
    (bundle / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"birds/open_clip_config\.json: .*kwargs holds trust_remote_code, and may"):
        load_backbone(f"local-dir:{bundle}")
    assert transformers == []


def test_a_tokenizer_of_files_may_bring_no_code_and_nobody_is_asked(bundle, transformers):
    change_text(bundle, tokenizer_kwargs={"clean": "lower"}, hf_tokenizer_name="org/name", context_length=77)
    with pytest.raises(UserError, match=r"the tokenizer of local-dir:.* is missing: put tokenizer\.json and"):
        load_backbone(f"local-dir:{bundle}")
    (bundle / "tokenizer.json").write_text("{}")
    load_backbone(f"local-dir:{bundle}")
    assert transformers == [(str(bundle), {"cache_dir": None, "trust_remote_code": False})]
    assert sys.modules["transformers.dynamic_module_utils"].TIME_OUT_REMOTE_CODE == 0
