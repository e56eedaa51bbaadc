"""Name and fingerprint of a backbone, as feature banks, model folders and teach projects store them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ...utils.reading import StrictModel

if TYPE_CHECKING:  # torchvision takes a second to import
    from .base import Backbone

logger = logging.getLogger(__name__)


class BackboneConfig(StrictModel):
    """Frozen encoder that encodes or encoded features.

    Attributes:
        title: Model and weights, for people.
        model, pretrained, precision: Arguments of `load_backbone`; "" for features whose backbone is unknown.
        fingerprint: Plain values that change whenever the features change; {} if unknown.
        decode: Decoding of image files, one of `DECODINGS`. Older models and banks have none, and decoded at full size.
    """

    title: str = ""
    model: str = ""
    pretrained: str = ""
    precision: Annotated[str, Field(pattern="^(fp32|bf16|fp16|amp)$")] = "fp32"
    fingerprint: dict[str, str] = Field(default={})
    decode: Annotated[str, Field(pattern="^(auto|full)$")] = "full"

    @classmethod
    def of(cls, backbone: Backbone, model: str, pretrained: str) -> BackboneConfig:
        """Description of a backbone from `load_backbone(model, pretrained)`."""
        return cls(
            title=backbone.name, model=model, pretrained=pretrained, precision=backbone.precision,
            fingerprint=backbone.fingerprint, decode=backbone.decode,
        )  # fmt: skip

    def compare_precision(self, precision: str) -> None:
        """Log a warning if features have another precision than in the training."""
        if self.model and precision != self.precision:
            message = "the model was trained on features in %s, and is used here with features in %s"
            logger.warning(message, self.precision, precision)
