"""Bundles: folders and Hub repositories with configuration, weights and tokenizer."""

import importlib.machinery
import json
import math
import re
import shutil
import sys
from copy import deepcopy
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock, Mock

import huggingface_hub
import open_clip
import pytest
from PIL import Image
from tiny import AUGMENTATION, HALF_MEAN, TINY_CONFIG, assert_same_features, cache_file, kinds, save_weights
from torchvision import transforms as T

from trainers.hegraph.features.backbones import open_clip_models
from trainers.hegraph.features.backbones.loading import load_backbone
from trainers.hegraph.features.backbones.open_clip_models import Source, create_model, find_source
from trainers.hegraph.utils.errors import UserError
from trainers.hegraph.utils.text import one_line


def test_siglip_folder_has_its_own_preprocessing_and_tokenizer(siglip):
    backbone = load_backbone(f"local-dir:{siglip}")
    assert backbone.mean == backbone.std == (0.5, 0.5, 0.5)
    assert kinds(backbone.preprocess)[0] == "Resize" and "CenterCrop" not in kinds(backbone.preprocess)  # squashed
    assert (backbone.width, backbone.tokenizer(["a cat"]).shape) == (192, (1, 64))
    assert math.log(backbone.logit_scale) == pytest.approx(4.7)
    image = Image.new("L", (50, 20), 100).convert("RGB")
    for transform in (backbone.preprocess, backbone.training_transform(AUGMENTATION, (0.08, 1.0), "bicubic")):
        assert transform(image).shape == (3, *backbone.input_size) == (3, 224, 224)


def test_incomplete_and_ambiguous_folders_are_rejected(bundle):
    weights = bundle / "open_clip_pytorch_model.bin"
    weights.rename(bundle / "epoch_1.pt")
    assert load_backbone(f"local-dir:{bundle}").name == "birds"
    shutil.copy(bundle / "epoch_1.pt", bundle / "epoch_2.pt")
    with pytest.raises(UserError, match=r"must be a folder with open_clip_config\.json and open_clip_model\.safet"):
        load_backbone(f"local-dir:{bundle}")
    (bundle / "epoch_2.pt").rename(weights)  # a preferred name
    assert load_backbone(f"local-dir:{bundle}").name == "birds"
    (bundle / "open_clip_config.json").rename(bundle / "config.json")
    with pytest.raises(UserError, match=r"must be a folder with open_clip_config\.json"):
        load_backbone(f"local-dir:{bundle}")


@pytest.mark.parametrize("resize_mode", ["squash", "shortest", "longest"])
def test_both_transforms_give_the_input_size(bundle, resize_mode):
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


# Untrusted files


def change_text(bundle: Path, **keys: object) -> None:
    config = {"model_cfg": {**TINY_CONFIG, "text_cfg": {**TINY_CONFIG["text_cfg"], **keys}}}
    (bundle / "open_clip_config.json").write_text(json.dumps(config))


@pytest.fixture
def transformers(monkeypatch) -> list[tuple[str, dict]]:
    """Replace the package, and list the requested tokenizers."""
    requests: list[tuple[str, dict]] = []

    def from_pretrained(place: str, **keys: object) -> MagicMock:
        requests.append((place, keys))
        return MagicMock()  # open_clip reads its numbers of tokens from version 4 on

    package, utils = ModuleType("transformers"), ModuleType("transformers.dynamic_module_utils")
    package.__spec__ = importlib.machinery.ModuleSpec("transformers", None)
    package.AutoTokenizer = SimpleNamespace(from_pretrained=from_pretrained)
    utils.TIME_OUT_REMOTE_CODE = 15
    package.dynamic_module_utils = utils
    monkeypatch.setitem(sys.modules, "transformers", package)
    monkeypatch.setitem(sys.modules, "transformers.dynamic_module_utils", utils)
    return requests


@pytest.mark.parametrize("more", [{}, {"hf_tokenizer_name": "org/name"}])
def test_configuration_cannot_enable_remote_code(bundle, transformers, more):
    change_text(bundle, tokenizer_kwargs={"clean": "lower", "trust_remote_code": True}, **more)
    (bundle / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"birds/open_clip_config\.json: .*kwargs has trust_remote_code, and only"):
        load_backbone(f"local-dir:{bundle}")
    assert transformers == []


def test_tokenizer_files_cannot_run_code(bundle, transformers):
    change_text(bundle, tokenizer_kwargs={"clean": "lower"}, hf_tokenizer_name="org/name", context_length=77)
    with pytest.raises(UserError, match=r"the tokenizer of local-dir:.* is missing: put tokenizer\.json and"):
        load_backbone(f"local-dir:{bundle}")
    (bundle / "tokenizer.json").write_text("{}")
    load_backbone(f"local-dir:{bundle}")
    assert transformers == [(str(bundle), {"cache_dir": None, "trust_remote_code": False})]
    assert sys.modules["transformers.dynamic_module_utils"].TIME_OUT_REMOTE_CODE == 0


def test_tokenizers_are_read_from_the_cache(no_hub, transformers, monkeypatch):
    name = "ViT-B-16-SigLIP"
    source, repository = Source(name, name, name, None), f"timm/{name}"
    settings = cache_file(no_hub, repository, "tokenizer_config.json")
    settings.touch()
    with pytest.raises(UserError, match=rf"tokenizer of {name} needs tokenizer\.json and"):
        open_clip_models._tokenizer(source)
    (settings.parent / "tokenizer.json").touch()
    assert (open_clip_models._tokenizer(source).context_length, transformers[0][0]) == (64, str(settings.parent))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=f"{name} needs the extra transformers"):
        create_model(name)


# The Hugging Face Hub: downloads, cache, and errors without it


@pytest.mark.parametrize(("name", "pretrained", "message"), [
    ("RN50-quickgelu", "openai", r"needs open_clip_model\.safetensors from \S+/timm/resnet50_clip\.openai, which"),
    ("ViTamin-S", "datacomp1b", r"pytorch_model\.bin from http.*/jienengchen/ViTamin-S, which cannot be reached"),
    ("hf-hub:org/birds", "", r"open_clip_config\.json and open_clip_model\.safetensors from .*local-dir:FOLDER;"),
    ("hf-hub:a/b/c", "", r"expected the name of a repository of .*, got 'a/b/c'"),
])  # fmt: skip
def test_offline_errors_name_the_missing_files(no_hub, monkeypatch, name, pretrained, message):
    asked: list[tuple[str, float]] = []

    def head(url: str, timeout: float) -> None:
        asked.append((url, timeout))
        raise OSError

    monkeypatch.setattr(huggingface_hub.utils, "get_session", lambda: SimpleNamespace(head=head))
    download = Mock(side_effect=AssertionError("huggingface_hub tries for a minute"))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(UserError, match=message):
        load_backbone(name, pretrained)
    assert asked == [("http://127.0.0.1:9", 5)] * (name != "hf-hub:a/b/c")  # one request, 5 seconds


def test_offline_message_shows_address_option_and_embedded_model(no_hub, monkeypatch):
    def head(url: str, timeout: float) -> None:
        raise OSError

    hub, checked = "https://huggingface.co", 0
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub)
    monkeypatch.setattr(huggingface_hub.utils, "get_session", lambda: SimpleNamespace(head=head))
    whole = [
        "ViT-B-16-quickgelu/openai", "ViT-B-32-quickgelu/openai", "RN50-quickgelu/openai", "RN101-quickgelu/openai",
    ]  # fmt: skip
    for name, tag in open_clip.list_pretrained():
        with pytest.raises(UserError) as caught:
            open_clip_models.find_source(name, tag)
        message, repository = one_line(str(caught.value)), open_clip.get_pretrained_cfg(name, tag).get("hf_hub", "")
        if "QuickGELU" not in message:
            assert f" from {hub}/{repository.rpartition('/')[0]}, " in message
            assert message.endswith("(or --pretrained) to its path; hegraph-mini needs no download")
            assert f"{name}/{tag}" not in whole or " ... " not in message
            checked += 1
    assert checked > 100


def test_cached_weights_of_a_tag_need_no_hub(no_hub):
    weights = cache_file(no_hub, "timm/PE-Core-T-16-384", "open_clip_model.safetensors")
    save_weights(create_model("PE-Core-T-16-384")[0], weights)
    backbone = load_backbone("PE-Core-T-16-384", "meta")
    assert (backbone.name, backbone.fingerprint["weights"]) == ("PE-Core-T-16-384/meta", "meta")
    # another resolution, normalisation and text length than OpenAI's
    assert backbone.input_size == (384, 384) and backbone.mean == backbone.std == (0.5, 0.5, 0.5)
    assert backbone.tokenizer(["a cat"]).shape == (1, 32)
    resize = backbone.preprocess.transforms[0]
    assert (tuple(resize.size), resize.interpolation) == ((384, 384), T.InterpolationMode.BILINEAR)
    # a file of the same weights is preprocessed alike
    of_file = open_clip_models._preprocessing(find_source("PE-Core-T-16-384", str(weights)))
    assert of_file == open_clip_models._preprocessing(find_source("PE-Core-T-16-384", "meta"))


def test_weights_are_downloaded_by_preferred_name(bundle, no_hub, tiny_model, monkeypatch):
    monkeypatch.setattr(huggingface_hub.utils, "get_session", lambda: SimpleNamespace(head=lambda url, timeout: None))
    asked: list[str] = []

    def download(repository: str, filename: str) -> str:
        asked.append(f"{repository} {filename}")
        if repository != "org/birds" or not (bundle / filename).exists():
            raise FileNotFoundError(f"404: {filename}\nhelp")
        return str(bundle / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    remote, local = load_backbone("hf-hub:org/birds"), load_backbone(f"local-dir:{bundle}")
    names = ("open_clip_config.json", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    assert asked[:3] == [f"org/birds {name}" for name in names]
    assert (remote.name, local.name, remote.fingerprint == local.fingerprint) == ("org/birds", "birds", True)
    assert_same_features(remote, tiny_model)
    with pytest.raises(UserError, match=r"cannot download open_clip_config\.json of org/bees: 404: open_clip_con\S+$"):
        load_backbone("hf-hub:org/bees")
