"""The two classifiers. Eq. 7 and 8 of HeGraphAdapter; the cache classifier is Tip-Adapter's.

Shapes: B queries, K classes, N cached images, d feature width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def text_logits(features: Tensor, class_features: Tensor, logit_scale: float) -> Tensor:
    """Cosine classifier `tau * cos(f, x_k)` (Eq. 7).

    Args:
        features: Unit-norm image features, shape `[B, d]`.
        class_features: Text features of any norm, shape `[K, d]`.
        logit_scale: CLIP's `tau`, 100 for OpenAI's weights.

    Returns:
        Logits, shape `[B, K]`.
    """
    return logit_scale * features @ F.normalize(class_features, dim=-1).t()


def cache_affinities(features: Tensor, keys: Tensor, beta: float) -> Tensor:
    """Affinity of each query to each cached image, `exp(-beta (1 - cos(f, F_k)))` (Eq. 8).

    Args:
        features: Unit-norm image features, shape `[B, d]`.
        keys: Cached image features of any norm, shape `[N, d]`.
        beta: Sharpness; Tip-Adapter's `beta`.

    Returns:
        Affinities in `(0, 1]`, shape `[B, N]`.
    """
    return affinities(features @ F.normalize(keys, dim=-1).t(), beta)


def affinities(cosines: Tensor, beta: float) -> Tensor:
    """`exp(-beta (1 - cos))` of each entry; for keys that a method leaves at another norm, of `f . F_k` in its place.

    `cache.py` computes the same in place, in chunks, for caches that would not fit otherwise.
    """
    return (-beta * (1 - cosines)).exp()


def cache_logits(affinities: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Sum of the affinities over the cached images of each class (Eq. 8).

    The same as Tip-Adapter's product of the affinities with one-hot values.

    Args:
        affinities: Shape `[B, N]`.
        labels: Class of each cached image, shape `[N]`.
        num_classes: K.

    Returns:
        Logits, shape `[B, K]`.
    """
    logits = affinities.new_zeros(affinities.shape[0], num_classes)
    return logits.index_add(1, labels, affinities)
