"""A trained model together with its backbone: images to features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from ..utils.errors import UserError
from .folder import load_model
from .saved import SavedModel

if TYPE_CHECKING:
    from ..backbones.clip import Backbone

READING = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # SyntaxError: a broken PNG


class ImageModel:
    """A trained model and the frozen CLIP that encodes its images.

    Args:
        model: The trained model.
        backbone: The frozen CLIP.
    """

    def __init__(self, model: SavedModel, backbone: Backbone) -> None:
        self.model, self.backbone = model, backbone

    @classmethod
    def load(cls, folder: Path | str, device: str = "cpu", backbone: str = "", pretrained: str = "") -> ImageModel:
        """Reads a model folder and loads its backbone.

        Args:
            folder: The model folder.
            device: Where the backbone runs.
            backbone, pretrained: As `load_backbone` takes them; "" takes the backbone that the folder names.

        Raises:
            UserError: If the folder is damaged or names no backbone, or its features are not those of the backbone.
        """
        from ..backbones.loading import load_backbone  # imports open_clip

        model = load_model(folder)
        saved = model.backbone
        if not (backbone or saved.model):
            raise UserError(f"{folder} was trained on features and does not say what encodes images; name a backbone")
        named = (backbone, pretrained or "auto") if backbone else (saved.model, saved.pretrained)
        loaded = load_backbone(*named, device, saved.precision)
        for key in sorted({*loaded.fingerprint, *saved.fingerprint}) if saved.fingerprint else ():
            if loaded.fingerprint.get(key) != saved.fingerprint.get(key):
                raise UserError(f"the model is of features of {saved.title}, but {loaded.name} has another {key}")
        return cls(model, loaded)

    def features(self, images: Sequence[Path | str | Image.Image], batch_size: int = 64) -> Tensor:
        """Unit-norm features of images, shape `[n, d]`, on the CPU.

        Raises:
            UserError: If an image cannot be read; the message names it.
        """
        parts = []
        for start in range(0, len(images), batch_size):
            pixels = [self._pixels(image) for image in images[start : start + batch_size]]
            parts.append(self.backbone.encode_images(torch.stack(pixels)))
        return torch.cat(parts) if parts else torch.zeros(0, self.model.classifier.width)

    def _pixels(self, image: Path | str | Image.Image) -> Tensor:
        try:
            opened = image if isinstance(image, Image.Image) else Image.open(image)
            return self.backbone.preprocess(opened.convert("RGB"))
        except READING as error:
            raise UserError(f"cannot read the image {image}: {error}") from error
