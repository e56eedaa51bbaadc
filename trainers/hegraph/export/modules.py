"""The two graphs that are exported, as torch modules whose every operation ONNX has.

Shapes: B images, K classes, N cached images, d feature width, H x W the input resolution of the backbone.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..method.cache import FoldedClassifier, affinities


class Head(nn.Module):
    """The folded classifier and its temperature: features to logits and probabilities.

    It computes what `FoldedClassifier.logits` computes, with the cache in one piece: a batch needs `B * N` floats.

    Args:
        classifier: The folded classifier.
        temperature: What logits are divided by before the softmax.
    """

    weights: Tensor
    bias: Tensor | None
    keys: Tensor | None
    labels: Tensor
    key_weights: Tensor | None

    def __init__(self, classifier: FoldedClassifier, temperature: float) -> None:
        super().__init__()
        keys = classifier.keys if classifier.keys is not None and len(classifier.keys) else None
        self.num_classes, self.temperature = classifier.num_classes, temperature
        self.alpha, self.beta = classifier.alpha, classifier.beta
        self.register_buffer("weights", classifier.weights.t().contiguous())  # [d, K]
        self.register_buffer("bias", classifier.bias)
        self.register_buffer("keys", None if keys is None else keys.t().contiguous())  # [d, N]
        self.register_buffer("labels", None if keys is None else classifier.labels)
        self.register_buffer("key_weights", None if keys is None else classifier.key_weights)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Unit-norm features `[B, d]` to logits and probabilities, each `[B, K]`."""
        logits = features @ self.weights
        if self.bias is not None:
            logits = logits + self.bias
        if self.keys is not None:
            logits = logits + self.alpha * self._cache_sums(features, self.keys)
        return logits, (logits / self.temperature).softmax(dim=1)

    def _cache_sums(self, features: Tensor, keys: Tensor) -> Tensor:
        """The affinities of each class, added up: `[B, K]`."""
        of_images = affinities(features @ keys, self.beta)  # [B, N]
        if self.key_weights is not None:
            of_images = of_images * self.key_weights
        batch = features.shape[0]  # not len(features), which tracing would turn into a constant
        return features.new_zeros(batch, self.num_classes).scatter_add(1, self.labels.expand(batch, -1), of_images)


class Encoder(nn.Module):
    """The image tower of an open_clip model."""

    def __init__(self, model: Any) -> None:  # open_clip's model classes have no type in common
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised images `[B, 3, H, W]` to features `[B, d]`, of any norm."""
        return self.model.encode_image(pixels)

    def num_bytes(self) -> int:
        """Of the weights."""
        return sum(weight.numel() * weight.element_size() for weight in self.model.visual.parameters())


class Full(nn.Module):
    """The image tower and the head: pixels to logits and probabilities.

    Args:
        model: An open_clip model in float32.
        head: The head.
    """

    def __init__(self, model: Any, head: Head) -> None:
        super().__init__()
        self.encoder, self.head = Encoder(model), head

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images `[B, 3, H, W]` to logits and probabilities, each `[B, K]`."""
        return self.head(F.normalize(self.encoder(pixels), dim=-1))
