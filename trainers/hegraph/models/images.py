"""Trained model with its backbone, from images to features and probabilities.

Shapes: B images of a batch, K classes, d feature width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from ..datasets.decoding import DecodedImage
from ..datasets.images import ImageOrPath
from ..features.backbones.bundles import folder_of
from ..features.backbones.identity import AUTO, canonical_name
from ..features.images import ImageReader
from ..features.order import encoding_steps
from ..utils.errors import UserError
from .folder import load_model
from .saved import SavedModel, TrainedModel

if TYPE_CHECKING:
    from ..features.backbones.base import Backbone

logger = logging.getLogger(__name__)

Model = SavedModel | Path | str  # model, model folder, or output folder of a run
# Images of a batch, errors ("" for a readable image), and features of the readable images
EncodedBatch: TypeAlias = "tuple[Sequence[ImageOrPath], Sequence[str], Tensor]"


class ImageModel:
    """Trained model with images as input. Logits are computed on the device of the backbone.

    Image files are decoded as in the training.

    Raises:
        UserError: If the model was trained on features of another backbone; the message names the difference.
    """

    def __init__(self, model: SavedModel, backbone: Backbone) -> None:
        check_backbone(model, backbone)
        self.model = model
        self.backbone = backbone.with_decoding(model.backbone.decode)
        self._classifier = model.classifier.to(backbone.device)

    @classmethod
    def load(
        cls, model: Model, device: str = "cpu", backbone: str = "", pretrained: str = "", precision: str = AUTO
    ) -> ImageModel:
        """Load a model and its backbone.

        Args:
            model: Model, or its folder.
            device: Device of the backbone.
            backbone, pretrained: Arguments of `load_backbone`; "" takes the names in the model. A model from a feature
                bank may have none, and weights files may have another path on this machine.
            precision: Argument of `load_backbone`; may differ from the precision of the training.

        Raises:
            UserError: If the folder is damaged, or the backbone is unnamed, unavailable or another one.
        """
        model = model if isinstance(model, SavedModel) else load_model(model)
        own = model.backbone
        name = canonical_name(backbone) or own.model
        if not name:  # no default, because other weights would give wrong classes
            raise UserError(
                f"the model was trained from a feature bank ({own.title}) that does not name its backbone; add "
                '--backbone NAME --pretrained TAG (in Python backbone="NAME", pretrained="TAG")'
            )
        weights = pretrained or (own.pretrained if name == own.model else "")
        from ..features.backbones.loading import load_backbone  # open_clip takes seconds to import

        return cls(model, load_backbone(name, weights, device, precision))

    def features(self, images: Iterable[ImageOrPath | DecodedImage], batch_size: int = 64) -> Tensor:
        """Unit-norm features of images on the CPU, shape `[B, d]`; UserError names the first unreadable image."""
        return self.backbone.encode_images([*images], batch_size)

    def probabilities(self, images: Iterable[ImageOrPath | DecodedImage], batch_size: int = 64) -> Tensor:
        """Calibrated probabilities of images on the CPU, shape `[B, K]`; UserError names the first unreadable image."""
        return self.model.calibrate(self.logits(self.features(images, batch_size)))

    def logits(self, features: Tensor) -> Tensor:
        """Logits `[B, K]` of unit-norm features `[B, d]`, on the CPU."""
        return self._classifier.logits(features.to(self.backbone.device)).cpu()

    def encode(
        self, images: Iterable[ImageOrPath], batch_size: int = 64, show: Callable[[int], None] | None = None
    ) -> Iterator[EncodedBatch]:
        """Iterate over batches in order.

        Args:
            images: The images.
            batch_size: Number of images of a batch.
            show: Function that receives the number of finished images, several times for each batch.
        """
        return join_steps(self.encode_steps(images, batch_size), batch_size, show)

    def encode_steps(
        self, images: Iterable[ImageOrPath], batch_size: int = 64, num_finished: int = 0
    ) -> Iterator[EncodedBatch]:
        """Iterate over parts of batches, each of which the backbone encodes in one call (see `encoding_steps`).

        Args:
            images: The images.
            batch_size: Number of images of a batch.
            num_finished: Number of images of the first batch that are encoded already, up to the end of a step.
                `images` begins after them.
        """
        remaining = iter(images)
        reader = ImageReader(self.backbone.preprocess)
        first = list(islice(remaining, batch_size - num_finished)) if num_finished else []
        for batch, pixels, problems in chain(reader.batches(first, batch_size), reader.batches(remaining, batch_size)):
            readable = [position for position, problem in enumerate(problems) if not problem]
            start = 0
            for step in encoding_steps(self.backbone, len(readable), batch_size):
                stop = len(batch) if step.stop == len(readable) else readable[step.stop]
                yield (
                    batch[start:stop],
                    problems[start:stop],
                    self.backbone.encode_images(pixels[step.start : step.stop]),
                )
                start = stop
            if not readable:
                yield batch, problems, torch.zeros(0, self.model.classifier.width)


def join_steps(
    steps: Iterable[EncodedBatch], batch_size: int, show: Callable[[int], None] | None = None
) -> Iterator[EncodedBatch]:
    """Join the steps of each batch; `show` receives the number of finished images after each step."""
    images: list[ImageOrPath] = []
    problems: list[str] = []
    features: list[Tensor] = []
    done = 0
    for step_images, step_problems, step_features in steps:
        images += step_images
        problems += step_problems
        features.append(step_features)
        done += len(step_images)
        if show is not None:
            show(done)
        if len(images) == batch_size:
            yield images, problems, torch.cat(features)
            images = []
            problems = []
            features = []
    if images:
        yield images, problems, torch.cat(features)


def check_backbone(model: TrainedModel, backbone: Backbone) -> None:
    """Check that a backbone gives the features that a model was trained on.

    Logs another precision, because machines differ in their fastest one. Logs another name if the model comes from a
    feature bank that only contains a name.

    Raises:
        UserError: If the features differ; the message names the first difference.
    """
    title = model.backbone.title
    width = model.text_positive.shape[1]
    if backbone.width != width:
        raise UserError(f"{backbone.name} gives features of width {backbone.width}, but the model takes {width}")
    actual = backbone.fingerprint
    expected = model.backbone.fingerprint
    different = [key for key in sorted({*actual, *expected} - {"precision"}) if actual.get(key) != expected.get(key)]
    if expected and different:
        problem = f"expected the backbone of the model, {title}, got {backbone.name} with another {different[0]}"
        raise UserError(f"{problem}; use the model's own backbone")
    if not expected and backbone.name != title:
        logger.warning("the model was trained from a bank of %r, and its backbone is %s", title, backbone.name)
    model.backbone.compare_precision(backbone.precision)


def backbone_files(model: SavedModel, backbone: str = "", pretrained: str = "") -> list[Path]:
    """Local files of a model's backbone; arguments as in `ImageModel.load`."""
    name = canonical_name(backbone) or model.backbone.model
    weights = pretrained or model.backbone.pretrained
    folder = folder_of(name)
    bundle = () if folder is None else folder.glob("*")
    return [Path(weights), *bundle] if weights else [*bundle]
