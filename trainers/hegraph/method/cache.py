"""The cache classifier while its keys move: Eq. 8 of HeGraphAdapter without the moved keys or their gradient.

The key of image k is `F_k + s_c`, where `s_c`, the shift, is one vector per class. So

    cos(f, F_k + s_c) = (f . F_k + f . s_c) / |F_k + s_c|

where nothing in `f . F_k` is trained. So of the two products of `[B, d]` with `[N, d]` that `heads.py` needs in a
step, one is left, and none where `f . F_k` is known before training. What remains is elementwise. It is done in chunks
of the cache that are small enough to stay in the processor's own cache. Rows are gathered by `index_select`, which on
a CPU takes a third to a sixth of the time of `[...]`, with the same result.

Shapes: B queries, K classes, N cached images, d feature width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Entries of a chunk. On a CPU, 2 MB of float32 stay in a core's cache, and are few enough that the C library does not
# hand the memory back to the system after every use. A GPU is fast with large kernels.
CHUNK = {"cpu": 2**19, "cuda": 2**26}
EPS = 1e-12  # least norm that is divided by, as in F.normalize
NO_MATCH = -1e4  # an exponent whose exponential is 0, and which times 0 is 0


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
        keys: Cached image features, shape `[N, d]`.
        shift: What moves the keys of each class, shape `[K, d]`.
        labels: Class of each cached image, shape `[N]`.
        beta: Sharpness.
        own: Positions of the queries in the cache, shape `[B]`, where they are cached images themselves: a query then
            does not match its own key. None where no query is in the cache.
        products: `features @ keys.t()`, shape `[B, N]`, where it is known already.

    Returns:
        Logits, shape `[B, K]`.
    """
    return _ShiftedCache.apply(shift, features, keys, labels, beta, own, products).t()


def cache_sums(
    features: Tensor,
    keys: Tensor,
    labels: Tensor,
    beta: float,
    num_classes: int,
    key_weights: Tensor | None = None,
) -> Tensor:
    """As `shifted_cache_logits` for keys that have been moved and normalised, `[N, d]`. For prediction: no gradient."""
    logits = features.new_zeros(num_classes, len(features))
    for rows in chunks(keys, len(features)):
        affinities = (keys[rows] @ features.t()).sub_(1).mul_(beta).exp_()  # [R, B]
        if key_weights is not None:
            affinities.mul_(key_weights[rows].unsqueeze(1))
        logits.index_add_(0, labels[rows], affinities)
    return logits.t()


def moved_keys(keys: Tensor, shift: Tensor, labels: Tensor) -> Tensor:
    """The keys `F_k + s_c`, shape `[N, d]`."""
    return shift.index_select(0, labels).add_(keys)


class _ShiftedCache(torch.autograd.Function):
    """The forward and backward pass of `shifted_cache_logits`, with classes in rows: logits are `[K, B]`.

    In every matrix a row is a cached image, so that the sum of a class adds rows. The exponent of an affinity is
    `e = scale * (f . F_k + f . s_c) - beta` with `scale = beta / |F_k + s_c|`; only exponents and norms are kept for
    the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        shift: Tensor,
        features: Tensor,
        keys: Tensor,
        labels: Tensor,
        beta: float,
        own: Tensor | None,
        products: Tensor | None,
    ) -> Tensor:
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
