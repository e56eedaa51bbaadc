"""The closed form: what text and images of all classes say about each class, without a step of training.

Its messages are all that the variant "free" has. The trained variants add them to their trained text classifier.

Three relations of the graph, each centred, so that what all classes have in common is not passed on:

1. text -> visual. One ridge regression over the classes maps text to class means; it is the `W` of this relation, and
   reaches classes without images as well:

       p_c = m' + a (t_c - t') + [(t_c - t'), 1] W

   with `m'` the mean of the class means, `t'` the mean text, and `a >= 0` by least squares. The `W` that sends a class
   its message is fitted without that class (exact leave-one-out of the ridge regression); `m'` and `a` are common to
   all classes, so one of K classes counts for about 1/K in them. The strength of the ridge is the one of `RIDGES` with
   the least leave-one-class-out error. Where none beats `a` alone, there is no `W`.
2. Visual nodes: `u_c = (S_c m_c + kappa p_c) / (S_c + kappa)`. Text counts as `kappa` images.
3. visual -> text, in the metric of the shared within-class covariance (shrinkage LDA: Ledoit and Wolf, 2004; Friedman,
   "Regularized discriminant analysis", 1989), which is the `W` of this relation:

       Sigma = mean_k (F_k - u_{y_k})(F_k - u_{y_k})^T,  sigma^2 = tr Sigma / d,  r = rho d / N
       A = (Sigma / sigma^2 + r I) / (1 + r)
       x_c = A^-1 (u_c - m) / (|A^-1/2 (u_c - m)| s),  s = mean_k |A^-1/2 (F_k - m)|

   with `m` the mean of all keys. It adds `omega tau (f - m) . x_c` to the logits, which folds into weights and a bias.

The deviation of an image from its class node, where the node does without that image, is within-class noise:

    r_j = F_j - u_{y_j}^(-j)

Training adds it to other images (`HeGraphModel.with_noise`), so that a bias fits the spread of a class and not its few
images. At one shot the node without the image is what text says, `p_c`.

`class_offsets` is a bias that moves zero-shot CLIP towards predicting every class as often as it occurs in the
training images.

Shapes: N cached images, K classes, S_c images of class c, d feature width. Computed in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # strengths, times the mean eigenvalue of the text kernel
CONSTANT = 10.0  # times the mean diagonal of the text kernel, added to all its entries: it gives an intercept
TEMPERATURES = (0.06, 0.09, 0.125, 0.18, 0.25, 0.35, 0.5, 0.7, 1.0)  # `1 / T`: logits are multiplied by them
OFFSET_STEPS = 20  # stops early: at one shot a class may still be off by a half of its share
BLOCK = 2**24  # entries of the largest matrix where images are left out one by one
PRIOR = 4.0  # makes the steps to the class offsets smaller, and so the offsets
OMEGA_NEW = 0.05  # weight in the logits of the messages to classes without images
SMALLEST = 1e-9  # what is divided by is at least this
ROWS = 4096  # images that are worked on at once, since float64 takes twice the memory of their keys


class TextGuess:
    """What text `[K, d]` says about the class means of image features `[K, d]` (step 1).

    Attributes:
        left_out: `p_c` of every class, with the `W` that was fitted without it, shape `[K, d]`.
        mean_text, mean_image: `t'` and `m'`, shape `[d]`.
        slope: `a`.
        texts: `t_c - t'` of the classes, shape `[K, d]`.
        constant: Added to every entry of the text kernel.
        dual: The ridge regression's dual weights, shape `[K, d]`; None where there is no `W`.
    """

    def __init__(self, text: Tensor, means: Tensor) -> None:
        text, means = text.double(), means.double()
        self.mean_text, self.mean_image = text.mean(dim=0), means.mean(dim=0)
        self.texts, images = text - self.mean_text, means - self.mean_image
        alike, square = (self.texts * images).sum(), (self.texts * self.texts).sum()
        self.slope = (alike / square.clamp_min(SMALLEST)).clamp_min(0)
        rest = images - self.slope * self.texts
        self.constant = CONSTANT * self.texts.square().sum(dim=1).mean()
        eigenvalues, vectors = kernel_eigenvectors(self.texts, self.constant)
        projected = vectors.t() @ rest
        mean_eigenvalue = (eigenvalues[:-1].sum() / (len(text) - 1)).clamp_min(SMALLEST)
        least, left_out, self.dual = rest.square().sum(), torch.zeros_like(rest), None
        for factor in RIDGES:
            ridge = factor * mean_eigenvalue
            shrink = eigenvalues / (eigenvalues + ridge)
            leverage = (vectors.square() * shrink).sum(dim=1, keepdim=True)
            predicted = (vectors @ (shrink.unsqueeze(1) * projected) - leverage * rest) / (1 - leverage)
            if (error := (rest - predicted).square().sum()) < least:
                least, left_out = error, predicted
                self.dual = vectors @ (projected / (eigenvalues + ridge).unsqueeze(1))
        self.left_out = self.mean_image + self.slope * self.texts + left_out

    def of(self, text: Tensor) -> Tensor:
        """`p_c` of classes that have no images, from their text features `[K', d]`; shape `[K', d]`."""
        deviation = text.double() - self.mean_text
        guess = self.mean_image + self.slope * deviation
        if self.dual is None:
            return guess
        return guess + (deviation @ self.texts.t() + self.constant) @ self.dual


def kernel_eigenvectors(texts: Tensor, constant: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of `texts texts^T + constant`, ascending, and its eigenvectors, in columns; `texts` is `[K, d]`.

    With more classes than features the matrix has rank d + 1 at most, and only those eigenvectors are worked out, from
    a matrix of that size: without that, 21,841 classes would take hours.
    """
    num_classes, width = texts.shape
    if num_classes <= width + 1:
        eigenvalues, vectors = torch.linalg.eigh(texts @ texts.t() + constant)
        return eigenvalues.clamp_min(0), vectors
    design = torch.cat([texts, constant.sqrt().expand(num_classes, 1)], dim=1)
    eigenvalues, turn = torch.linalg.eigh(design.t() @ design)
    kept = eigenvalues > SMALLEST * eigenvalues[-1]
    eigenvalues = eigenvalues[kept]
    return eigenvalues, design @ turn[:, kept] / eigenvalues.sqrt()


def whitening_of(covariance: Tensor, ridge: float | Tensor, least: float | Tensor) -> Tensor:
    """`A^-1/2` of step 3 from `Sigma` `[d, d]` and `r`; no eigenvalue of `A` counts as less than `least`."""
    width = len(covariance)
    spread = (covariance.trace() / width).clamp_min(SMALLEST)  # of images that are all alike it is 0
    identity = torch.eye(width, dtype=covariance.dtype, device=covariance.device)
    eigenvalues, vectors = torch.linalg.eigh((covariance / spread + ridge * identity) / (1 + ridge))
    return (vectors / eigenvalues.clamp_min(least).sqrt()) @ vectors.t()


@dataclass(frozen=True)
class TextMessages:
    """The messages that text nodes receive (step 3), and what they were made of.

    Attributes:
        weights: `x_c`, shape `[K, d]`, float32.
        bias: `-m . x_c`, shape `[K]`, float32.
        whitening: `A^-1/2`, shape `[d, d]`.
        mean: `m`, shape `[d]`.
        scale: `s`.
        nodes: The visual nodes in the whitened space, `A^-1/2 (u_c - m) / s`, shape `[K, d]`, float32.
    """

    weights: Tensor
    bias: Tensor
    whitening: Tensor
    mean: Tensor
    scale: Tensor
    nodes: Tensor


class ClosedForm:
    """The three steps. The first two are taken at once: training needs no more than them.

    Args:
        keys: Unit-norm cached image features, shape `[N, d]`; every class has at least one.
        labels: Their classes, shape `[N]`.
        text: Unit-norm text features, shape `[K, d]`.
        kappa: How many images text counts as.
        rho: Strength of the covariance's ridge, times d / N.
        receivers: For each class the class whose message its text node receives, shape `[K]`; None: its own.

    Attributes:
        guess: Of step 1.
        nodes: `u_c` (step 2), shape `[K, d]`.
        noise: `r_j`, shape `[N, d]`, float32.
    """

    def __init__(
        self, keys: Tensor, labels: Tensor, text: Tensor, kappa: float, rho: float, receivers: Tensor | None = None
    ) -> None:
        self.keys, self.labels, self.rho, self.receivers = keys, labels, rho, receivers
        counts = torch.bincount(labels, minlength=len(text)).double().unsqueeze(1)
        sums = counts.new_zeros(text.shape)
        for some, classes in self._blocks():
            sums.index_add_(0, classes, some)
        means = sums / counts
        self.guess = TextGuess(text, means)
        sums, guesses = counts * means, kappa * self.guess.left_out
        noise = []
        for some, classes in self._blocks():
            without = (sums[classes] - some + guesses[classes]) / (counts[classes] - 1 + kappa)
            noise.append((some - without).float())
        self.nodes, self.noise = (sums + guesses) / (counts + kappa), torch.cat(noise)

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The keys, in float64, and their labels, `ROWS` at a time."""
        for some, classes in zip(self.keys.split(ROWS), self.labels.split(ROWS)):
            yield some.double(), classes

    @cached_property  # a run starts without it: at the size of ImageNet it takes seconds
    def to_text(self) -> TextMessages:
        """Step 3."""
        num_images, width = self.keys.shape
        nodes = self.nodes
        mean, covariance = nodes.new_zeros(width), nodes.new_zeros(width, width)
        for some, classes in self._blocks():
            mean += some.sum(dim=0) / num_images
            deviations = some - nodes[classes]
            covariance += deviations.t() @ deviations / num_images
        whitening = whitening_of(covariance, self.rho * width / num_images, SMALLEST)
        lengths = torch.cat([((some - mean) @ whitening).norm(dim=1) for some, _ in self._blocks()])
        scale = lengths.mean().clamp_min(SMALLEST)
        whitened = (nodes - mean) @ whitening
        weights = F.normalize(whitened, dim=1) @ whitening / scale
        bias = -(weights @ mean)
        if self.receivers is not None:
            weights, bias = weights[self.receivers], bias[self.receivers]
        return TextMessages(weights.float(), bias.float(), whitening, mean, scale, (whitened / scale).float())

    def for_new_classes(self) -> NewClassMessages:
        """What gives messages to classes that have no images."""
        messages = self.to_text
        intercept = self.guess.of(torch.zeros_like(messages.mean).unsqueeze(0))
        slope = self.guess.of(torch.eye(len(messages.mean)).to(messages.mean)) - intercept
        return NewClassMessages(
            matrix=(slope @ messages.whitening).float(),
            offset=((intercept - messages.mean) @ messages.whitening)[0].float(),
            whitening=(messages.whitening / messages.scale).float(),
            mean=messages.mean.float(),
        )


@dataclass(frozen=True)
class NewClassMessages:
    """Steps 1 to 3 for classes without images, `u_c = p_c`. All of step 1 is affine in the text, so it folds:

        x_c = A^-1/2 (t_c M + o) / (|t_c M + o| s)

    Attributes:
        matrix: `M`, shape `[d, d]`.
        offset: `o`, shape `[d]`.
        whitening: `A^-1/2 / s`, shape `[d, d]`.
        mean: `m`, shape `[d]`.
    """

    matrix: Tensor
    offset: Tensor
    whitening: Tensor
    mean: Tensor

    def to(self, device: str | torch.device) -> NewClassMessages:
        return NewClassMessages(**{name: tensor.to(device) for name, tensor in vars(self).items()})

    def folded(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """`x_c` and `-m . x_c` of text features `[K, d]`, shapes `[K, d]` and `[K]`."""
        weights = F.normalize(text @ self.matrix + self.offset, dim=1) @ self.whitening
        return weights, -(weights @ self.mean)

    def logits(self, features: Tensor, text: Tensor) -> Tensor:
        """`(f - m) . x_c` of image features `[B, d]` and text features `[K, d]`, shape `[B, K]`."""
        return (features - self.mean) @ self.folded(text)[0].t()


def class_offsets(logits: Tensor, labels: Tensor) -> Tensor:
    """Offsets of the classes, of mean zero, which move their mean probabilities on the training images towards their
    shares; shape `[K]`, from zero-shot logits `[N, K]` of the training images and their labels `[N]`.

    Each of `OFFSET_STEPS` steps adds the log of `(count + PRIOR) / (mass + PRIOR)`, where `mass` is the sum of a
    class's probabilities. At one shot, that many steps do not reach the end.
    """
    factor = TEMPERATURES[int(nll_at_temperatures(logits, labels).argmin())]
    counts = torch.bincount(labels, minlength=logits.shape[1]).to(logits.dtype)
    offsets = torch.zeros_like(counts)
    for _ in range(OFFSET_STEPS):
        mass = ((logits + offsets) * factor).softmax(dim=1).sum(dim=0)
        offsets = offsets + ((counts + PRIOR) / (mass + PRIOR)).log() / factor
    return offsets - offsets.mean()


def left_out_offsets(logits: Tensor, labels: Tensor) -> Tensor:
    """`class_offsets` of all images but one, for each of them, shape `[N, K]`; logits `[N, K]` are zero-shot CLIP's.

    The masses of all classes under the offsets of J images at once are two matrix products, as in Sinkhorn's algorithm.
    """
    counts = torch.bincount(labels, minlength=logits.shape[1]).to(logits.dtype)
    own = torch.stack([F.cross_entropy(logits * factor, labels, reduction="none") for factor in TEMPERATURES])
    best = (nll_at_temperatures(logits, labels).unsqueeze(1) - own).argmin(dim=0)
    offsets = torch.empty_like(logits)
    for number in best.unique().tolist():
        factor = TEMPERATURES[number]
        scaled = (factor * (logits - logits.amax(dim=1, keepdim=True))).exp()
        for rows in (best == number).nonzero()[:, 0].split(max(1, BLOCK // len(logits))):
            own_counts = counts - F.one_hot(labels[rows], len(counts))
            found = torch.zeros_like(logits[rows])  # times the factor
            for _ in range(OFFSET_STEPS):
                weights = found.exp()
                mass = weights * ((1 / (weights @ scaled.t())) @ scaled)
                mass -= F.normalize(weights * scaled[rows], p=1, dim=1)
                found += ((own_counts + PRIOR) / (mass + PRIOR)).log()
            offsets[rows] = (found - found.mean(dim=1, keepdim=True)) / factor
    return offsets


def nll_at_temperatures(logits: Tensor, labels: Tensor) -> Tensor:
    """The NLL of logits `[N, K]` times each of `TEMPERATURES`, in their order, summed over the images."""
    return torch.stack([F.cross_entropy(logits * factor, labels, reduction="sum") for factor in TEMPERATURES])
