"""The two classifiers (Eq. 7 and 8), their loss (Eq. 9), and the classifier that a fitted method leaves.

The plain functions come first. `shifted_cache_logits` is Eq. 8 while training moves the keys: the key of image k is
`F_k + s_c`, where `s_c`, the shift, is one vector per class. So

    cos(f, F_k + s_c) = (f . F_k + f . s_c) / |F_k + s_c|

where nothing in `f . F_k` is trained. Of the two products of `[B, d]` with `[N, d]` that a step of the plain functions
takes, one is left, and none where `f . F_k` is known before training. The rest is elementwise, and is done in chunks of
the cache that stay in the processor's own. Rows are gathered by `index_select`, which on a CPU takes a third to a sixth
of the time of `[...]`.

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

# Entries of a chunk. On a CPU, 2 MB of float32 stay in a core's cache; a GPU is fast with large kernels
CHUNK = {"cpu": 2**19, "cuda": 2**26}
BATCH = 1024  # images that prediction compares with the cache at once
EPS = 1e-12  # least norm that is divided by, as in F.normalize
NO_MATCH = -1e4  # an exponent whose exponential is 0, and which times 0 is 0


class Logits(NamedTuple):
    """Logits of the two classifiers, each `[B, K]`; `visual` is None without a cache classifier."""

    text: Tensor
    visual: Tensor | None


def text_logits(features: Tensor, class_features: Tensor, logit_scale: float) -> Tensor:
    """Cosine classifier `tau * cos(f, x_k)` (Eq. 7): logits `[B, K]` of unit-norm image features `[B, d]`, for text
    features `[K, d]` of any norm. CLIP's `tau` is 100 for OpenAI's weights."""
    return logit_scale * features @ F.normalize(class_features, dim=-1).t()


def cache_affinities(features: Tensor, keys: Tensor, beta: float) -> Tensor:
    """Affinity of each query `[B, d]` of unit norm to each cached image `[N, d]` of any norm, shape `[B, N]` (Eq. 8):
    `exp(-beta (1 - cos(f, F_k)))`, in `(0, 1]`."""
    return affinities(features @ F.normalize(keys, dim=-1).t(), beta)


def affinities(cosines: Tensor, beta: float) -> Tensor:
    """`exp(-beta (1 - cos))` of each entry; or of `f . F_k` in place of `cos`, for keys of another norm."""
    return (-beta * (1 - cosines)).exp()


def cache_logits(affinities: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Sum of the affinities `[B, N]` over the cached images of each class (Eq. 8): logits `[B, K]`."""
    logits = affinities.new_zeros(affinities.shape[0], num_classes)
    return logits.index_add(1, labels, affinities)


def adapter_loss(logits: Logits, labels: Tensor, visual_weight: float, visual_scale: float) -> Tensor:
    """Cross-entropy of the text classifier plus `lambda`, the visual weight, times that of the cache (Eq. 9).

    The visual logits are sums of affinities, which CLIP's `tau` does not scale; they have a scale of their own.
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
    """Sum over the images of each class of `exp(-beta (1 - cos(f, F_k + s_c)))`; differentiable in `shift` alone.

    Args:
        features: Unit-norm image features, shape `[B, d]`.
        keys, labels: Cached image features, shape `[N, d]`, and their classes.
        shift: What moves the keys of each class, shape `[K, d]`.
        beta: Sharpness.
        own: Positions of the queries in the cache, shape `[B]`, where they are cached images themselves: a query then
            does not match its own key.
        products: `features @ keys.t()`, shape `[B, N]`, where it is known already.
    """
    return _ShiftedCache.apply(shift, features, keys, labels, beta, own, products).t()


def moved_keys(keys: Tensor, shift: Tensor, labels: Tensor) -> Tensor:
    """The keys `F_k + s_c`, shape `[N, d]`."""
    return shift.index_select(0, labels).add_(keys)


class _ShiftedCache(torch.autograd.Function):
    """The forward and backward pass of `shifted_cache_logits`, with cached images and classes in rows.

    The exponent of an affinity is `e = scale * (f . F_k + f . s_c) - beta` with `scale = beta / |F_k + s_c|`; only
    exponents and norms are kept for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        shift, features, keys, labels, beta, own, products = given
        moved = shift @ features.t()  # f . s_c, [K, B]
        exponents, norms = keys.new_empty(len(keys), len(features)), keys.new_empty(len(keys), 1)
        logits = torch.zeros_like(moved)
        if products is not None:
            exponents.copy_(products.t())  # whole: torch transposes fast where both are contiguous
        for rows in chunks(keys, max(exponents.shape[1], keys.shape[1])):
            chunk, label = exponents[rows], labels[rows]
            if products is None:
                torch.mm(keys[rows], features.t(), out=chunk)
            norms[rows] = moved_keys(keys[rows], shift, label).norm(dim=1, keepdim=True).clamp_min_(EPS)
            chunk.add_(moved.index_select(0, label)).mul_(beta / norms[rows]).sub_(beta)
            if own is not None:  # in all chunks; what is set too early is set again in its turn
                exponents.scatter_(0, own.unsqueeze(0), NO_MATCH)
            logits.index_add_(0, label, chunk.exp())
        ctx.save_for_backward(shift, features, keys, labels, exponents, norms)
        ctx.beta = beta
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        shift, features, keys, labels, exponents, norms = ctx.saved_tensors
        beta, grad = ctx.beta, grad.contiguous()  # it comes transposed, which makes gathering and adding rows slow
        grad_moved, grad_shift = torch.zeros_like(grad), torch.zeros_like(shift)
        for rows in chunks(keys, max(exponents.shape[1], keys.shape[1])):
            chunk, label, norm = exponents[rows], labels[rows], norms[rows]
            grad_chunk = chunk.exp().mul_(grad.index_select(0, label))  # of the exponents
            # d e / d |F_k + s_c| = -(e + beta) / |F_k + s_c|
            grad_norm = -((grad_chunk * chunk).sum(1, keepdim=True) + beta * grad_chunk.sum(1, keepdim=True)) / norm
            grad_shift.index_add_(0, label, moved_keys(keys[rows], shift, label).mul_(grad_norm / norm))
            grad_moved.index_add_(0, label, grad_chunk.mul_(beta / norm))
        grad_shift.addmm_(grad_moved, features)
        return grad_shift, None, None, None, None, None, None


def chunks(matrix: Tensor, width: int) -> Iterator[slice]:
    """Slices of the rows of a matrix, each of about `CHUNK / width` rows; `width` may be 0, as of no queries."""
    size = max(1, CHUNK[matrix.device.type] // max(1, width))
    for start in range(0, len(matrix), size):
        yield slice(start, min(start + size, len(matrix)))


@dataclass(frozen=True)
class FoldedClassifier:
    """Class weights and, maybe, a cache (Eq. 7 and 8 of HeGraphAdapter; the cache is Tip-Adapter's).

        z_t = f W^T + b
        z_v = sum over the cached images k of each class of v_k exp(-beta (1 - f . F_k))
        z   = z_t + alpha z_v

    Attributes:
        weights: `W`, which holds CLIP's `tau`: for HeGraphAdapter `tau X_p' / |X_p'|`, shape `[K, d]`.
        bias: `b`, shape `[K]`; None is zero.
        keys, labels: Cached image features `F`, shape `[N, d]`, and their classes; None without a cache classifier.
        key_weights: `v`, shape `[N]`; None is one for all.
        alpha, beta: Weight of the cache, and sharpness of the affinities.
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
    def parts(self, features: Tensor, batch_size: int = BATCH) -> Logits:
        """Logits of the two classifiers, before they are added, for unit-norm image features `[B, d]`."""
        text = features @ self.weights.t()
        text = text if self.bias is None else text + self.bias
        visual = None if self.keys is None else torch.cat([*map(self._visual, features.split(batch_size))])
        return Logits(text, visual)

    def _visual(self, features: Tensor) -> Tensor:
        """`z_v` of a batch, in chunks of the cache."""
        assert self.keys is not None and self.labels is not None
        logits = features.new_zeros(self.num_classes, len(features))
        for rows in chunks(self.keys, len(features)):
            affinities = (self.keys[rows] @ features.t()).sub_(1).mul_(self.beta).exp_()  # [R, B]
            if self.key_weights is not None:
                affinities.mul_(self.key_weights[rows].unsqueeze(1))
            logits.index_add_(0, self.labels[rows], affinities)
        return logits.t()

    def logits(self, features: Tensor, batch_size: int = BATCH) -> Tensor:
        """The prediction `z`, shape `[B, K]`, for unit-norm image features `[B, d]`."""
        return self.combine(self.parts(features, batch_size))

    def combine(self, parts: Logits) -> Tensor:
        """`z_t + alpha z_v`, shape `[B, K]`; `z_t` alone without a cache classifier."""
        return parts.text if parts.visual is None else parts.text + self.alpha * parts.visual

    def plus(self, weights: Tensor, bias: Tensor) -> FoldedClassifier:
        """The classifier whose logits gain `f . w_c + b_c`."""
        bias = bias if self.bias is None else self.bias + bias
        return replace(self, weights=self.weights + weights, bias=bias)

    def text_only(self) -> FoldedClassifier:
        """The classifier without its cache, which is used in other domains."""
        return replace(self, keys=None, labels=None, key_weights=None)

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> FoldedClassifier:
        """The classifier with all its tensors on a device and, if a type is given, its floats of that type."""
        moved: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                moved[name] = value.to(device, dtype if value.is_floating_point() else None)
        return replace(self, **moved)
