"""Closed-form head: shrinkage LDA whose class means are shrunk towards a ridge regression from text.

The training-free variant consists of this head and zero-shot CLIP. The trained variants add the head to their trained
text classifier. Seen as messages on the graph, it has three steps, all of centred features:

1. Text prior of the class means (text -> visual). A ridge regression over the classes maps text features to class
   means. It applies to classes without images as well:

       p_c = m' + a (t_c - t') + [(t_c - t'), 1] W

   with the mean `m'` of the class means, the mean text feature `t'`, and `a >= 0` by least squares. The `W` for class c
   is fitted without class c (exact leave-one-out of ridge regression); `m'` and `a` use all K classes. The ridge is the
   one of `RIDGES` with the smallest leave-one-class-out error. `W` is left out where `a` alone has a smaller error.
2. Class means (visual nodes): `u_c = (S_c m_c + kappa p_c) / (S_c + kappa)`. The prior weighs like `kappa` images.
   With trust in text (`trust.py`), a prior that says little about the means weighs less:

       kappa' = max(kappa min(1, R^2 / FULL_R2), LEAST_KAPPA),  R^2 = 1 - sum_c |m_c - p_c|^2 / sum_c |m_c - m'|^2

3. Linear discriminants (visual -> text), with the shared within-class covariance (shrinkage: Ledoit and Wolf, 2004;
   Friedman, "Regularized discriminant analysis", 1989):

       Sigma = mean_k (F_k - u_{y_k})(F_k - u_{y_k})^T,  sigma^2 = tr Sigma / d,  r = rho d / N
       A = (Sigma / sigma^2 + r I) / (1 + r)
       x_c = A^-1 (u_c - m) / (|A^-1/2 (u_c - m)| s),  s = mean_k |A^-1/2 (F_k - m)|

   with the mean `m` of all keys. The head adds `omega tau (f - m) . x_c` to the logits, that is, weights and a bias.

The deviation of an image from the mean of its class, computed without that image, is within-class noise:

    r_j = F_j - u_{y_j}^(-j)

Training adds this noise to other images (`HeGraphModel.with_noise`), so that biases fit the spread of a class instead
of its few images. At one shot the mean without the image is the text prior `p_c`.

Shapes: N cached images, K classes, S_c images of class c, d feature width. Computed in float64.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # times the mean eigenvalue of the text kernel
CONSTANT = 10.0  # intercept: added to all entries of the text kernel, times its mean diagonal
FULL_R2 = 0.1  # `R^2` from which on the text prior has its whole weight
LEAST_KAPPA = 0.25  # weight of a text prior that says nothing, in images
BLOCK = 2**24  # entries of the largest matrix in leave-one-out computations
OMEGA_NEW = 0.05  # weight of the head in the logits of classes without images
SMALLEST = 1e-9  # least denominator
CHUNK_ROWS = 4096  # images converted to float64 at once
WITHOUT_DOUBLE = {"mps"}  # types of devices without float64, for which the CPU computes


def in_double(tensor: Tensor) -> Tensor:
    """Tensor in float64, on its device, or on the CPU if the device has no float64."""
    return tensor.to(double_device(tensor.device)).double()


def double_device(device: torch.device) -> torch.device:
    """Device for the float64 arithmetic of tensors on a device."""
    return torch.device("cpu") if device.type in WITHOUT_DOUBLE else device


@dataclass(frozen=True)
class TextPrior:
    """Ridge regression from text features `[K, d]` to class means of image features `[K, d]` (step 1), in float64.

    Attributes:
        left_out: Prior `p_c` of each class, with `W` fitted without that class, shape `[K, d]`.
        mean_text, mean_image: `t'` and `m'`, shape `[d]`.
        slope: `a`.
        texts: `t_c - t'` of the classes, shape `[K, d]`.
        constant: Intercept term, added to every entry of the text kernel.
        dual: Dual weights of the ridge regression, shape `[K, d]`; None without `W`.
        ridge: Ridge of the regression; None without `W`.
    """

    left_out: Tensor
    mean_text: Tensor
    mean_image: Tensor
    slope: Tensor
    texts: Tensor
    constant: Tensor
    dual: Tensor | None
    ridge: Tensor | None

    @classmethod
    def fit(cls, text: Tensor, means: Tensor) -> TextPrior:
        """Fit the regression to text features `t_c` and class means `m_c`, each `[K, d]`, of at least two classes."""
        text = in_double(text)
        means = in_double(means)
        mean_text = text.mean(dim=0)
        mean_image = means.mean(dim=0)
        texts = text - mean_text
        images = means - mean_image
        slope = least_squares_slope(texts, images)
        residual = images - slope * texts
        constant = CONSTANT * texts.square().sum(dim=1).mean()
        regression, dual, ridge = left_out_regression(texts, constant, residual)
        left_out = mean_image + slope * texts + regression
        return cls(left_out, mean_text, mean_image, slope, texts, constant, dual, ridge)

    def predict(self, text: Tensor) -> Tensor:
        """Prior means `p_c` of classes without images, shape `[K', d]`, from their text features `[K', d]`."""
        linear = self.mean_image + self.slope * (in_double(text) - self.mean_text)
        if self.dual is None:
            return linear
        return linear + self.kernel(text) @ self.dual

    def kernel(self, text: Tensor) -> Tensor:
        """Kernel of text features `[K', d]` with those of the classes, shape `[K', K]`."""
        return (in_double(text) - self.mean_text) @ self.texts.t() + self.constant

    def to(self, device: str | torch.device) -> TextPrior:
        """Prior with its tensors moved to a device."""
        tensors = {name: tensor for name, tensor in vars(self).items() if tensor is not None}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items()})


def least_squares_slope(texts: Tensor, images: Tensor) -> Tensor:
    """Slope `a >= 0` of centred class means `[K, d]` on centred texts `[K, d]`, by least squares over all entries."""
    covariance = (texts * images).sum()
    variance = (texts * texts).sum()
    return (covariance / variance.clamp_min(SMALLEST)).clamp_min(0)


def left_out_regression(
    texts: Tensor, constant: Tensor, residual: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Ridge regression of `residual` on texts, each `[K, d]`, with the best of `RIDGES`.

    With the kernel `texts texts^T + constant = V diag(e) V^T`, the hat matrix is `H = V diag(e / (e + ridge)) V^T`, and
    class c without itself is predicted as `((H residual)_c - H_cc residual_c) / (1 - H_cc)`.

    Returns:
        The leave-one-out predictions, `[K, d]`, the dual weights, `[K, d]`, and the ridge. 0, None and None if no ridge
        has a smaller leave-one-out error than predictions of 0.
    """
    eigenvalues, vectors = kernel_eigenvectors(texts, constant)
    projected = vectors.t() @ residual
    mean_eigenvalue = (eigenvalues[:-1].sum() / (len(texts) - 1)).clamp_min(SMALLEST)
    least_error = residual.square().sum()
    left_out = torch.zeros_like(residual)
    dual = None
    best_ridge = None
    for factor in RIDGES:
        ridge = factor * mean_eigenvalue
        shrink = eigenvalues / (eigenvalues + ridge)
        leverage = (vectors.square() * shrink).sum(dim=1, keepdim=True)  # H_cc
        predicted = (vectors @ (shrink.unsqueeze(1) * projected) - leverage * residual) / (1 - leverage)
        error = (residual - predicted).square().sum()
        if error < least_error:
            least_error = error
            left_out = predicted
            best_ridge = ridge
            dual = vectors @ (projected / (eigenvalues + ridge).unsqueeze(1))
    return left_out, dual, best_ridge


def kernel_eigenvectors(texts: Tensor, constant: Tensor) -> tuple[Tensor, Tensor]:
    """Ascending eigenvalues, and eigenvectors in columns, of `texts texts^T + constant`; `texts` has shape `[K, d]`.

    With more classes than features the matrix has rank d + 1 at most. Only those eigenvectors are computed, from a
    matrix of that size, since the full decomposition of 21,841 classes would take hours.
    """
    num_classes, width = texts.shape
    if num_classes <= width + 1:
        eigenvalues, vectors = torch.linalg.eigh(texts @ texts.t() + constant)
        return eigenvalues.clamp_min(0), vectors
    design = torch.cat([texts, constant.sqrt().expand(num_classes, 1)], dim=1)
    eigenvalues, right = torch.linalg.eigh(design.t() @ design)
    nonzero = eigenvalues > SMALLEST * eigenvalues[-1]
    eigenvalues = eigenvalues[nonzero]
    return eigenvalues, design @ right[:, nonzero] / eigenvalues.sqrt()


def kernel_inverse(eigenvalues: Tensor, vectors: Tensor, ridge: Tensor) -> Tensor:
    """Inverse of `texts texts^T + constant + ridge I`, `[K, K]`, from the result of `kernel_eigenvectors`."""
    outside = torch.eye(len(vectors), dtype=vectors.dtype, device=vectors.device) - vectors @ vectors.t()
    return (vectors / (eigenvalues + ridge)) @ vectors.t() + outside / ridge


def whitening_of(covariance: Tensor, ridge: float | Tensor, least: float | Tensor) -> Tensor:
    """Whitening matrix `A^-1/2` (step 3), shape `[d, d]`; eigenvalues of `A` are clamped to at least `least`."""
    width = len(covariance)
    spread = (covariance.trace() / width).clamp_min(SMALLEST)  # 0 if all images are equal
    identity = torch.eye(width, dtype=covariance.dtype, device=covariance.device)
    eigenvalues, vectors = torch.linalg.eigh((covariance / spread + ridge * identity) / (1 + ridge))
    return (vectors / eigenvalues.clamp_min(least).sqrt()) @ vectors.t()


@dataclass(frozen=True)
class TextMessages:
    """Linear discriminants of the classes (step 3), which are messages from visual to text nodes.

    Attributes:
        weights: Discriminants `x_c`, shape `[K, d]`, float32.
        bias: `-m . x_c`, shape `[K]`, float32.
        whitening: `A^-1/2`, shape `[d, d]`.
        mean: `m`, shape `[d]`.
        scale: `s`.
        nodes: Class means in the whitened space, `A^-1/2 (u_c - m) / s`, shape `[K, d]`, float32.
    """

    weights: Tensor
    bias: Tensor
    whitening: Tensor
    mean: Tensor
    scale: Tensor
    nodes: Tensor


def class_sums(keys: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Number `S_c` of the images of each class, `[K, 1]`, and the sums of their features, `[K, d]`, in float64."""
    counts = in_double(torch.bincount(labels, minlength=num_classes)).unsqueeze(1)
    sums = counts.new_zeros(num_classes, keys.shape[1])
    for keys_block, classes in blocks_in_double(keys, labels):
        sums.index_add_(0, classes, keys_block)
    return counts, sums


def blocks_in_double(keys: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over features `[N, d]` in float64 and their labels `[N]`, `CHUNK_ROWS` at a time, on the same device."""
    for keys_block, classes in zip(keys.split(CHUNK_ROWS), labels.split(CHUNK_ROWS)):
        keys_block = in_double(keys_block)
        yield keys_block, classes.to(keys_block.device)


def adapted_kappa(kappa: float, prior: TextPrior, means: Tensor) -> float:
    """Weight `kappa'` of a text prior by how much it says about the class means (step 2).

    Args:
        kappa: Weight of a prior from text that describes the images, in images.
        prior: The text prior.
        means: Class means, shape `[K, d]`, float64.
    """
    error = (means - prior.left_out).square().sum()
    variance = (means - means.mean(dim=0)).square().sum().clamp_min(SMALLEST)
    r2 = max(1 - (error / variance).item(), 0.0)
    return max(kappa * min(1.0, r2 / FULL_R2), min(LEAST_KAPPA, kappa))


def shrunken_means(counts: Tensor, sums: Tensor, prior: Tensor, kappa: float) -> Tensor:
    """Class means `u_c = (S_c m_c + kappa p_c) / (S_c + kappa)` (step 2), `[K, d]`.

    Args:
        counts: `S_c`, shape `[K, 1]`.
        sums: `S_c m_c`, shape `[K, d]`.
        prior: `kappa p_c`, shape `[K, d]`.
        kappa: Weight of the prior, in images.
    """
    return (sums + prior) / (counts + kappa)


def within_class_noise(
    keys: Tensor, labels: Tensor, counts: Tensor, sums: Tensor, prior: Tensor, kappa: float
) -> Tensor:
    """Noise `r_j = F_j - u_{y_j}^(-j)`, `[N, d]`, float32, of images `[N, d]`; see `shrunken_means`."""
    noise = []
    for keys_block, classes in blocks_in_double(keys, labels):
        means = (sums[classes] - keys_block + prior[classes]) / (counts[classes] - 1 + kappa)  # u^(-j)
        noise.append((keys_block - means).float())
    return torch.cat(noise).to(keys.device)


def mean_and_covariance(keys: Tensor, labels: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `m` of the images, `[d]`, and `Sigma = mean_k (F_k - u_{y_k})(F_k - u_{y_k})^T`, `[d, d]` (step 3).

    Args:
        keys, labels: Image features, shape `[N, d]`, and their classes.
        nodes: Class means `u_c`, shape `[K, d]`, float64.
    """
    num_images, width = keys.shape
    mean = nodes.new_zeros(width)
    covariance = nodes.new_zeros(width, width)
    for keys_block, classes in blocks_in_double(keys, labels):
        mean += keys_block.sum(dim=0) / num_images
        deviations = keys_block - nodes[classes]
        covariance += deviations.t() @ deviations / num_images
    return mean, covariance


def mean_length(keys: Tensor, labels: Tensor, mean: Tensor, whitening: Tensor) -> Tensor:
    """Mean `s` of `|A^-1/2 (F_k - m)|` over the images (step 3)."""
    blocks = blocks_in_double(keys, labels)
    lengths = torch.cat([((keys_block - mean) @ whitening).norm(dim=1) for keys_block, _ in blocks])
    return lengths.mean().clamp_min(SMALLEST)


def discriminants(whitened: Tensor, mean: Tensor, whitening: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Discriminants `x_c = A^-1 (u_c - m) / (|A^-1/2 (u_c - m)| s)` and biases `-m . x_c`, `[K, d]` and `[K]` (step 3).

    Args:
        whitened: `A^-1/2 (u_c - m)`, shape `[K, d]`.
        mean, whitening, scale: `m`, `A^-1/2` and `s`.
    """
    weights = F.normalize(whitened, dim=1) @ whitening / scale
    return weights, -(weights @ mean)


@dataclass
class ClosedForm:
    """The three steps of the closed-form head. Step 3 is computed on first use of `to_text`.

    Attributes:
        keys: Unit-norm cached image features, shape `[N, d]`; every class has at least one.
        labels: Their classes, shape `[N]`.
        rho: Shrinkage of the covariance, times d / N.
        permutation: For each class the class whose discriminant it receives, shape `[K]`; None: its own.
        prior: Text prior of the class means (step 1).
        nodes: Class means `u_c` (step 2), shape `[K, d]`, float64.
        noise: Within-class noise `r_j`, shape `[N, d]`, float32.
    """

    keys: Tensor
    labels: Tensor
    rho: float
    permutation: Tensor | None
    prior: TextPrior
    nodes: Tensor
    noise: Tensor

    @classmethod
    def fit(
        cls,
        keys: Tensor,
        labels: Tensor,
        text: Tensor,
        kappa: float,
        rho: float,
        permutation: Tensor | None = None,
        adapt_kappa: bool = False,
    ) -> ClosedForm:
        """Compute steps 1 and 2.

        Args:
            text: Text features, shape `[K, d]`.
            kappa: Weight of the text prior, in images.
            adapt_kappa: Whether a prior that says little about the class means weighs less (`adapted_kappa`).
            keys, labels, rho, permutation: See the attributes.
        """
        counts, sums = class_sums(keys, labels, len(text))
        means = sums / counts
        prior = TextPrior.fit(text, means)
        if adapt_kappa:
            kappa = adapted_kappa(kappa, prior, means)
        sums = counts * means
        weighted_prior = kappa * prior.left_out
        noise = within_class_noise(keys, labels, counts, sums, weighted_prior, kappa)
        nodes = shrunken_means(counts, sums, weighted_prior, kappa)
        return cls(keys, labels, rho, permutation, prior, nodes, noise)

    @cached_property  # takes seconds at the size of ImageNet, and training does not need it
    def to_text(self) -> TextMessages:
        """Linear discriminants of the classes (step 3), on the device of the keys."""
        num_images, width = self.keys.shape
        device = self.keys.device
        mean, covariance = mean_and_covariance(self.keys, self.labels, self.nodes)
        whitening = whitening_of(covariance, self.rho * width / num_images, SMALLEST)
        scale = mean_length(self.keys, self.labels, mean, whitening)
        whitened = (self.nodes - mean) @ whitening
        weights, bias = discriminants(whitened, mean, whitening, scale)
        if self.permutation is not None:
            order = self.permutation.to(weights.device)
            weights = weights[order]
            bias = bias[order]
        nodes = (whitened / scale).float()
        return TextMessages(
            weights.float().to(device), bias.float().to(device), whitening, mean, scale, nodes.to(device)
        )

    def for_new_classes(self) -> NewClassMessages:
        """Head for classes without images, whose means are the text prior."""
        messages = self.to_text
        intercept = self.prior.predict(torch.zeros_like(messages.mean).unsqueeze(0))
        slope = self.prior.predict(torch.eye(len(messages.mean)).to(messages.mean)) - intercept
        return NewClassMessages(
            matrix=(slope @ messages.whitening).float(),
            offset=((intercept - messages.mean) @ messages.whitening)[0].float(),
            whitening=(messages.whitening / messages.scale).float(),
            mean=messages.mean.float(),
        ).to(self.keys.device)

    def with_keys(self, keys: Tensor, labels: Tensor) -> ClosedForm:
        """Head on the device of `keys` and `labels`, which are its own after a move or a change of the number format.

        Steps 1 and 2 keep their numbers and their format.
        """
        if keys.device == self.keys.device:
            moved = copy.copy(self)  # with step 3, if it is computed
            moved.keys = keys
            moved.labels = labels
            return moved
        device = double_device(keys.device)
        return replace(
            self,
            keys=keys,
            labels=labels,
            permutation=None if self.permutation is None else self.permutation.to(device),
            prior=self.prior.to(device),
            nodes=self.nodes.to(device),
            noise=self.noise.to(keys.device),
        )


@dataclass(frozen=True)
class NewClassMessages:
    """Closed-form head for classes without images, whose class mean is the text prior: `u_c = p_c`.

    Step 1 is affine in the text feature, so it folds into

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
        """Discriminants `x_c` `[K, d]` and biases `-m . x_c` `[K]` from text features `[K, d]`."""
        weights = F.normalize(text @ self.matrix + self.offset, dim=1) @ self.whitening
        return weights, -(weights @ self.mean)

    def logits(self, features: Tensor, text: Tensor) -> Tensor:
        """Logits `(f - m) . x_c`, shape `[B, K]`, of image features `[B, d]` and text features `[K, d]`."""
        return (features - self.mean) @ self.folded(text)[0].t()
