"""A trained model together with the backbone that it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..backbones.clip import Backbone
from ..backbones.loading import load_backbone
from ..models.folder import load_model
from ..models.saved import SavedModel
from ..utils.errors import UserError


@dataclass(frozen=True)
class ImageModel:
    """A trained model and its backbone."""

    model: SavedModel
    backbone: Backbone

    @classmethod
    def load(cls, folder: Path | str, device: str = "cpu", backbone: str = "", pretrained: str = "") -> ImageModel:
        """Reads a model folder and loads its backbone.

        Args:
            folder: The model folder, or the output folder of a run.
            device: Where the backbone runs.
            backbone, pretrained: Taken instead of those that the folder names; "" takes the folder's.

        Raises:
            UserError: If the folder is damaged, or the backbone cannot be had or is not the model's.
        """
        model = load_model(folder)
        trained = model.backbone
        name = backbone or trained.model
        if not name:
            raise UserError(
                f"the model was trained from a feature bank, which does not say how images of {trained.title!r} are "
                "encoded; give --backbone NAME --pretrained TAG"
            )
        loaded = load_backbone(name, pretrained or trained.pretrained, device, trained.precision)
        if trained.fingerprint and loaded.fingerprint != trained.fingerprint:
            raise UserError(f"the model is of {trained.title!r}, and the backbone at hand is another: {loaded.name!r}")
        return cls(model, loaded)

    def features(self, images: Sequence[Image.Image], batch_size: int = 64) -> Tensor:
        """Unit-norm features of images, shape `[B, d]`."""
        pixels = torch.stack([self.backbone.preprocess(image) for image in images])
        return torch.cat([self.backbone.encode_images(batch) for batch in pixels.split(batch_size)])
