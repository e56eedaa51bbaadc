"""Small models shared by the tests of the backbones."""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision import transforms as T

from trainers.hegraph.features.backbones.base import Backbone

ROOT = Path(__file__).parents[3]
AUGMENTATION = ("random_resized_crop", "random_flip", "normalize")
SENTENCES = ["a photo of a cat.", "a photo of no cat.", ""]

TINY = "tiny-vit-quickgelu"  # a small version of OpenAI's ViTs
TINY_CONFIG = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
SIGLIP_CONFIG = {  # a small version of open_clip's SigLIP with CLIP's tokenizer
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
    "text_cfg": {**TINY_CONFIG["text_cfg"], "context_length": 64, "no_causal_mask": True, "pool_type": "last"},
}
HALF_MEAN = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "resize_mode": "squash"}


class Recorder(TorchFunctionMode):
    """Records the names of the functions of torch that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.names.add(getattr(function, "__name__", ""))
        return function(*args, **(kwargs or {}))


def save_weights(model: nn.Module, path: Path) -> None:
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)


def cache_file(cache: Path, repository: str, name: str) -> Path:
    """Path of a repository's file in huggingface_hub's cache, whose folder is created."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    path = folder / "snapshots" / "0123" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text("0123")
    return path


def assert_same_features(backbone: Backbone, model: nn.Module) -> None:
    """Assert that a backbone gives the normalised features of an open_clip model."""
    pixels = torch.randn(3, 3, *backbone.input_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        image_features = F.normalize(model.encode_image(pixels), dim=-1)
        text_features = F.normalize(model.encode_text(backbone.tokenizer(SENTENCES)), dim=-1)
    torch.testing.assert_close(backbone.encode_images(pixels), image_features)
    torch.testing.assert_close(backbone.encode_text(SENTENCES), text_features)
    torch.testing.assert_close(image_features.norm(dim=1), torch.ones(len(pixels)))
    assert image_features.shape[1] == text_features.shape[1] == backbone.width


def kinds(transform: T.Compose) -> list[str]:
    return [type(step).__name__ for step in transform.transforms]
