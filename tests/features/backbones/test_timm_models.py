"""Image encoders of timm: features, preprocessing, precision, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from random_models import write_timm_model
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_model_data_config
from tiny import AUGMENTATION, SIGLIP_CONFIG, Recorder, kinds

from trainers.hegraph import UserError, load_backbone
from trainers.hegraph.features.backbones.identity import backbone_identity
from trainers.hegraph.features.backbones.loading import hub_repository, local_weights

VIT = "timm:test_vit.r160_in1k"
BEIT = {"embed_dim": 32, "depth": 1, "num_heads": 2}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Weights of a random test_vit with its classifier."""
    folder = write_timm_model(tmp_path_factory.mktemp("models") / "vit")
    return folder / "model.safetensors"


def with_input_size(folder: Path, side: int, **changes: object) -> Path:
    """Change the input size of a model in a folder, which is returned, and other keys of its configuration."""
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    config["pretrained_cfg"] |= {"input_size": [3, side, side], "fixed_input_size": True}
    file.write_text(json.dumps(config))
    return folder


def pixels_of(side: int) -> torch.Tensor:
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_features_are_those_of_timm_without_classifier(weights):
    backbone = load_backbone(VIT, str(weights))
    torch.manual_seed(0)
    network = timm.create_model("test_vit.r160_in1k").eval()
    pixels = pixels_of(160)
    with torch.no_grad():
        expected = network.forward_head(network.forward_features(pixels), pre_logits=True)
    torch.testing.assert_close(backbone.encode_images(pixels), F.normalize(expected, dim=-1))
    assert (backbone.name, backbone.width, backbone.input_size) == ("timm/test_vit.r160_in1k/model", 64, (160, 160))
    assert not backbone.has_text and backbone.logit_scale == 100


def test_loaded_model_gets_no_random_weights_before(weights):
    with Recorder() as recorder:
        load_backbone(VIT, str(weights))
    assert "copy_" in recorder.names and not recorder.names & {"normal_", "uniform_", "erfinv_"}


def test_vit_in_open_clip_has_the_features_of_timm(siglip, tmp_path):
    own = load_backbone(f"local-dir:{siglip}")
    network = timm.create_model(SIGLIP_CONFIG["vision_cfg"]["timm_model_name"], num_classes=0, global_pool="map")
    network.load_state_dict(own.model.visual.trunk.state_dict())
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": "vit_tiny_patch16_224", "model_args": {"global_pool": "map"}, "num_classes": 0}
    entry = {"input_size": [3, 224, 224], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0, "crop_mode": "squash"}
    entry["interpolation"] = "bicubic"
    (tmp_path / "config.json").write_text(json.dumps({**config, "pretrained_cfg": entry}))
    backbone = load_backbone(f"timm:{tmp_path}")
    pixels = pixels_of(224)
    assert (backbone.encode_images(pixels) - own.encode_images(pixels)).abs().max() < 1e-5
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 300, 3), dtype=np.uint8))
    assert torch.equal(backbone.preprocess(image), own.preprocess(image))


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_preprocessing_is_the_data_configuration_of_timm(crop_mode, weights, tmp_path):
    folder = write_timm_model(tmp_path / "vit")
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"] |= {"crop_mode": crop_mode, "crop_pct": 0.9}
    (folder / "config.json").write_text(json.dumps(config))
    backbone = load_backbone(f"timm:{folder}")
    data = resolve_model_data_config(backbone.model.network)
    assert (data["crop_mode"], data["crop_pct"]) == (crop_mode, 0.9)
    transform = create_transform(**data, is_training=False)
    for size in ((300, 201), (40, 90)):
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
        torch.testing.assert_close(backbone.preprocess(image), transform(image), rtol=0, atol=1e-6)
    steps = kinds(backbone.training_transform(AUGMENTATION, (0.08, 1.0), "bicubic"))
    assert steps == ["RandomHorizontalFlip", "RandomResizedCrop", "MaybeToTensor", "Normalize"]


@pytest.mark.parametrize("name", ["test_vit.r160_in1k", "test_convnext.r160_in1k", "test_efficientnet.r160_in1k"])
def test_bfloat16_converts_the_whole_model(name, tmp_path):
    folder = write_timm_model(tmp_path / "model", name)
    exact, half = load_backbone(f"timm:{folder}"), load_backbone(f"timm:{folder}", precision="bf16")
    pixels = pixels_of(160)
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.bfloat16}
    assert (exact.encode_images(pixels) * half.encode_images(pixels)).sum(dim=1).min() > 0.99
    assert half.fingerprint["precision"] == "bf16"


@pytest.mark.parametrize("precision", ["fp16", "amp"])
def test_half_precision_gives_nearly_equal_features(precision, weights):
    exact, half = load_backbone(VIT, str(weights)), load_backbone(VIT, str(weights), precision=precision)
    assert (exact.encode_images(pixels_of(160)) * half.encode_images(pixels_of(160))).sum(dim=1).min() > 0.999


def test_size_that_a_model_does_not_accept_is_refused(tmp_path):
    folder = write_timm_model(tmp_path / "vit", "test_vit3.r160_in1k")  # timm builds it for 224 x 224
    with pytest.raises(UserError, match=r"cannot encode 160x160 images in bf16 with timm:.*; choose another"):
        load_backbone(f"timm:{folder}", precision="bf16")
    with pytest.raises(UserError, match=r"cannot encode 160x160 images in fp32 with timm:.*; choose another backbone"):
        load_backbone(f"timm:{folder}")


def test_positions_of_another_image_size_are_reported(tmp_path, caplog):
    folder = write_timm_model(tmp_path / "vit", img_size=48)
    load_backbone(f"timm:{with_input_size(folder, 48)}")
    assert not caplog.records
    backbone = load_backbone(f"timm:{with_input_size(folder, 32)}")
    assert backbone.input_size == (32, 32)
    sizes = "from 48x48 to 32x32 images, its input size"
    assert caplog.messages == [f"the position embeddings of timm/vit are resized {sizes}"]


def test_weights_file_of_another_image_size_is_reported(weights, tmp_path, caplog):
    positions = torch.zeros(1, 1 + 4 * 4, 64)
    save_file({**load_file(weights), "pos_embed": positions}, tmp_path / "w64.safetensors")
    load_backbone(VIT, str(tmp_path / "w64.safetensors"))
    sizes = "from 64x64 to 160x160 images, its input size"
    assert caplog.messages == [f"the position embeddings of timm/test_vit.r160_in1k/w64 are resized {sizes}"]


def test_relative_positions_of_another_size_are_reported(tmp_path, caplog):
    folder = write_timm_model(tmp_path / "beit", "beit_base_patch16_224", img_size=48, **BEIT)
    change = {"model_args": BEIT, "architecture": "beit_base_patch16_224"}
    load_backbone(f"timm:{with_input_size(folder, 32, **change)}")
    sizes = "from shape [28, 2] to 32x32 images, its input size"  # (2 * 3 - 1) ** 2 + 3 distances of 3 x 3 patches
    assert caplog.messages == [f"the position embeddings of timm/beit are resized {sizes}"]


def test_weights_are_identified_without_loading_the_model(weights, tmp_path):
    folder = write_timm_model(tmp_path / "vit")
    of_file = backbone_identity(VIT, str(weights), "fp32", "cpu")
    assert of_file["model"] == VIT and len(of_file["weights"]) == 64
    assert backbone_identity(VIT, "auto", "bf16", "cpu") == {"model": VIT, "weights": "", "precision": "bf16"}
    of_folder = backbone_identity(f"timm:{folder}", "", "fp32", "cpu")
    assert of_folder["weights"] == of_file["weights"] and len(of_folder["model"]) == 64
    assert load_backbone(f"timm:{folder}").fingerprint.items() >= of_folder.items()


def test_weights_of_another_model_are_refused(weights, tmp_path):
    with pytest.raises(UserError, match=r"cannot load timm/test_vit2.r160_in1k/model with weights"):
        load_backbone("timm:test_vit2.r160_in1k", str(weights))
    state = timm.create_model("test_vit.r160_in1k").state_dict()
    del state["norm.bias"]
    save_file(state, tmp_path / "incomplete.safetensors")
    with pytest.raises(UserError, match="norm.bias"):
        load_backbone(VIT, str(tmp_path / "incomplete.safetensors"))


@pytest.mark.parametrize(
    "name, pretrained, message",
    [
        ("timm:vit_nope", "", "unknown model of timm 'vit_nope'"),
        ("timm:test_vit.nope", "", "unknown weights of timm:test_vit 'nope'"),
        ("timm:test_vit", "", r"names no weights: expected timm:NAME.TAG, such as timm:test_vit.r160_in1k"),
        (VIT, "nope", "weights of timm:test_vit.r160_in1k: expected a file, got 'nope'"),
        ("timm:./nope", "", "there is no folder './nope'"),
        ("timm:a/b", "x.pt", "brings its weights along"),
    ],
)
def test_names_and_weights_are_checked(name, pretrained, message):
    with pytest.raises(UserError, match=message):
        load_backbone(name, pretrained)


def test_plain_values_alone_reach_timm_from_a_file(tmp_path):
    folder = write_timm_model(tmp_path / "vit")
    config = json.loads((folder / "config.json").read_text())
    config["model_args"] = {"pretrained_cfg_overlay": {"file": "x"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="expected plain values in model_args"):
        load_backbone(f"timm:{folder}")


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("interpolation", "bicubik", "unknown interpolation of .* 'bicubik'; did you mean 'bicubic'"),
        ("std", [0.5, 0.5], "expected a number, or one for each of three colours"),
    ],
)
def test_preprocessing_of_a_file_is_checked(key, value, message, tmp_path):
    folder = write_timm_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"][key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        load_backbone(f"timm:{folder}")


@pytest.mark.parametrize("size", ["big", [3, 0, 32], [32, 32], None])
def test_input_size_of_a_file_is_checked(size, tmp_path):
    folder = write_timm_model(tmp_path / "vit")
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"]["input_size"] = size
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config.json: expected input_size \[3, HEIGHT, WIDTH\], got"):
        load_backbone(f"timm:{folder}")


def test_without_the_hub_the_message_names_the_file(no_hub):
    assert local_weights(VIT, "") is None
    assert hub_repository(VIT, "") == "timm/test_vit.r160_in1k"
    with pytest.raises(UserError) as caught:
        load_backbone(VIT)
    message = str(caught.value)
    assert message.startswith(f"{VIT} needs model.safetensors from http")
    assert "/timm/test_vit.r160_in1k, which cannot be reached" in message
    assert "set MODEL.BACKBONE.PRETRAINED (or --pretrained) to its path" in message
