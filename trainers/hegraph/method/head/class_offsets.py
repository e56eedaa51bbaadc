"""Class offsets: biases that move zero-shot CLIP towards predicting each class as often as a class prior says.

CLIP predicts some classes far too often. A bias for each class moves the mean predicted probabilities of the training
images towards a class prior: equal classes ("balanced"), or the frequencies of the training images ("training").

Shapes: N training images, K classes, S_c images of class c, `S'` the mean of S_c over the classes with images.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .closed_form import BLOCK

INVERSE_TEMPERATURES = (0.06, 0.09, 0.125, 0.18, 0.25, 0.35, 0.5, 0.7, 1.0)  # factors of the logits
OFFSET_STEPS = 20  # early stopping: at one shot, a class may still be off by half of its frequency
OFFSET_PRIOR = 4.0  # pseudo-images of each class in `class_offsets`


def class_offsets(logits: Tensor, labels: Tensor, prior: str) -> Tensor:
    """Class offsets of mean zero, shape `[K]`, that move mean predicted probabilities towards a class prior.

    Each of `OFFSET_STEPS` steps adds

        log[(S_c + P) / (S_c / S' mass_c + P)],   mass_c = sum_i S' / S_{y_i} p_i(c)    "balanced"
        log[(S_c + P) / (mass_c + P)],            mass_c = sum_i p_i(c)                 "training"

    with `P = OFFSET_PRIOR`. With "balanced", every class has the same weight in the masses, so that offsets do not copy
    unequal numbers of training images. For equal numbers, both are the same.

    Args:
        logits: Zero-shot logits of the training images, shape `[N, K]`.
        labels: Their classes, shape `[N]`.
        prior: "balanced" or "training".
    """
    best = smallest(nll_at_temperatures(logits, labels)).reshape(1)
    factor = logits.new_tensor(INVERSE_TEMPERATURES).index_select(0, best)
    ones = torch.ones_like(labels, dtype=logits.dtype)
    counts = logits.new_zeros(logits.shape[1]).index_add_(0, labels, ones)
    relative = relative_counts(counts) if prior == "balanced" else torch.ones_like(counts)
    weights = (1 / relative)[labels].unsqueeze(1)
    offsets = torch.zeros_like(counts)
    for _ in range(OFFSET_STEPS):
        mass = (((logits + offsets) * factor).softmax(dim=1) * weights).sum(dim=0)
        offsets = offsets + ((counts + OFFSET_PRIOR) / (mass * relative + OFFSET_PRIOR)).log() / factor
    return offsets - offsets.mean()


def relative_counts(counts: Tensor) -> Tensor:
    """Numbers of images relative to their mean, `S_c / S'`, shape `[K]`, from `S_c`, shape `[K]`; 0 without images."""
    num_classes = (counts > 0).sum()
    return counts * num_classes / counts.sum()


def left_out_offsets(logits: Tensor, labels: Tensor, prior: str) -> Tensor:
    """Leave-one-out `class_offsets`: row i is computed without image i, shape `[N, K]`.

    The masses of all classes, for a block of left-out images, take two matrix products, as in Sinkhorn's algorithm.
    With the prior "balanced", `S'` cancels, and an image weighs `1 / S_y`; without image i, the other images of its
    class weigh `1 / (S_y - 1)`.

    Args:
        logits: Zero-shot logits of the training images, shape `[N, K]`.
        labels: Their classes, shape `[N]`.
        prior: "balanced" or "training".
    """
    counts = torch.bincount(labels, minlength=logits.shape[1]).to(logits.dtype)
    own = torch.stack([F.cross_entropy(logits * factor, labels, reduction="none") for factor in INVERSE_TEMPERATURES])
    without = nll_at_temperatures(logits, labels).unsqueeze(1) - own  # of the other images, [T, N]
    best = smallest(without)
    offsets = torch.empty_like(logits)
    for number in best.unique().tolist():
        factor = INVERSE_TEMPERATURES[number]
        scaled = (factor * (logits - logits.amax(dim=1, keepdim=True))).exp()
        for rows in (best == number).nonzero()[:, 0].split(max(1, BLOCK // len(logits))):
            own_counts = counts - F.one_hot(labels[rows], len(counts))
            image_weights = class_weights = None
            if prior == "balanced":
                image_weights = 1 / own_counts.clamp_min(1)[:, labels]
                class_weights = own_counts
            scaled_offsets = torch.zeros_like(logits[rows])  # times the factor
            for _ in range(OFFSET_STEPS):
                mass = _masses_without(scaled, rows, scaled_offsets.exp(), image_weights)
                if class_weights is not None:
                    mass *= class_weights
                scaled_offsets += ((own_counts + OFFSET_PRIOR) / (mass + OFFSET_PRIOR)).log()
            offsets[rows] = (scaled_offsets - scaled_offsets.mean(dim=1, keepdim=True)) / factor
    return offsets


def _masses_without(scaled: Tensor, rows: Tensor, weights: Tensor, image_weights: Tensor | None) -> Tensor:
    """Sums of probabilities by class over all images but one, shape `[R, K]`, for each of R images.

    Args:
        scaled: Exponentials of the logits, shape `[N, K]`.
        rows: Indices of the images that are left out, shape `[R]`.
        weights: Exponentials of the offsets without each of them, shape `[R, K]`.
        image_weights: Weight of every image without each of them, shape `[R, N]`; None: 1.
    """
    inverse = 1 / (weights @ scaled.t())
    own = F.normalize(weights * scaled[rows], p=1, dim=1)
    if image_weights is not None:
        inverse = inverse * image_weights
        own = own * image_weights.gather(1, rows.unsqueeze(1))
    return weights * (inverse @ scaled) - own


def smallest(losses: Tensor) -> Tensor:
    """Index of the smallest loss along the first dimension; of equal ones, the last, whose factor is nearest to 1."""
    return len(losses) - 1 - losses.flip(0).argmin(dim=0)


def nll_at_temperatures(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood of logits `[N, K]`, summed over the images, shape `[T]`.

    The logits are multiplied by each of the T `INVERSE_TEMPERATURES`.
    """
    return torch.stack([F.cross_entropy(logits * factor, labels, reduction="sum") for factor in INVERSE_TEMPERATURES])
