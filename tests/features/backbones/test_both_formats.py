"""One model in two formats: the trained model and its ONNX file are equal, up to rounding."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
from random_models import copy_clip, copy_siglip
from safetensors.torch import load_file
from timm.models import build_model_with_cfg, register_model
from timm.models.vision_transformer import VisionTransformer
from tiny import HALF_MEAN, TINY_CONFIG, save_weights
from torch import nn

pytest.importorskip("transformers.models")

from trainers.hegraph import load_backbone
from trainers.hegraph.__main__ import main
from trainers.hegraph.datasets.digits import load_digits_dataset
from trainers.hegraph.models.folder import load_model
from trainers.hegraph.models.images import ImageModel

pytestmark = pytest.mark.slow

NODE = "TRAINER.HEGRAPHADAPTER"
QUICK = ("OPTIM.MAX_EPOCH", "3", "OPTIM.WARMUP_EPOCH", "0", f"{NODE}.MIN_STEPS", "0", f"{NODE}.FEATURES.VIEWS", "2")
TRUNK = {"image_size": 32, "timm_model_name": "tiny_siglip", "timm_pool": "map", "timm_proj": "none"}
SIGLIP = {
    "embed_dim": 48, "init_logit_scale": math.log(100), "init_logit_bias": -10, "custom_text": True,
    "vision_cfg": TRUNK,
    "text_cfg": {**TINY_CONFIG["text_cfg"], "context_length": 64, "no_causal_mask": True, "pool_type": "last"},
}  # fmt: skip
ENTRY = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0, "crop_mode": "squash"}


@pytest.fixture(scope="module", autouse=True)
def tiny_siglip() -> None:
    """Register a small image tower of SigLIP, which has no class token, in timm."""

    def tiny_siglip(pretrained: bool = False, **options: object) -> nn.Module:
        sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
        arguments = {**sizes, "class_token": False, "global_pool": "map", **options}
        return build_model_with_cfg(VisionTransformer, "tiny_siglip", pretrained, **arguments)

    register_model(tiny_siglip)


def with_random_matrices(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a model, and replace its initial matrices, which give all images nearly the same features."""
    torch.manual_seed(0)
    model = build()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return model.eval()


def write_bundle(folder: Path, model: nn.Module, config: dict, preprocessing: dict) -> None:
    """Write a model in open_clip's format."""
    folder.mkdir()
    content = {"model_cfg": config, "preprocess_cfg": preprocessing}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    save_weights(model, folder / "open_clip_model.safetensors")


def write_clip(root: Path) -> tuple[str, str]:
    model = with_random_matrices(lambda: open_clip.CLIP(**TINY_CONFIG))
    write_bundle(root / "open_clip", model, TINY_CONFIG, {})
    copy_clip(model, root / "copy", {"patch": 8, "heads": 2, "text_heads": 2})
    return f"local-dir:{root / 'open_clip'}", f"transformers:{root / 'copy'}"


def write_siglip(root: Path) -> tuple[str, str]:
    sizes = {key: value for key, value in SIGLIP.items() if key != "custom_text"}
    model = with_random_matrices(lambda: open_clip.CustomTextCLIP(**sizes))
    write_bundle(root / "open_clip", model, SIGLIP, HALF_MEAN)
    copy_siglip(model, root / "copy", heads=3, text_heads=2)
    return f"local-dir:{root / 'open_clip'}", f"transformers:{root / 'copy'}"


def write_timm(root: Path) -> tuple[str, str]:
    own, _ = write_siglip(root)
    trunk = timm.create_model("tiny_siglip", num_classes=0)
    trunk.load_state_dict(load_backbone(own).model.visual.trunk.state_dict())
    (root / "timm").mkdir()
    save_weights(trunk, root / "timm" / "model.safetensors")
    config = {"architecture": "tiny_siglip", "num_classes": 0, "pretrained_cfg": {**ENTRY, "interpolation": "bicubic"}}
    (root / "timm" / "config.json").write_text(json.dumps(config))
    return own, f"timm:{root / 'timm'}"


WRITERS: dict[str, Callable[[Path], tuple[str, str]]] = {"clip": write_clip, "siglip": write_siglip, "timm": write_timm}


@pytest.fixture(scope="module", params=WRITERS)
def folders(request, tmp_path_factory) -> list[Path]:
    """Output folders of the same training with a model of open_clip and its copy in another format."""
    root = tmp_path_factory.mktemp(request.param)
    outputs = []
    names = WRITERS[request.param](root)
    for number, name in enumerate(names):
        words = ["train", "digits", "--config-file", "mini", "--backbone", name, "--shots", "4", "--seed", "1"]
        keys = QUICK if request.param != "timm" else (*QUICK, f"{NODE}.PROMPTS.SOURCE", "none")
        assert main([*words, "--output-dir", str(root / f"run-{number}"), *keys]) == 0
        outputs.append(root / f"run-{number}")
    return outputs


def test_trained_models_are_equal(folders):
    own, copied = ({**load_file(next((out / "model").glob("*.safetensors")))} for out in folders)
    assert own.keys() == copied.keys() and len(own) > 3
    for name, expected in own.items():
        step = 2**-11 if expected.dtype == torch.float16 else 0  # a rounded number, relative to its size
        scale = max(expected.abs().max().item(), 1.0)
        torch.testing.assert_close(copied[name], expected, rtol=step, atol=1e-4 * scale, msg=name)
    records = [json.loads((out / "result.json").read_text()) for out in folders]
    assert records[0]["accuracy"] == records[1]["accuracy"] > 20
    assert records[0]["accuracy_zero_shot"] == records[1]["accuracy_zero_shot"]


def test_onnx_files_give_equal_answers(folders, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    images = ImageModel.load(load_model(folders[0]))
    digits = load_digits_dataset()
    pixels = torch.stack([images.backbone.preprocess(digits.open(item.path)) for item in digits.test[::30]])
    answers = []
    for number, out in enumerate(folders):
        file = tmp_path / f"{number}.onnx"
        assert main(["export", str(out), "--onnx", str(file)]) == 0
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        answers.append(session.run(["logits"], {"pixel_values": pixels.numpy()})[0])
    np.testing.assert_allclose(answers[1], answers[0], atol=1e-4 * np.abs(answers[0]).max())
    assert (answers[1].argmax(axis=1) == answers[0].argmax(axis=1)).all()
    assert len({*answers[0].argmax(axis=1)}) > 3
