"""What loads and what is refused: names, files, activations, precisions."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
from collections import OrderedDict
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image
from tiny import (
    AUGMENTATION,
    ROOT,
    SENTENCES,
    TINY,
    TINY_CONFIG,
    assert_same_features,
    cache_file,
    kinds,
    save_weights,
)

from trainers.hegraph.backbones import loading
from trainers.hegraph.backbones.clip import Backbone
from trainers.hegraph.backbones.identity import describe_transform
from trainers.hegraph.backbones.loading import Source, build, create_model, find_source, load_backbone
from trainers.hegraph.utils.errors import UserError

needs_transformers = pytest.mark.skipif(not importlib.util.find_spec("transformers"), reason="needs transformers")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@pytest.mark.parametrize("pretrained", ["openai-weights", ""])
def test_an_unknown_model_is_refused_with_the_nearest_name_whatever_its_weights(pretrained):
    with pytest.raises(UserError, match=r"unknown backbone 'hegraph_mini'; did you mean 'hegraph-mini'\?"):
        load_backbone("hegraph_mini", pretrained)


def test_an_unknown_tag_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"'yfcc15n'.* did you mean 'yfcc15m'\?.*cc12m"):
        load_backbone("RN50", "yfcc15n")


def test_a_weights_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.pt"):
        load_backbone("RN50", str(tmp_path / "nowhere.pt"))


@pytest.mark.parametrize(("name", "content"), [("weights.safetensors", b"garbage" * 50), ("weights.pt", b"")])
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


# --- QuickGELU


@pytest.mark.parametrize(
    ("name", "tag", "right"),
    [("RN50", "openai", "RN50-quickgelu"), ("ViT-B-32", "laion400m_e32", "ViT-B-32-quickgelu")],
)
def test_weights_trained_with_quickgelu_are_refused_for_a_model_without(name, tag, right):
    with pytest.raises(UserError, match=rf"'{tag}' were trained with QuickGELU: use '{right}', not '{name}'"):
        load_backbone(name, tag)


@pytest.mark.parametrize(("name", "tag"), [("ViT-B-32", "laion2b_s34b_b79k")])
def test_weights_trained_without_quickgelu_are_refused_for_a_model_with_it(name, tag):
    with pytest.raises(UserError, match=rf"'{tag}' were trained without QuickGELU: use '{name}', not '{name}-quick"):
        load_backbone(f"{name}-quickgelu", tag)


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("RN101-quickgelu", "openai"),
        ("ViT-B-32", "laion2b_s34b_b79k"),
        ("roberta-ViT-B-32", "laion2b_s12b_b32k"),  # has QuickGELU under its only name
    ],
)
def test_weights_that_fit_the_activation_are_looked_for(no_hub, name, tag):
    with pytest.raises(UserError, match="is not on this machine"):
        load_backbone(name, tag)


# --- files


def test_pickled_code_is_not_run_where_reading_tensors_alone_fails(tmp_path, monkeypatch):
    """open_clip's reader then reads again as torch does by default, which before 2.6 was to run what is pickled."""

    class TypeErrorOfTensorsAlone:
        def __reduce__(self):
            return OrderedDict, (), (None, {})

    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    real = torch.load

    def before_2_6(*args: Any, weights_only: bool = False, **kwargs: Any) -> Any:
        return real(*args, weights_only=weights_only, **kwargs)

    path = tmp_path / "weights.pt"
    torch.save({"state_dict": [TypeErrorOfTensorsAlone(), Evil()]}, path)
    monkeypatch.setattr(torch, "load", before_2_6)
    with pytest.raises(UserError, match="cannot load hegraph-mini"):
        load_backbone("hegraph-mini", str(path))
    assert not (tmp_path / "executed").exists()
    with pytest.raises(TypeError):
        torch.load(path, weights_only=True)
    torch.load(path)
    assert (tmp_path / "executed").exists()  # so it would have been seen


def test_open_clip_is_given_no_file_of_the_users(tiny_model, bundle, monkeypatch):
    """It converts an older form, but it reads only a `.safetensors` file, which cannot hold code."""
    given: list[Path] = []
    real = open_clip.load_checkpoint
    monkeypatch.setattr(open_clip, "load_checkpoint", lambda m, path: given.append(Path(path)) or real(m, path))
    (bundle / "open_clip_config.json").write_text(json.dumps({"model_cfg": {**TINY_CONFIG, "custom_text": True}}))
    assert_same_features(load_backbone(f"local-dir:{bundle}"), tiny_model)
    [file] = given
    assert file.suffix == ".safetensors"
    assert file.parent != bundle
    assert not file.exists()  # it was a temporary one


@pytest.mark.parametrize("content", [[torch.zeros(3)], {}, {"state_dict": torch.zeros(3)}])
def test_a_file_of_something_else_than_weights_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"weights\.pt': it holds no state dict"):
        load_backbone("hegraph-mini", str(tmp_path / "weights.pt"))


def test_text_positions_of_another_length_are_refused_in_the_older_form_too(tiny_model, bundle):
    text = {**TINY_CONFIG["text_cfg"], "context_length": 32}
    config = {**TINY_CONFIG, "text_cfg": text, "custom_text": True}
    (bundle / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    with pytest.raises(UserError, match=r"positional_embedding is \[77, 32\], not \[32, 32\]"):
        load_backbone(f"local-dir:{bundle}")


@pytest.mark.parametrize(
    ("name", "nest"),
    [
        ("weights.pt", lambda s: s),
        ("weights.bin", lambda s: {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in s.items()}}),
    ],
)
def test_state_dicts_load_from_any_file(tiny_model, tmp_path, name, nest):
    torch.save(nest(tiny_model.state_dict()), tmp_path / name)
    assert_same_features(load_backbone(TINY, str(tmp_path / name)), tiny_model)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s.update(model={key: s.pop(key) for key in list(s)}, epoch=3), "Missing key(s) in state_dict: "),
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


def test_weights_of_another_resolution_are_refused_and_not_stretched(tiny_model, tmp_path):
    save_weights(tiny_model, tmp_path / "tiny.safetensors")
    with pytest.raises(UserError, match=r"visual\.positional_embedding is \[17, 64\], not \[37, 64\]"):
        load_backbone("tiny-48", str(tmp_path / "tiny.safetensors"))


def test_a_file_of_a_model_whose_weights_differ_in_preprocessing_is_warned_of(caplog):
    source = Source("ViT-L-14", "", "ViT-L-14", Path("weights.pt"))
    with caplog.at_level(logging.WARNING):
        assert loading._preprocessing(source)["image_mean"] == open_clip.OPENAI_DATASET_MEAN
        assert loading._preprocessing(source._replace(tag="laion2b_s32b_b82k"))["image_mean"] == (0.5, 0.5, 0.5)
    assert len(caplog.records) == 1
    assert "weights.pt" in caplog.text


# --- real architectures


@pytest.mark.parametrize(
    ("name", "width"),
    [("RN50-quickgelu", 1024), pytest.param("ViT-B-16-quickgelu", 512, marks=pytest.mark.slow)],
)
def test_random_weights_of_a_real_model_go_the_whole_way(tmp_path, name, width):
    model, preprocess, _ = create_model(name)
    save_weights(model, tmp_path / "weights.safetensors")
    backbone = load_backbone(name, str(tmp_path / "weights.safetensors"))
    assert (backbone.width, backbone.input_size) == (width, (224, 224))
    assert (backbone.mean, backbone.std) == (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    assert backbone.fingerprint["preprocess"] == describe_transform(preprocess)
    assert backbone.logit_scale == pytest.approx(1 / 0.07)
    images = [Image.new("RGB", (50 + i, 40), (i * 80, 0, 100)) for i in range(3)]
    transform = backbone.training_transform(AUGMENTATION, (0.08, 1.0), "bicubic")
    assert_same_features(backbone, model.eval(), torch.stack([transform(image) for image in images]))


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
    with pytest.raises(UserError, match="ViT-B-16-SigLIP needs the package transformers: pip install"):
        create_model("ViT-B-16-SigLIP")


# --- precision


def test_an_unknown_precision_is_refused():
    with pytest.raises(UserError, match=r"unknown precision 'fp61'; did you mean 'fp16'\?"):
        load_backbone("hegraph-mini", precision="fp61")


def in_precision(backbone: Backbone, weights: Path, precision: str) -> Backbone:
    """The backbone as `load_backbone` makes it on a GPU, but here."""
    model, _, _ = build(find_source(TINY, str(weights)), precision)
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
    backbone, (half, _, _) = load_backbone(name), build(find_source(name, ""), "fp16")
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


@pytest.mark.slow
def test_a_user_sees_the_error_and_nothing_else(tiny_model, tmp_path):
    save_weights(tiny_model, tmp_path / "weights.safetensors")
    (tmp_path / f"{TINY}.json").write_text(json.dumps(TINY_CONFIG))
    code = f"""
import open_clip, sys
from trainers.hegraph.backbones.loading import create_model, load_backbone
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
    assert re.fullmatch(r"error: RN50-quickgelu with .*timm/resnet50_clip\.openai.*\n", done.stderr)


def test_auto_takes_the_weights_that_come_with_a_model():
    assert load_backbone("hegraph-mini", "auto").fingerprint == load_backbone("hegraph-mini").fingerprint
    with pytest.raises(UserError, match=r"hf-hub:|is no repository|cannot be reached"):
        load_backbone("hf-hub:nobody/nothing", "auto")
    with pytest.raises(UserError, match="neither a file nor a tag: 'openai'"):
        load_backbone("ViT-B-16-SigLIP", "auto")
