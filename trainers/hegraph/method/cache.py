"""Text classifier and cache classifier (Eq. 7 and 8), their loss (Eq. 9), and the folded classifier for prediction.

The plain functions come first. `shifted_cache_logits` is Eq. 8 during training, which shifts the cache keys: the key of
image k is `F_k + s_c`, with one vector `s_c` per class. So

    cos(f, F_k + s_c) = (f . F_k + f . s_c) / |F_k + s_c|

where `f . F_k` is constant. The plain functions need two products of `[B, d]` with `[N, d]` in each step. This one
needs one product, or none if `f . F_k` is precomputed. The remaining work is elementwise, in chunks that fit into the
processor's cache. Rows are gathered by `index_select`, which on a CPU takes a sixth to a third of the time of `[...]`.

Shapes: B queries, K classes, N cached images, d feature width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CPU_CHUNK = 2**19  # entries of a chunk: 2 MB of float32 fit into the cache of a core
ACCELERATOR_CHUNK = 2**26  # entries of a chunk on any other device, which is fast with large kernels
QUERY_BATCH = 1024  # images compared with the cache at once in prediction
EPS = 1e-12  # least norm in a denominator, as in F.normalize
NO_MATCH = -1e4  # exponent with exponential 0; finite, so that 0 times it is 0


class Logits(NamedTuple):
    """Logits of the text classifier and of the cache classifier, each `[B, K]`; `visual` is None without a cache."""

    text: Tensor
    visual: Tensor | None


def text_logits(features: Tensor, class_features: Tensor, logit_scale: float) -> Tensor:
    """Logits `tau cos(f, x_k)` of the text classifier (Eq. 7), shape `[B, K]`.

    Args:
        features: Unit-norm image features, shape `[B, d]`.
        class_features: Text features of any norm, shape `[K, d]`.
        logit_scale: CLIP's `tau`, 100 for OpenAI's weights.
    """
    return logit_scale * features @ F.normalize(class_features, dim=-1).t()


def cache_affinities(features: Tensor, keys: Tensor, beta: float) -> Tensor:
    """Affinities `exp(-beta (1 - cos(f, F_k)))`, in `(0, 1]`, of queries and cached images (Eq. 8), shape `[B, N]`.

    Args:
        features: Unit-norm queries, shape `[B, d]`.
        keys: Features of the cached images, of any norm, shape `[N, d]`.
        beta: Sharpness.
    """
    return affinities(features @ F.normalize(keys, dim=-1).t(), beta)


def affinities(cosines: Tensor, beta: float) -> Tensor:
    """Affinities `exp(-beta (1 - cos))`, elementwise; for keys of another norm, `f . F_k` takes the place of `cos`."""
    return (-beta * (1 - cosines)).exp()


def cache_logits(affinities: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Logits of the cache classifier, shape `[B, K]`: sums of the affinities `[B, N]` by class (Eq. 8)."""
    return affinities.new_zeros(affinities.shape[0], num_classes).index_add(1, labels, affinities)


def adapter_loss(logits: Logits, labels: Tensor, visual_weight: float, visual_scale: float) -> Tensor:
    """Cross-entropy of the text classifier plus `visual_weight` times that of the cache classifier (Eq. 9).

    The cache logits are sums of affinities. CLIP's `tau` does not scale them; `visual_scale` does.
    """
    loss = F.cross_entropy(logits.text, labels)
    if logits.visual is None or visual_weight == 0:
        return loss
    return loss + visual_weight * F.cross_entropy(visual_scale * logits.visual, labels)


def shifted_cache_logits(
    features: Tensor,
    keys: Tensor,
    shift: Tensor,
    labels: Tensor,
    beta: float,
    own: Tensor | None = None,
    products: Tensor | None = None,
) -> Tensor:
    """Logits of the cache classifier for shifted keys `F_k + s_c`, shape `[B, K]`; differentiable in `shift` alone.

    Args:
        features: Unit-norm image features, shape `[B, d]`.
        keys, labels: Cached image features, shape `[N, d]`, and their classes.
        shift: Shift `s_c` of the keys of each class, shape `[K, d]`.
        beta: Sharpness.
        own: Positions in the cache of queries that are cached images themselves, shape `[B]`. A query does not match
            its own key.
        products: Precomputed `features @ keys.t()`, shape `[B, N]`.
    """
    return _ShiftedCache.apply(shift, features, keys, labels, beta, own, products).t()


def shifted_keys(keys: Tensor, shift: Tensor, labels: Tensor) -> Tensor:
    """Shifted cache keys `F_k + s_c`, shape `[N, d]`."""
    return shift.index_select(0, labels).add_(keys)


class _ShiftedCache(torch.autograd.Function):
    """Forward and backward pass of `shifted_cache_logits`, with cached images and classes in rows.

    The exponent of an affinity is `e = scale * (f . F_k + f . s_c) - beta` with `scale = beta / |F_k + s_c|`. The
    backward pass needs exponents and norms alone.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        shift, features, keys, labels, beta, own, products = args
        moved = shift @ features.t()  # f . s_c, [K, B]
        exponents = keys.new_empty(len(keys), len(features))
        norms = keys.new_empty(len(keys), 1)
        logits = torch.zeros_like(moved)
        if products is not None:
            exponents.copy_(products.t())  # whole: torch transposes fast where both are contiguous
        for rows in chunks(keys, max(exponents.shape[1], keys.shape[1])):
            chunk = exponents[rows]
            label = labels[rows]
            if products is None:
                torch.mm(keys[rows], features.t(), out=chunk)
            norms[rows] = shifted_keys(keys[rows], shift, label).norm(dim=1, keepdim=True).clamp_min_(EPS)
            chunk.add_(moved.index_select(0, label)).mul_(beta / norms[rows]).sub_(beta)
            if own is not None:  # in all chunks; later chunks overwrite their exponents and set this again
                exponents.scatter_(0, own.unsqueeze(0), NO_MATCH)
            logits.index_add_(0, label, chunk.exp())
        ctx.save_for_backward(shift, features, keys, labels, exponents, norms)
        ctx.beta = beta
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        shift, features, keys, labels, exponents, norms = ctx.saved_tensors
        beta = ctx.beta
        grad = grad.contiguous()  # the transposed gradient would be slow to gather from
        grad_moved = torch.zeros_like(grad)
        grad_shift = torch.zeros_like(shift)
        for rows in chunks(keys, max(exponents.shape[1], keys.shape[1])):
            chunk = exponents[rows]
            label = labels[rows]
            norm = norms[rows]
            grad_chunk = chunk.exp().mul_(grad.index_select(0, label))  # of the exponents
            # d e / d |F_k + s_c| = -(e + beta) / |F_k + s_c|
            grad_norm = -((grad_chunk * chunk).sum(1, keepdim=True) + beta * grad_chunk.sum(1, keepdim=True)) / norm
            grad_shift.index_add_(0, label, shifted_keys(keys[rows], shift, label).mul_(grad_norm / norm))
            grad_moved.index_add_(0, label, grad_chunk.mul_(beta / norm))
        grad_shift.addmm_(grad_moved, features)
        return grad_shift, None, None, None, None, None, None


def chunks(matrix: Tensor, width: int) -> Iterator[slice]:
    """Split the rows of a matrix into slices whose rows times `width`, which may be 0, are about one chunk."""
    entries = CPU_CHUNK if matrix.device.type == "cpu" else ACCELERATOR_CHUNK
    size = max(1, entries // max(1, width))
    for start in range(0, len(matrix), size):
        yield slice(start, min(start + size, len(matrix)))


@dataclass(frozen=True)
class FoldedClassifier:
    """Linear classifier, optionally with a Tip-Adapter cache (Eq. 7 and 8 of HeGraphAdapter).

        z_t = f W^T + b
        z_v = sum over the cached images k of each class of v_k exp(-beta (1 - f . F_k))
        z   = z_t + alpha z_v

    Attributes:
        weights: `W`, scaled by CLIP's `tau`, shape `[K, d]`; for HeGraphAdapter `tau X_p' / |X_p'|`.
        bias: `b`, shape `[K]`; None means zero.
        keys, labels: Cached image features `F`, shape `[N, d]`, and their classes; None without a cache.
        key_weights: `v`, shape `[N]`; None means 1 for all.
        alpha, beta: Weight of the cache logits, and sharpness of the affinities.
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
        return len(self.weights)

    @property
    def width(self) -> int:
        return self.weights.shape[1]

    @torch.no_grad()
    def parts(self, features: Tensor, batch_size: int = QUERY_BATCH) -> Logits:
        """Logits of text classifier and cache for unit-norm image features `[B, d]`, before they are added."""
        text = features @ self.weights.t()
        text = text if self.bias is None else text + self.bias
        visual = None if self.keys is None else torch.cat([*map(self._visual, features.split(batch_size))])
        return Logits(text, visual)

    def _visual(self, features: Tensor) -> Tensor:
        """Cache logits `z_v` of a batch, shape `[B, K]`, computed in chunks of the cache."""
        assert self.keys is not None and self.labels is not None
        logits = features.new_zeros(self.num_classes, len(features))
        for rows in chunks(self.keys, len(features)):
            affinities = (self.keys[rows] @ features.t()).sub_(1).mul_(self.beta).exp_()  # [R, B]
            if self.key_weights is not None:
                affinities.mul_(self.key_weights[rows].unsqueeze(1))
            logits.index_add_(0, self.labels[rows], affinities)
        return logits.t()

    def logits(self, features: Tensor, batch_size: int = QUERY_BATCH) -> Tensor:
        """Logits `z`, shape `[B, K]`, of unit-norm image features `[B, d]`."""
        return self.combine(self.parts(features, batch_size))

    def combine(self, parts: Logits) -> Tensor:
        """Sum `z_t + alpha z_v`, shape `[B, K]`; `z_t` alone without a cache."""
        return parts.text if parts.visual is None else parts.text + self.alpha * parts.visual

    def plus(self, weights: Tensor, bias: Tensor) -> FoldedClassifier:
        """Classifier with `f . w_c + b_c` added to its logits; weights `[K, d]` and bias `[K]`."""
        bias = bias if self.bias is None else self.bias + bias
        return replace(self, weights=self.weights + weights, bias=bias)

    def text_only(self) -> FoldedClassifier:
        """Classifier without the cache, used on other data sets."""
        return replace(self, keys=None, labels=None, key_weights=None)

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> FoldedClassifier:
        """Classifier with its tensors moved to a device and, if `dtype` is given, its floats converted."""
        moved: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                moved[name] = value.to(device, dtype if value.is_floating_point() else None)
        return replace(self, **moved)
