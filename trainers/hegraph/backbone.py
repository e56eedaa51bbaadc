"""The frozen CLIP. The only file that knows open_clip.

Shapes: B images, d feature width (the model's own), H the model's input resolution.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms as T

from .errors import UserError, unknown
from .files import hash_file

MINI_NAME = "hegraph-mini"
MINI_CONFIG = Path(__file__).parent / "mini" / f"{MINI_NAME}.json"
MINI_WEIGHTS = MINI_CONFIG.with_suffix(".safetensors")

INTERPOLATIONS = {"bicubic": T.InterpolationMode.BICUBIC, "bilinear": T.InterpolationMode.BILINEAR}

Transform = Callable[[Image.Image], Tensor]
Tokenizer = Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True)
class Backbone:
    """A frozen CLIP with its tokenizer and image transforms.

    Attributes:
        name: The open_clip model name and its weights, for records.
        model: In evaluation mode, on its device; no parameter requires a gradient.
        tokenizer: Sentences to tokens.
        preprocess: The model's own test transform, image to `[3, H, H]`.
        mean, std: Of the normalisation, per channel.
        fingerprint: Plain values that change whenever features would.
    """

    name: str
    model: nn.Module
    tokenizer: Tokenizer
    preprocess: T.Compose
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: dict[str, str]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def logit_scale(self) -> float:
        """CLIP's temperature `tau`, 100 for OpenAI's weights."""
        return self.model.logit_scale.exp().item()

    @property
    def image_size(self) -> int:
        size = self.model.visual.image_size
        return size if isinstance(size, int) else size[0]

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Images `[B, 3, H, H]` to unit-norm float32 features `[B, d]` on the CPU."""
        return F.normalize(self.model.encode_image(images.to(self.device)).float(), dim=-1).cpu()

    @torch.no_grad()
    def encode_text(self, sentences: Sequence[str], batch_size: int = 256) -> Tensor:
        """Sentences to unit-norm float32 features `[len(sentences), d]` on the CPU."""
        features = [
            self.model.encode_text(self.tokenizer(list(sentences[i : i + batch_size])).to(self.device))
            for i in range(0, len(sentences), batch_size)
        ]
        return F.normalize(torch.cat(features).float(), dim=-1).cpu()

    def training_transform(self, names: Sequence[str], crop_scale: Sequence[float], interpolation: str) -> T.Compose:
        """The augmentation of training images, CoOp's by default.

        Args:
            names: Of "random_resized_crop", "random_flip", "normalize" (which always happens). Without a
                crop, the image is resized and centre-cropped as for testing.
            crop_scale: The area that a random resized crop keeps, as (least, most) fractions.
            interpolation: "bicubic" or "bilinear".
        """
        steps = list(self.preprocess.transforms)
        if "random_resized_crop" in names:
            crop = T.RandomResizedCrop(
                self.image_size, scale=tuple(crop_scale), interpolation=INTERPOLATIONS[interpolation]
            )
            resizing = (T.Resize, T.CenterCrop)
            steps = [crop] + [step for step in steps if not isinstance(step, resizing)]
        if "random_flip" in names:
            steps.insert(0, T.RandomHorizontalFlip())
        return T.Compose(steps)


def load_backbone(name: str, pretrained: str = "", device: str = "cpu") -> Backbone:
    """Loads a frozen CLIP.

    Args:
        name: An open_clip model name, or "hegraph-mini".
        pretrained: An open_clip weights tag or a weights file; "" takes the weights that mini ships with.
        device: Where it runs.

    Raises:
        UserError: On an unknown model or tag, an activation that does not fit the weights, or weights that
            cannot be had.
    """
    if name == MINI_NAME and not pretrained:
        pretrained = str(MINI_WEIGHTS)
    if not name:
        raise UserError("MODEL.BACKBONE.NAME is empty; give --config-file configs/trainers/HeGraphAdapter/NAME.yaml")
    if not pretrained:
        raise UserError(f"MODEL.BACKBONE.PRETRAINED is empty; {name!r} needs an open_clip tag or a weights file")
    # open_clip only warns about this, and the features are then wrong
    if pretrained == "openai" and not name.endswith("-quickgelu"):
        raise UserError(f"OpenAI's weights were trained with QuickGELU: use {name + '-quickgelu'!r}, not {name!r}")
    model, preprocess, tokenizer = create_model(name, pretrained)
    model = model.to(device).eval().requires_grad_(False)
    normalize = next(step for step in preprocess.transforms if isinstance(step, T.Normalize))
    weights = hash_file(Path(pretrained)) if Path(pretrained).is_file() else pretrained
    return Backbone(
        name=f"{name}/{Path(pretrained).stem if Path(pretrained).is_file() else pretrained}",
        model=model,
        tokenizer=tokenizer,
        preprocess=preprocess,
        mean=tuple(normalize.mean),
        std=tuple(normalize.std),
        fingerprint={"model": name, "weights": weights, "preprocess": describe(preprocess)},
    )


def describe(transform: Transform) -> str:
    """What a transform does, as text that is the same in every process: a function's `repr` holds its address."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(transform))


def create_model(name: str, pretrained: str | None = None) -> tuple[nn.Module, T.Compose, Tokenizer]:
    """Builds an open_clip model, its test transform and its tokenizer.

    Args:
        name: An open_clip model name, or "hegraph-mini".
        pretrained: A weights tag or file; None leaves the model at its random initialisation.

    Raises:
        UserError: On an unknown model or tag, or weights that cannot be had.
    """
    open_clip.add_model_config(MINI_CONFIG)
    if "hf-hub:" not in name and name not in open_clip.list_models():
        raise unknown("backbone", name, open_clip.list_models())
    if pretrained and not Path(pretrained).is_file():
        tags = open_clip.list_pretrained_tags_by_model(name)
        if pretrained not in tags and "hf-hub:" not in name:
            raise unknown(f"weights of {name}: neither a file nor a tag:", pretrained, tags)
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=pretrained)
        return model, preprocess, open_clip.get_tokenizer(name)
    except Exception as error:  # on a damaged file, torch.load and safetensors raise whatever its bytes lead to
        known = isinstance(error, (OSError, RuntimeError, ValueError)) and str(error).strip()
        reason = str(error).strip().splitlines()[0] if known else f"the file is damaged ({type(error).__name__})"
        raise UserError(f"cannot load {name} with weights {pretrained!r}: {reason}") from error
