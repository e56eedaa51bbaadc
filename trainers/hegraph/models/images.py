"""A trained model with its backbone: images to features and probabilities, batch by batch and in order.

Shapes: B images of a batch, K classes, d feature width.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..backbones.identity import AUTO, FOLDER, canonical_name
from ..features.images import ImageLike, ImageReader
from ..utils.errors import UserError
from .folder import load_model
from .saved import SavedModel

if TYPE_CHECKING:
    from ..backbones.clip import Backbone

logger = logging.getLogger(__name__)

Model = SavedModel | Path | str  # in memory, a model folder, or the output folder of a run


class ImageModel:
    """A trained model that takes images. Logits are computed where the backbone is.

    Raises:
        UserError: If the model was trained on features of another backbone; the message names the difference.
    """

    def __init__(self, model: SavedModel, backbone: Backbone) -> None:
        check_backbone(model, backbone)
        self.model, self.backbone = model, backbone
        self._classifier = model.classifier.to(backbone.device)

    @classmethod
    def load(
        cls, model: Model, device: str = "cpu", backbone: str = "", pretrained: str = "", precision: str = AUTO
    ) -> ImageModel:
        """Loads the backbone of a model on a device.

        `backbone`, `pretrained` and `precision` are as `load_backbone` takes them. "" takes those that the model names:
        one that was trained from a feature bank names none, and weights may lie elsewhere on this machine. The
        precision need not be that of the training.

        Raises:
            UserError: If the folder is damaged, or the backbone is not named, cannot be had or is another.
        """
        model = model if isinstance(model, SavedModel) else load_model(model)
        named, name = model.backbone, canonical_name(backbone) or model.backbone.model
        if not name:  # none is guessed: other weights would give other classes
            raise UserError(
                f"the model was trained from a feature bank ({named.title}) that does not say how its images were "
                'encoded; give --backbone NAME --pretrained TAG (in Python backbone="NAME", pretrained="TAG")'
            )
        weights = pretrained or (named.pretrained if name == named.model else "")
        from ..backbones.loading import load_backbone  # open_clip takes seconds to import

        return cls(model, load_backbone(name, weights, device, precision))

    def features(self, images: Iterable[ImageLike], batch_size: int = 64) -> Tensor:
        """Unit-norm features of images, on the CPU, shape `[B, d]`. UserError names the first that cannot be read."""
        found = [torch.zeros(0, self.model.classifier.width)]
        for batch, problems, features in self.encode(images, batch_size):
            for image, problem in zip(batch, problems):
                if problem:
                    raise UserError(f"cannot read {image}: {problem}")
            found.append(features)
        return torch.cat(found)

    def probabilities(self, images: Iterable[ImageLike], batch_size: int = 64) -> Tensor:
        """Calibrated probabilities of the classes, on the CPU, shape `[B, K]`; arguments and errors of `features`."""
        return self.model.calibrate(self.logits(self.features(images, batch_size)))

    def logits(self, features: Tensor) -> Tensor:
        """Logits of unit-norm features `[B, d]`, on the CPU, shape `[B, K]`."""
        return self._classifier.logits(features.to(self.backbone.device)).cpu()

    def encode(
        self, images: Iterable[ImageLike], batch_size: int = 64
    ) -> Iterator[tuple[Sequence[ImageLike], Sequence[str], Tensor]]:
        """Batches of images in order: the images, of each why it could not be read ("" for one that could), and the
        features `[number that could be read, d]`.
        """
        none = torch.zeros(0, self.model.classifier.width)
        for batch, pixels, problems in ImageReader(self.backbone.preprocess).batches(images, batch_size):
            yield batch, problems, self.backbone.encode_images(pixels) if len(pixels) else none


def check_backbone(model: SavedModel, backbone: Backbone) -> None:
    """Checks that a backbone gives the features that a model was trained on. Another precision is said, since another
    machine may be faster in another one, and so is another name where a feature bank told the model nothing else.

    Raises:
        UserError: If the features are others; the message names the first difference.
    """
    title, width = model.backbone.title, model.classifier.width
    if backbone.width != width:
        raise UserError(f"{backbone.name} gives features of width {backbone.width}, but the model takes {width}")
    here, there = backbone.fingerprint, model.backbone.fingerprint
    others = [key for key in sorted({*here, *there} - {"precision"}) if here.get(key) != there.get(key)]
    if there and others:
        raise UserError(
            f"the model was trained on features of {title}, and the backbone {backbone.name} here has another "
            f"{others[0]}; give the model's own backbone"
        )
    if not there and backbone.name != title:
        said = "the bank that the model was trained from says %r; you say that its features are those of %s"
        logger.warning(said, title, backbone.name)
    model.backbone.compare_precision(backbone.precision)


def backbone_files(model: SavedModel, backbone: str = "", pretrained: str = "") -> list[Path]:
    """The files of this machine that a backbone is loaded from; arguments as of `ImageModel.load`."""
    name, weights = canonical_name(backbone) or model.backbone.model, pretrained or model.backbone.pretrained
    of_folder = Path(name.removeprefix(FOLDER)).glob("*") if name.startswith(FOLDER) else ()
    return [Path(weights), *of_folder] if weights else [*of_folder]
