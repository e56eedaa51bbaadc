"""The frozen CLIP: what loads, what is refused, and what comes out."""

from __future__ import annotations

import http.server
import importlib.util
import json
import logging
import math
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import transforms as T

from trainers.hegraph.backbones import backbone as module
from trainers.hegraph.backbones.backbone import MINI_WEIGHTS, Backbone, create_model, load_backbone
from trainers.hegraph.utils.errors import UserError

ROOT = Path(__file__).parents[2]
AUGMENTATION = ("random_resized_crop", "random_flip", "normalize")
SENTENCES = ["a photo of a cat.", "a photo of no cat.", ""]

TINY = "tiny-vit-quickgelu"  # as OpenAI's ViTs, but small
TINY_CONFIG = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
SIGLIP_CONFIG = {  # as open_clip has SigLIP, but small and with CLIP's tokenizer
    "embed_dim": 192,
    "init_logit_scale": 4.7,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 224,
        "timm_model_name": "vit_tiny_patch16_224",
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": {
        "context_length": 64,
        "vocab_size": 49408,
        "width": 32,
        "heads": 2,
        "layers": 2,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
    },
}
HALF_MEAN = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "resize_mode": "squash"}

needs_transformers = pytest.mark.skipif(not importlib.util.find_spec("transformers"), reason="needs transformers")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@pytest.fixture(scope="module")
def mini() -> Backbone:
    return load_backbone("hegraph-mini")


@pytest.fixture(scope="module", autouse=True)
def tiny_names(tmp_path_factory) -> None:
    """Makes TINY and its twin without QuickGELU, and one of another resolution, names of open_clip's."""
    folder = tmp_path_factory.mktemp("configs")
    larger = {**TINY_CONFIG, "vision_cfg": {**TINY_CONFIG["vision_cfg"], "image_size": 48}}
    for name, config in ((TINY, TINY_CONFIG), ("tiny-vit", {**TINY_CONFIG, "quick_gelu": False}), ("tiny-48", larger)):
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


@pytest.fixture(scope="module")
def tiny_model() -> nn.Module:
    """A random TINY whose matrices are numbers of half precision, as OpenAI's."""
    model, _, _ = create_model(TINY)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(parameter.half())
    return model.eval()


@pytest.fixture(scope="module")
def tiny(tiny_model, tmp_path_factory) -> Backbone:
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    save_weights(tiny_model, path)
    return load_backbone(TINY, str(path))


@pytest.fixture
def no_hub(tmp_path, monkeypatch) -> Path:
    """Nothing is cached, and the hub is a port at which nobody answers. Returns the cache folder."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def save_weights(model: nn.Module, path: Path) -> None:
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)


def cache_file(cache: Path, repository: str, name: str) -> Path:
    """Where huggingface_hub keeps a file of a repository; the folder is made."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    path = folder / "snapshots" / "0123" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text("0123")
    return path


def wrap(name: str) -> Backbone:
    """A model of open_clip's, with random weights."""
    model, preprocess, tokenizer = create_model(name)
    return Backbone(name, model.eval(), tokenizer, preprocess, (), (), {})


def assert_same_features(backbone: Backbone, model: nn.Module, pixels: Tensor | None = None) -> None:
    """The backbone's features are those of an open_clip model, normalised."""
    if pixels is None:
        pixels = torch.randn(3, 3, *backbone.input_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        image_features = F.normalize(model.encode_image(pixels), dim=-1)
        text_features = F.normalize(model.encode_text(backbone.tokenizer(SENTENCES)), dim=-1)
    torch.testing.assert_close(backbone.encode_images(pixels), image_features)
    torch.testing.assert_close(backbone.encode_text(SENTENCES), text_features)
    torch.testing.assert_close(image_features.norm(dim=1), torch.ones(len(pixels)))
    assert image_features.shape[1] == text_features.shape[1] == backbone.width


@pytest.mark.parametrize(
    ("name", "nearest"), [("vit-b-16", "ViT-B-16"), ("RN5O", "RN50"), ("hegraph_mini", "hegraph-mini")]
)
def test_an_unknown_model_is_refused_with_the_nearest_name(name, nearest):
    with pytest.raises(UserError, match=rf"unknown backbone '{name}'; did you mean '{nearest}'\?"):
        load_backbone(name, "openai-weights")


def test_no_model_at_all_names_the_key():
    with pytest.raises(UserError, match=r"MODEL\.BACKBONE\.NAME"):
        load_backbone("", "")


def test_no_weights_name_the_key():
    with pytest.raises(UserError, match=r"MODEL\.BACKBONE\.PRETRAINED is empty; 'RN50' needs"):
        load_backbone("RN50")


def test_an_unknown_tag_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"'yfcc15n'.* did you mean 'yfcc15m'\?.*cc12m"):
        load_backbone("RN50", "yfcc15n")


def test_a_weights_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.pt"):
        load_backbone("RN50", str(tmp_path / "nowhere.pt"))


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
@pytest.mark.parametrize("content", [b"", b"garbage" * 50])
def test_a_damaged_weights_file_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="cannot load hegraph-mini") as caught:
        load_backbone("hegraph-mini", str(tmp_path / name))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pickled_code_in_weights_is_refused_and_not_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    torch.save({"state_dict": Evil()}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match="cannot load hegraph-mini"):
        load_backbone("hegraph-mini", str(tmp_path / "weights.pt"))
    assert not (tmp_path / "executed").exists()


def test_mini_loads_its_shipped_weights_without_being_told(mini):
    assert mini.fingerprint == load_backbone("hegraph-mini", str(MINI_WEIGHTS)).fingerprint
    assert mini.name.startswith("hegraph-mini/")


def test_a_loaded_model_is_frozen_and_in_evaluation_mode(mini):
    assert not any(parameter.requires_grad for parameter in mini.model.parameters())
    assert not any(module.training for module in mini.model.modules())


def test_image_features_are_unit_norm_float32_without_gradient(mini):
    pixels = torch.randn(5, 3, mini.image_size, mini.image_size, generator=torch.Generator().manual_seed(0))
    features = mini.encode_images(pixels)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    assert len(features) == 5
    torch.testing.assert_close(features.norm(dim=1), torch.ones(5))


def test_text_features_are_unit_norm_float32_without_gradient(mini):
    features = mini.encode_text(["one", "two", "three"])
    assert features.dtype == torch.float32
    assert not features.requires_grad
    torch.testing.assert_close(features.norm(dim=1), torch.ones(3))
    assert features.shape[1] == mini.encode_images(torch.zeros(1, 3, mini.image_size, mini.image_size)).shape[1]


def test_sentences_are_encoded_alike_in_any_batches(mini):
    sentences = [f"a photo of a {word}." for word in ("one", "two", "three", "four", "five")]
    torch.testing.assert_close(mini.encode_text(sentences, batch_size=2), mini.encode_text(sentences))


def test_the_logit_scale_is_the_exponential_of_the_models(mini):
    assert mini.logit_scale == pytest.approx(mini.model.logit_scale.exp().item())
    assert mini.logit_scale > 1


def test_other_weights_have_another_fingerprint(mini, tmp_path):
    model, _, _ = create_model("hegraph-mini")
    torch.save(model.state_dict(), tmp_path / "other.pt")
    other = load_backbone("hegraph-mini", str(tmp_path / "other.pt"))
    assert other.fingerprint["weights"] != mini.fingerprint["weights"]
    assert other.name == "hegraph-mini/other"


def test_a_fingerprint_holds_plain_values_that_do_not_name_an_address(mini):
    assert all(isinstance(value, str) for value in mini.fingerprint.values())
    assert " at 0x" not in "".join(mini.fingerprint.values())


def kinds(transform: T.Compose) -> list[str]:
    return [type(step).__name__ for step in transform.transforms]


def test_training_images_are_cropped_flipped_and_normalised(mini):
    transform = mini.training_transform(AUGMENTATION, (0.3, 0.9), "bilinear")
    assert {"RandomResizedCrop", "RandomHorizontalFlip"} <= set(kinds(transform))
    assert not {"Resize", "CenterCrop"} & set(kinds(transform))
    [crop] = [step for step in transform.transforms if isinstance(step, T.RandomResizedCrop)]
    assert crop.size == (mini.image_size, mini.image_size)
    assert crop.scale == (0.3, 0.9)
    assert crop.interpolation == T.InterpolationMode.BILINEAR
    normalize = transform.transforms[-1]
    assert isinstance(normalize, T.Normalize)
    assert tuple(normalize.mean) == mini.mean
    assert tuple(normalize.std) == mini.std


def test_without_a_crop_training_images_are_resized_as_for_testing(mini):
    assert kinds(mini.training_transform(("normalize",), (0.08, 1.0), "bicubic")) == kinds(mini.preprocess)


def test_no_flip_happens_unless_asked_for(mini):
    assert "RandomHorizontalFlip" not in kinds(mini.training_transform(AUGMENTATION[:1], (0.08, 1.0), "bicubic"))


def test_building_a_training_transform_leaves_the_test_transform_alone(mini):
    before = repr(mini.preprocess)
    mini.training_transform(AUGMENTATION, (0.08, 1.0), "bicubic")
    assert repr(mini.preprocess) == before


def test_both_transforms_give_pixels_of_the_models_size(mini):
    image = Image.new("L", (50, 20), 100)
    for transform in (mini.preprocess, mini.training_transform(AUGMENTATION, (0.08, 1.0), "bicubic")):
        assert transform(image.convert("RGB")).shape == (3, mini.image_size, mini.image_size)


# --- QuickGELU


@pytest.mark.parametrize(
    ("name", "tag", "right"),
    [
        ("RN50", "openai", "RN50-quickgelu"),
        ("ViT-B-16", "openai", "ViT-B-16-quickgelu"),
        ("ViT-B-16", "dfn2b", "ViT-B-16-quickgelu"),
        ("ViT-B-32", "metaclip_400m", "ViT-B-32-quickgelu"),
        ("ViT-B-32", "laion400m_e32", "ViT-B-32-quickgelu"),
    ],
)
def test_weights_trained_with_quickgelu_are_refused_for_a_model_without(name, tag, right):
    with pytest.raises(UserError, match=rf"'{tag}' were trained with QuickGELU: use '{right}', not '{name}'"):
        load_backbone(name, tag)


@pytest.mark.parametrize(("name", "tag"), [("ViT-B-32", "laion2b_s34b_b79k"), ("ViT-B-16", "laion400m_e32")])
def test_weights_trained_without_quickgelu_are_refused_for_a_model_with_it(name, tag):
    with pytest.raises(UserError, match=rf"'{tag}' were trained without QuickGELU: use '{name}', not '{name}-quick"):
        load_backbone(f"{name}-quickgelu", tag)


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("RN101-quickgelu", "openai"),
        ("ViT-B-16-quickgelu", "dfn2b"),
        ("ViT-B-16", "laion400m_e32"),
        ("ViT-B-32", "laion2b_s34b_b79k"),
        ("roberta-ViT-B-32", "laion2b_s12b_b32k"),  # has QuickGELU under its only name
    ],
)
def test_weights_that_fit_the_activation_are_looked_for(no_hub, name, tag):
    with pytest.raises(UserError, match="is not on this machine"):
        load_backbone(name, tag)


# --- the hub


def test_weights_that_cannot_be_downloaded_are_named_with_where_to_put_them_at_once(no_hub):
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        load_backbone("RN50-quickgelu", "openai")
    assert time.monotonic() - start < 5
    message = str(caught.value)
    assert "\n" not in message
    for words in (
        "RN50-quickgelu with the weights 'openai' is not on this machine",
        "http://127.0.0.1:9 cannot be reached",
        "open_clip_model.safetensors",
        "http://127.0.0.1:9/timm/resnet50_clip.openai",
        "MODEL.BACKBONE.PRETRAINED",
        "models--timm--resnet50_clip.openai",
        str(no_hub),
    ):
        assert words in message


def test_a_file_that_the_repository_names_itself_is_named(no_hub):
    with pytest.raises(UserError, match=r"pytorch_model\.bin from http.*/jienengchen/ViTamin-S elsewhere"):
        load_backbone("ViTamin-S", "datacomp1b")


def test_a_hub_name_that_cannot_be_downloaded_names_both_files(no_hub):
    with pytest.raises(UserError, match=r"open_clip_config\.json and open_clip_model\.safetensors from .*local-dir:"):
        load_backbone("hf-hub:org/birds")


def test_an_impossible_hub_name_is_refused(no_hub):
    with pytest.raises(UserError, match=r"'a/b/c' is no repository"):
        load_backbone("hf-hub:a/b/c")


def test_cached_weights_of_a_tag_need_no_hub(no_hub):
    weights = cache_file(no_hub, "timm/PE-Core-T-16-384", "open_clip_model.safetensors")
    model, _, _ = create_model("PE-Core-T-16-384")
    save_weights(model, weights)
    backbone = load_backbone("PE-Core-T-16-384", "meta")
    assert (backbone.name, backbone.fingerprint["weights"]) == ("PE-Core-T-16-384/meta", "meta")
    # another resolution, normalisation and text length than OpenAI's
    assert (backbone.input_size, backbone.image_size) == ((384, 384), 384)
    assert backbone.mean == backbone.std == (0.5, 0.5, 0.5)
    assert backbone.tokenizer(["a cat"]).shape == (1, 32)
    resize = backbone.preprocess.transforms[0]
    assert (tuple(resize.size), resize.interpolation) == ((384, 384), T.InterpolationMode.BILINEAR)
    assert backbone.logit_scale == pytest.approx(model.logit_scale.exp().item())
    # a file of the same weights is preprocessed alike
    of_file = module._preprocessing(module._locate("PE-Core-T-16-384", str(weights)))
    assert of_file == module._preprocessing(module._locate("PE-Core-T-16-384", "meta"))
    assert of_file["image_resize_mode"] == "squash"
    assert_same_features(backbone, model.eval(), torch.randn(1, 3, 384, 384))


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as huggingface.co does for the files of a folder `repository`."""

    repository: Path

    def do_HEAD(self) -> bytes:
        path = self.repository / self.path.rpartition("/")[2]
        found = "/org/birds/resolve/main/" in self.path and path.is_file()
        body = path.read_bytes() if found else b""
        self.send_response(200 if found or self.path == "/" else 404)
        if not found and "/resolve/" in self.path:
            self.send_header("X-Error-Code", "EntryNotFound")
        for name, value in (("X-Repo-Commit", "a" * 40), ("ETag", f'"{path.name}"'), ("Content-Length", len(body))):
            self.send_header(name, str(value))
        self.end_headers()
        return body

    def do_GET(self) -> None:
        self.wfile.write(self.do_HEAD())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def bundle(tiny_model, tmp_path) -> Path:
    """A folder as hubs have it: the tiny model with a preprocessing of its own."""
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


def test_a_hub_name_is_downloaded_and_then_cached(bundle, no_hub, tiny_model):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Birds", (Hub,), {"repository": bundle}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    loaded = "from trainers.hegraph.backbones.backbone import load_backbone as load"
    code = f"{loaded}; load('hf-hub:org/birds'), load('hf-hub:org/bees')"
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_CACHE": str(no_hub),
    }
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    server.shutdown()
    server.server_close()
    # the second is not there, which is said
    assert "UserError: cannot download open_clip_config.json of org/bees: 404" in done.stderr

    cached = load_backbone("hf-hub:org/birds")
    local = load_backbone(f"local-dir:{bundle}")
    assert (cached.name, local.name) == ("org/birds", "birds")
    assert cached.fingerprint == local.fingerprint
    assert_same_features(cached, tiny_model)


# --- folders that bring everything along


def test_a_siglip_in_a_folder_takes_everything_from_the_model(siglip):
    backbone = load_backbone(f"local-dir:{siglip}")
    assert backbone.mean == backbone.std == (0.5, 0.5, 0.5)
    assert kinds(backbone.preprocess)[0] == "Resize"
    assert "CenterCrop" not in kinds(backbone.preprocess)  # squashed
    assert tuple(backbone.preprocess.transforms[0].size) == backbone.input_size == (224, 224)
    assert backbone.width == 192
    assert backbone.tokenizer(["a cat"]).shape == (1, 64)
    assert math.log(backbone.logit_scale) == pytest.approx(4.7)
    image = Image.new("L", (50, 20), 100).convert("RGB")
    for transform in (backbone.preprocess, backbone.training_transform(AUGMENTATION, (0.08, 1.0), "bicubic")):
        assert transform(image).shape == (3, 224, 224)


@pytest.mark.parametrize("name", ["hf-hub:org/birds", "local-dir:/birds"])
def test_weights_beside_a_name_that_brings_its_own_are_refused(name):
    with pytest.raises(UserError, match=rf"{name} brings its weights along: set MODEL\.BACKBONE\.PRETRAINED to ''"):
        load_backbone(name, "openai")


def test_a_folder_without_configuration_or_with_a_choice_of_weights_is_refused(bundle):
    weights = bundle / "open_clip_pytorch_model.bin"
    weights.rename(bundle / "epoch_1.pt")
    assert load_backbone(f"local-dir:{bundle}").name == "birds"
    shutil.copy(bundle / "epoch_1.pt", bundle / "epoch_2.pt")
    with pytest.raises(UserError, match=r"must be a folder with open_clip_config\.json and open_clip_model\.safet"):
        load_backbone(f"local-dir:{bundle}")
    (bundle / "epoch_2.pt").unlink()
    (bundle / "open_clip_config.json").rename(bundle / "config.json")
    with pytest.raises(UserError, match=r"must be a folder with open_clip_config\.json"):
        load_backbone(f"local-dir:{bundle}")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model_cfg": {}}', '{"model_cfg": {"embed_dim": 1}}'])
def test_a_damaged_configuration_is_refused(bundle, content):
    (bundle / "open_clip_config.json").write_text(content)
    with pytest.raises(UserError, match="cannot load local-dir:"):
        load_backbone(f"local-dir:{bundle}")


def change_activation(bundle: Path) -> None:
    file = bundle / "open_clip_config.json"
    file.write_text(file.read_text().replace("true", "false"))


def change_weights(bundle: Path) -> None:
    model, _, _ = create_model(TINY)
    torch.save(model.state_dict(), bundle / "open_clip_pytorch_model.bin")


def add_tokenizer(bundle: Path) -> None:
    (bundle / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize("change", [change_activation, change_weights, add_tokenizer])
def test_whatever_changes_in_a_folder_changes_the_fingerprint(bundle, change):
    before = load_backbone(f"local-dir:{bundle}").fingerprint
    change(bundle)
    assert load_backbone(f"local-dir:{bundle}").fingerprint != before


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
    for names in (AUGMENTATION, ("normalize",)):
        pixels = backbone.training_transform(names, (0.08, 1.0), "bicubic")(image)
        assert pixels.shape == (3, 24, 40)
        assert backbone.encode_images(pixels.unsqueeze(0)).shape == (1, backbone.width)
    assert backbone.preprocess(image).shape == (3, 24, 40)
    assert kinds(backbone.training_transform(AUGMENTATION, (0.08, 1.0), "bicubic"))[1] == "RandomResizedCrop"
    assert not re.search(
        "(?<!Random)Resize(?!d)|Keep|Center", repr(backbone.training_transform(AUGMENTATION, (0.08, 1), "bicubic"))
    )


# --- files


@pytest.mark.parametrize("name", ["weights.pt", "weights.pth", "weights.bin"])
@pytest.mark.parametrize(
    "nest", [lambda s: s, lambda s: {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in s.items()}}]
)
def test_state_dicts_load_from_any_file(tiny_model, tmp_path, name, nest):
    torch.save(nest(tiny_model.state_dict()), tmp_path / name)
    assert_same_features(load_backbone(TINY, str(tmp_path / name)), tiny_model)


def test_a_file_in_the_older_form_of_a_model_with_a_text_tower_is_converted(tiny_model, bundle):
    # open_clip's models with a tower of their own for text read files from before there were such
    (bundle / "open_clip_config.json").write_text(json.dumps({"model_cfg": {**TINY_CONFIG, "custom_text": True}}))
    backbone = load_backbone(f"local-dir:{bundle}")
    assert hasattr(backbone.model, "text")
    assert_same_features(backbone, tiny_model)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s.update(model={key: s.pop(key) for key in list(s)}, epoch=3), "Missing key(s) in state_dict: "),
        (lambda s: s.pop("visual.proj"), 'Missing key(s) in state_dict: "visual.proj"'),
        (lambda s: s.update(extra=torch.zeros(1), more=torch.zeros(1)), 'Unexpected key(s) in state_dict: "extra"'),
        (lambda s: s.update({"visual.proj": torch.zeros(64, 8)}), "size mismatch for visual.proj: copying a param"),
    ],
)
def test_weights_of_another_model_are_refused_with_the_first_difference(tiny_model, tmp_path, change, reason):
    state = dict(tiny_model.state_dict())
    change(state)
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(
        UserError, match=r"cannot load tiny-vit-quickgelu with weights '.*other\.pt': it is of"
    ) as caught:
        load_backbone(TINY, str(tmp_path / "other.pt"))
    assert str(caught.value).count("key(s)") <= 1
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 400


def test_weights_of_another_family_are_refused_in_one_short_line(tmp_path):
    with pytest.raises(UserError, match="it is of another model") as caught:
        load_backbone(TINY, str(MINI_WEIGHTS))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_weights_of_another_resolution_are_refused_and_not_stretched(tiny_model, tmp_path):
    save_weights(tiny_model, tmp_path / "tiny.safetensors")
    with pytest.raises(UserError, match=r"visual\.positional_embedding is \[17, 64\], not \[37, 64\]"):
        load_backbone("tiny-48", str(tmp_path / "tiny.safetensors"))


def test_a_file_of_a_model_whose_weights_differ_in_preprocessing_is_warned_of(caplog):
    source = module._Source("ViT-L-14", "", "ViT-L-14", Path("weights.pt"), {})
    with caplog.at_level(logging.WARNING):
        assert module._preprocessing(source)["image_mean"] == open_clip.OPENAI_DATASET_MEAN
        assert module._preprocessing(replace_tag(source, "laion2b_s32b_b82k"))["image_mean"] == (0.5, 0.5, 0.5)
    assert len(caplog.records) == 1
    assert "weights.pt" in caplog.text


def replace_tag(source: module._Source, tag: str) -> module._Source:
    return source._replace(tag=tag)


# --- OpenAI's archives

# torch says of each of its TorchScript functions that it is deprecated
uses_torchscript = pytest.mark.filterwarnings("ignore:.torch.jit", "ignore::torch.jit.TracerWarning")
MARKS = {"input_resolution": 32, "context_length": 77, "vocab_size": 49408}


def save_archive(model: nn.Module, path: Path, marks: dict[str, int]) -> None:
    """As OpenAI's: traced, matrices in half precision, and integers as tensors."""
    model = deepcopy(model)
    for name, value in marks.items():
        model.__dict__.pop(name, None)  # open_clip has some of them as plain numbers
        model.register_buffer(name, torch.tensor(value))
    pixels, tokens = torch.zeros(1, 3, 32, 32), torch.zeros(1, 77, dtype=torch.long)
    traced = torch.jit.trace(model, (pixels, tokens), check_trace=False)
    for parameter in traced.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.half()
    traced.save(str(path))


@uses_torchscript
def test_an_archive_of_openais_gives_the_features_of_its_model(tiny_model, tiny, tmp_path):
    path = tmp_path / "TINY.pt"
    save_archive(tiny_model, path, MARKS)
    assert {torch.float16, torch.float32} == {p.dtype for p in torch.jit.load(str(path)).parameters()}
    backbone = load_backbone(TINY, str(path))
    assert backbone.name == f"{TINY}/TINY"
    assert {p.dtype for p in backbone.model.parameters()} == {torch.float32}
    assert_same_features(backbone, tiny_model)
    for name, value in tiny.model.state_dict().items():
        assert torch.equal(value, backbone.model.state_dict()[name]), name


@uses_torchscript
def test_an_archive_of_openais_is_refused_for_a_model_without_quickgelu(tiny_model, tmp_path, bundle):
    save_archive(tiny_model, tmp_path / "TINY.pt", MARKS)
    torch.save({**tiny_model.state_dict(), **{k: torch.tensor(v) for k, v in MARKS.items()}}, tmp_path / "state.pt")
    for name in ("TINY.pt", "state.pt"):  # the archive, and its content in another file
        with pytest.raises(UserError, match=rf"{name} is an archive .* QuickGELU: use '{TINY}', not 'tiny-vit'"):
            load_backbone("tiny-vit", str(tmp_path / name))
        assert_same_features(load_backbone(TINY, str(tmp_path / name)), tiny_model)
    (bundle / "open_clip_pytorch_model.bin").unlink()
    shutil.copy(tmp_path / "TINY.pt", bundle)
    assert_same_features(load_backbone(f"local-dir:{bundle}"), tiny_model)
    change_activation(bundle)
    with pytest.raises(UserError, match='QuickGELU: use a configuration with "quick_gelu"'):
        load_backbone(f"local-dir:{bundle}")


@uses_torchscript
def test_an_archive_of_anybody_elses_may_be_without_quickgelu(tiny_model, tmp_path):
    save_archive(tiny_model, tmp_path / "other.pt", {})
    other, _, _ = create_model("tiny-vit")
    other.load_state_dict(tiny_model.state_dict())
    assert_same_features(load_backbone("tiny-vit", str(tmp_path / "other.pt")), other.eval())


@uses_torchscript
def test_an_archive_of_another_model_is_refused_with_the_first_difference(tiny_model, tmp_path):
    save_archive(tiny_model, tmp_path / "TINY.pt", MARKS)
    with pytest.raises(UserError, match=r"TINY\.pt': it is of another model: (Missing|size|visual)"):
        load_backbone("tiny-48", str(tmp_path / "TINY.pt"))
    with pytest.raises(UserError, match=r"TINY\.pt': it is of another model: positional_embedding"):
        load_backbone("hegraph-mini", str(tmp_path / "TINY.pt"))


@uses_torchscript
def test_the_code_of_an_archive_is_not_run(tmp_path):
    source = """
import torch
from typing import Tuple
class Evil(torch.nn.Module):
    path: str
    def __init__(self, path: str):
        super().__init__()
        self.path = path
    def forward(self, x):
        return x
    @torch.jit.export
    def __getstate__(self):
        return (self.training, self.path)
    @torch.jit.export
    def __setstate__(self, state: Tuple[bool, str]):
        self.training = state[0]
        self.path = state[1]
        torch.save(torch.zeros(1), self.path)
"""
    (tmp_path / "evil.py").write_text(source)
    spec = importlib.util.spec_from_file_location("evil", tmp_path / "evil.py")
    evil = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(evil)
    executed, path = tmp_path / "executed", str(tmp_path / "evil.pt")
    torch.jit.script(evil.Evil(str(executed))).save(path)
    with pytest.raises(UserError, match="cannot load tiny-vit"):
        load_backbone(TINY, path)
    assert not executed.exists()
    torch.jit.load(path)
    assert executed.exists()  # so it would have been seen


@uses_torchscript
def test_pickled_code_in_an_archive_is_refused_and_not_executed(tiny_model, tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    save_archive(tiny_model, tmp_path / "TINY.pt", MARKS)
    with zipfile.ZipFile(tmp_path / "TINY.pt") as good, zipfile.ZipFile(tmp_path / "evil.pt", "w") as bad:
        for name in good.namelist():
            bad.writestr(name, pickle.dumps(Evil()) if name.endswith("/data.pkl") else good.read(name))
    with pytest.raises(UserError, match="holds more than tensors, which is not run"):
        load_backbone(TINY, str(tmp_path / "evil.pt"))
    assert not (tmp_path / "executed").exists()


@uses_torchscript
def test_a_truncated_archive_is_refused(tiny_model, tmp_path):
    save_archive(tiny_model, tmp_path / "TINY.pt", MARKS)
    content = (tmp_path / "TINY.pt").read_bytes()
    for number in (10, len(content) // 2, len(content) - 1):
        (tmp_path / "short.pt").write_bytes(content[:number])
        with pytest.raises(UserError, match="cannot load tiny-vit-quickgelu"):
            load_backbone(TINY, str(tmp_path / "short.pt"))


# --- real architectures


@pytest.mark.parametrize(("name", "width"), [("RN50-quickgelu", 1024), ("ViT-B-16-quickgelu", 512)])
def test_random_weights_of_a_real_model_go_the_whole_way(tmp_path, name, width):
    model, preprocess, _ = create_model(name)
    save_weights(model, tmp_path / "weights.safetensors")
    backbone = load_backbone(name, str(tmp_path / "weights.safetensors"))
    assert (backbone.width, backbone.input_size) == (width, (224, 224))
    assert (backbone.mean, backbone.std) == (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    assert backbone.fingerprint["preprocess"] == module.describe(preprocess)
    assert backbone.logit_scale == pytest.approx(1 / 0.07)
    images = [Image.new("RGB", (50 + i, 40), (i * 80, 0, 100)) for i in range(3)]
    transform = backbone.training_transform(AUGMENTATION, (0.08, 1.0), "bicubic")
    assert_same_features(backbone, model.eval(), torch.stack([transform(image) for image in images]))


@pytest.mark.parametrize("name", ["RN101-quickgelu", "ViT-B-32-quickgelu"])
def test_width_and_resolution_are_the_models(name):
    backbone = wrap(name)
    assert (backbone.width, backbone.input_size, backbone.image_size) == (512, (224, 224), 224)


@needs_transformers
def test_a_siglip_takes_everything_from_the_model(no_hub, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    name, weights = "ViT-B-16-SigLIP", tmp_path / "weights.safetensors"
    model = open_clip.create_model(name)
    save_weights(model, weights)
    with pytest.raises(
        UserError,
        match=r"the tokenizer of ViT-B-16-SigLIP is not on this machine.*download "
        r"tokenizer\.json and tokenizer_config\.json from .*/timm/ViT-B-16-SigLIP elsewhere",
    ):
        load_backbone(name, str(weights))
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), *((letter, -1.0) for letter in "▁abcdefghijklmnop")]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(vocabulary, 2, False))
    tokenizer.save(str(cache_file(no_hub, f"timm/{name}", "tokenizer.json")))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "</s>", "eos_token": "</s>"}
    cache_file(no_hub, f"timm/{name}", "tokenizer_config.json").write_text(json.dumps(settings))
    backbone = load_backbone(name, str(weights))
    assert (backbone.width, backbone.input_size, backbone.mean, backbone.std) == (768, (224, 224), *[(0.5,) * 3] * 2)
    assert backbone.logit_scale == pytest.approx(model.logit_scale.exp().item())
    assert backbone.tokenizer(["a"]).shape == (1, 64)
    assert kinds(backbone.preprocess)[0] == "Resize"
    assert "CenterCrop" not in kinds(backbone.preprocess)
    assert_same_features(backbone, model.eval(), torch.randn(1, 3, 224, 224))


@pytest.mark.skipif(bool(importlib.util.find_spec("transformers")), reason="transformers is here")
def test_a_tokenizer_of_transformers_without_it_is_said():
    with pytest.raises(UserError, match="tokenizer of ViT-B-16-SigLIP needs the package transformers: pip install"):
        create_model("ViT-B-16-SigLIP")


# --- precision


def test_an_unknown_precision_is_refused():
    with pytest.raises(UserError, match=r"unknown precision 'fp61'; did you mean 'fp16'\?"):
        load_backbone("hegraph-mini", precision="fp61")


def test_the_cpu_computes_in_fp32_and_says_so_once(mini, caplog):
    module._say_fp32.cache_clear()
    pixels = torch.zeros(1, 3, 32, 32)
    with caplog.at_level(logging.WARNING):
        for precision in ("fp16", "amp", "fp16"):
            backbone = load_backbone("hegraph-mini", precision=precision)
            assert backbone.precision == "fp32"
            assert backbone.fingerprint == mini.fingerprint
            assert torch.equal(backbone.encode_images(pixels), mini.encode_images(pixels))
    assert [record.getMessage() for record in caplog.records] == [
        "the backbone computes in fp32 on the cpu, whatever PREC says: fp16 and amp need CUDA"
    ]


def in_precision(backbone: Backbone, weights: Path, precision: str) -> Backbone:
    """The backbone as `load_backbone` makes it on a GPU, but here."""
    model, _, _ = module._build(module._locate(TINY, str(weights)), precision)
    return replace(backbone, model=model.eval().requires_grad_(False), precision=precision)


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.float16), ("amp", torch.float32)])
def test_less_precision_gives_nearly_the_same_features(tiny, tiny_model, tmp_path, precision, dtype):
    with torch.no_grad():
        tiny_model = deepcopy(tiny_model)
        tiny_model.logit_scale.fill_(4.60517)  # 100.0 in float32, 100.03 in half precision
    save_weights(tiny_model, tmp_path / "weights.safetensors")
    backbone = in_precision(tiny, tmp_path / "weights.safetensors", precision)
    assert backbone.model.visual.conv1.weight.dtype == dtype
    assert backbone.model.ln_final.weight.dtype == torch.float32
    assert backbone.logit_scale == pytest.approx(100.0, abs=1e-3)
    pixels = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for found, expected in (
        (backbone.encode_images(pixels), tiny.encode_images(pixels)),
        (backbone.encode_text(SENTENCES), tiny.encode_text(SENTENCES)),
    ):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.norm(dim=1), torch.ones(len(found)))
        torch.testing.assert_close(found, expected, atol=5e-3, rtol=0)
        assert not torch.equal(found, expected)  # it did compute in another precision


def test_a_model_of_timm_keeps_its_logit_scale_in_fp32(siglip):
    name = f"local-dir:{siglip}"
    backbone, (half, _, _) = load_backbone(name), module._build(module._locate(name, ""), "fp16")
    assert half.visual.trunk.patch_embed.proj.weight.dtype == torch.float16
    low = replace(backbone, model=half.eval(), precision="fp16")
    assert low.logit_scale == backbone.logit_scale
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(low.encode_images(pixels), backbone.encode_images(pixels), atol=5e-3, rtol=0)
    torch.testing.assert_close(low.encode_text(SENTENCES), backbone.encode_text(SENTENCES), atol=5e-3, rtol=0)


@needs_cuda
@pytest.mark.parametrize("precision", ["fp32", "fp16", "amp"])
def test_a_gpu_computes_in_the_precision_that_was_asked_for(mini, precision):
    backbone = load_backbone("hegraph-mini", device="cuda", precision=precision)
    assert backbone.precision == precision
    expected = mini.fingerprint if precision == "fp32" else {**mini.fingerprint, "precision": precision}
    assert backbone.fingerprint == expected
    pixels = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features = backbone.encode_images(pixels)
    assert (features.device.type, features.dtype) == ("cpu", torch.float32)
    torch.testing.assert_close(features, mini.encode_images(pixels), atol=1e-2, rtol=0)


# --- noise


def test_a_user_sees_the_error_and_nothing_else(tiny_model, tmp_path):
    save_weights(tiny_model, tmp_path / "weights.safetensors")
    (tmp_path / f"{TINY}.json").write_text(json.dumps(TINY_CONFIG))
    code = f"""
import open_clip, sys
from trainers.hegraph.backbones.backbone import create_model, load_backbone
from trainers.hegraph.utils.errors import report
open_clip.add_model_config({str(tmp_path / f"{TINY}.json")!r})
create_model({TINY!r})  # random weights, as asked for
load_backbone("hegraph-mini").encode_text(["one"])
load_backbone({TINY!r}, {str(tmp_path / "weights.safetensors")!r}).encode_text(["one"])
sys.exit(report(lambda: load_backbone("RN50-quickgelu", "openai")))
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: RN50-quickgelu with .*HF_HUB_OFFLINE.*timm/resnet50_clip\.openai.*\n", done.stderr)


def test_auto_takes_the_weights_that_come_with_a_model():
    assert load_backbone("hegraph-mini", "auto").fingerprint == load_backbone("hegraph-mini").fingerprint
    with pytest.raises(UserError, match=r"hf-hub:|is no repository|cannot be reached"):
        load_backbone("hf-hub:nobody/nothing", "auto")
    with pytest.raises(UserError, match="neither a file nor a tag: 'openai'"):
        load_backbone("ViT-B-16-SigLIP", "auto")
