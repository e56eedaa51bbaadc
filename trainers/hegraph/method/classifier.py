"""A fitted method folded into what prediction needs: class weights and a cache. No graph, no training.

Shapes: B images, K classes, N cached images, d feature width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from .cache import cache_sums


class Logits(NamedTuple):
    """Logits of the two classifiers, each `[B, K]`; `visual` is None without a cache classifier."""

    text: Tensor
    visual: Tensor | None


@dataclass(frozen=True)
class FoldedClassifier:
    """Class weights and, maybe, a cache (Eq. 7 and 8 of HeGraphAdapter; the cache is Tip-Adapter's).

        z_t = f W^T + b
        z_v = sum over the cached images k of each class of v_k exp(-beta (1 - f . F_k))
        z   = z_t + alpha z_v

    Attributes:
        weights: `W`, which holds CLIP's `tau`: for HeGraphAdapter `tau X_p' / |X_p'|`, shape `[K, d]`.
        bias: `b`, shape `[K]`; None is zero.
        keys: Cached image features `F`, shape `[N, d]`; None without a cache classifier.
        labels: Class of each cached image, shape `[N]`; None without a cache classifier.
        key_weights: `v`, shape `[N]`; None is one for all.
        alpha: Weight of the cache.
        beta: Sharpness of the affinities.
    """

    weights: Tensor
    bias: Tensor | None = None
    keys: Tensor | None = None
    labels: Tensor | None = None
    key_weights: Tensor | None = None
    alpha: float = 0.0
    beta: float = 1.0

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.weights)

    @property
    def width(self) -> int:
        """d."""
        return self.weights.shape[1]

    @torch.no_grad()
    def parts(self, features: Tensor, batch_size: int = 1024) -> Logits:
        """Logits of the two classifiers, before they are added.

        Args:
            features: Unit-norm image features, shape `[B, d]`.
            batch_size: How many images are compared with the cache at once.
        """
        text = features @ self.weights.t()
        text = text if self.bias is None else text + self.bias
        if self.keys is None or self.labels is None:
            return Logits(text, None)
        keys, labels, values = self.keys, self.labels, self.key_weights
        batches = features.split(batch_size)
        visual = [cache_sums(batch, keys, labels, self.beta, self.num_classes, values) for batch in batches]
        return Logits(text, torch.cat(visual))

    def logits(self, features: Tensor, batch_size: int = 1024) -> Tensor:
        """The prediction `z`, shape `[B, K]`; arguments as in `parts`."""
        return self.combine(self.parts(features, batch_size))

    def combine(self, parts: Logits) -> Tensor:
        """`z_t + alpha z_v`, shape `[B, K]`; `z_t` alone without a cache classifier."""
        return parts.text if parts.visual is None else parts.text + self.alpha * parts.visual

    def text_only(self) -> FoldedClassifier:
        """The classifier without its cache, which is used in other domains."""
        return replace(self, keys=None, labels=None, key_weights=None)

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> FoldedClassifier:
        """The classifier with all its tensors on a device and, if a type is given, its floats of that type."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, dtype)

        return replace(
            self,
            weights=self.weights.to(device, dtype),
            bias=move(self.bias),
            keys=move(self.keys),
            labels=None if self.labels is None else self.labels.to(device),
            key_weights=move(self.key_weights),
        )
