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

`class_offsets` is a bias that moves zero-shot CLIP towards predicting each class as often as it occurs in the
training images.

Shapes: N cached images, K classes, S_c images of class c, d feature width. Computed in float64.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # times the mean eigenvalue of the text kernel
CONSTANT = 10.0  # intercept: added to all entries of the text kernel, times its mean diagonal
TEMPERATURES = (0.06, 0.09, 0.125, 0.18, 0.25, 0.35, 0.5, 0.7, 1.0)  # inverse temperatures, factors of the logits
OFFSET_STEPS = 20  # early stopping: at one shot, a class may still be off by half of its frequency
BLOCK = 2**24  # entries of the largest matrix in leave-one-out computations
PRIOR = 4.0  # pseudo-images of each class in `class_offsets`
OMEGA_NEW = 0.05  # weight of the head in the logits of classes without images
SMALLEST = 1e-9  # least denominator
CHUNK_ROWS = 4096  # images converted to float64 at once


class TextPrior:
    """Ridge regression from text features `[K, d]` to class means of image features `[K, d]` (step 1).

    Attributes:
        left_out: Prior `p_c` of each class, with `W` fitted without that class, shape `[K, d]`.
        mean_text, mean_image: `t'` and `m'`, shape `[d]`.
        slope: `a`.
        texts: `t_c - t'` of the classes, shape `[K, d]`.
        constant: Intercept term, added to every entry of the text kernel.
        dual: Dual weights of the ridge regression, shape `[K, d]`; None without `W`.
    """

    def __init__(self, text: Tensor, means: Tensor) -> None:
        text, means = text.double(), means.double()
        self.mean_text, self.mean_image = text.mean(dim=0), means.mean(dim=0)
        self.texts, images = text - self.mean_text, means - self.mean_image
        covariance, variance = (self.texts * images).sum(), (self.texts * self.texts).sum()
        self.slope = (covariance / variance.clamp_min(SMALLEST)).clamp_min(0)
        residual = images - self.slope * self.texts
        self.constant = CONSTANT * self.texts.square().sum(dim=1).mean()
        eigenvalues, vectors = kernel_eigenvectors(self.texts, self.constant)
        projected = vectors.t() @ residual
        mean_eigenvalue = (eigenvalues[:-1].sum() / (len(text) - 1)).clamp_min(SMALLEST)
        least_error, left_out, self.dual = residual.square().sum(), torch.zeros_like(residual), None
        for factor in RIDGES:
            ridge = factor * mean_eigenvalue
            shrink = eigenvalues / (eigenvalues + ridge)
            leverage = (vectors.square() * shrink).sum(dim=1, keepdim=True)
            predicted = (vectors @ (shrink.unsqueeze(1) * projected) - leverage * residual) / (1 - leverage)
            if (error := (residual - predicted).square().sum()) < least_error:
                least_error, left_out = error, predicted
                self.dual = vectors @ (projected / (eigenvalues + ridge).unsqueeze(1))
        self.left_out = self.mean_image + self.slope * self.texts + left_out

    def predict(self, text: Tensor) -> Tensor:
        """Prior means `p_c` of classes without images, shape `[K', d]`, from their text features `[K', d]`."""
        deviation = text.double() - self.mean_text
        linear = self.mean_image + self.slope * deviation
        if self.dual is None:
            return linear
        return linear + (deviation @ self.texts.t() + self.constant) @ self.dual


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


class ClosedForm:
    """The three steps of the closed-form head. Steps 1 and 2 are computed at once, step 3 on first use of `to_text`.

    Args:
        keys: Unit-norm cached image features, shape `[N, d]`; every class has at least one.
        labels: Their classes, shape `[N]`.
        text: Unit-norm text features, shape `[K, d]`.
        kappa: Weight of the text prior, in images.
        rho: Shrinkage of the covariance, times d / N.
        permutation: For each class the class whose discriminant it receives, shape `[K]`; None: its own.

    Attributes:
        prior: Text prior of the class means (step 1).
        nodes: Class means `u_c` (step 2), shape `[K, d]`.
        noise: Within-class noise `r_j`, shape `[N, d]`, float32.
    """

    def __init__(
        self, keys: Tensor, labels: Tensor, text: Tensor, kappa: float, rho: float, permutation: Tensor | None = None
    ) -> None:
        self.keys, self.labels, self.rho, self.permutation = keys, labels, rho, permutation
        counts = torch.bincount(labels, minlength=len(text)).double().unsqueeze(1)
        sums = counts.new_zeros(text.shape)
        for keys_block, classes in self._blocks():
            sums.index_add_(0, classes, keys_block)
        means = sums / counts
        self.prior = TextPrior(text, means)
        sums, prior = counts * means, kappa * self.prior.left_out
        noise = []
        for keys_block, classes in self._blocks():
            without = (sums[classes] - keys_block + prior[classes]) / (counts[classes] - 1 + kappa)
            noise.append((keys_block - without).float())
        self.nodes, self.noise = (sums + prior) / (counts + kappa), torch.cat(noise)

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over the keys in float64 and their labels, `CHUNK_ROWS` at a time."""
        for keys_block, classes in zip(self.keys.split(CHUNK_ROWS), self.labels.split(CHUNK_ROWS)):
            yield keys_block.double(), classes

    @cached_property  # takes seconds at the size of ImageNet, and training does not need it
    def to_text(self) -> TextMessages:
        """Linear discriminants of the classes (step 3)."""
        num_images, width = self.keys.shape
        nodes = self.nodes
        mean, covariance = nodes.new_zeros(width), nodes.new_zeros(width, width)
        for keys_block, classes in self._blocks():
            mean += keys_block.sum(dim=0) / num_images
            deviations = keys_block - nodes[classes]
            covariance += deviations.t() @ deviations / num_images
        whitening = whitening_of(covariance, self.rho * width / num_images, SMALLEST)
        lengths = torch.cat([((keys_block - mean) @ whitening).norm(dim=1) for keys_block, _ in self._blocks()])
        scale = lengths.mean().clamp_min(SMALLEST)
        whitened = (nodes - mean) @ whitening
        weights = F.normalize(whitened, dim=1) @ whitening / scale
        bias = -(weights @ mean)
        if self.permutation is not None:
            weights, bias = weights[self.permutation], bias[self.permutation]
        return TextMessages(weights.float(), bias.float(), whitening, mean, scale, (whitened / scale).float())

    def for_new_classes(self) -> "NewClassMessages":
        """Head for classes without images, whose means are the text prior."""
        messages = self.to_text
        intercept = self.prior.predict(torch.zeros_like(messages.mean).unsqueeze(0))
        slope = self.prior.predict(torch.eye(len(messages.mean)).to(messages.mean)) - intercept
        return NewClassMessages(
            matrix=(slope @ messages.whitening).float(),
            offset=((intercept - messages.mean) @ messages.whitening)[0].float(),
            whitening=(messages.whitening / messages.scale).float(),
            mean=messages.mean.float(),
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

    def to(self, device: str | torch.device) -> "NewClassMessages":
        return NewClassMessages(**{name: tensor.to(device) for name, tensor in vars(self).items()})

    def folded(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Discriminants `x_c` `[K, d]` and biases `-m . x_c` `[K]` from text features `[K, d]`."""
        weights = F.normalize(text @ self.matrix + self.offset, dim=1) @ self.whitening
        return weights, -(weights @ self.mean)

    def logits(self, features: Tensor, text: Tensor) -> Tensor:
        """Logits `(f - m) . x_c`, shape `[B, K]`, of image features `[B, d]` and text features `[K, d]`."""
        return (features - self.mean) @ self.folded(text)[0].t()


def class_offsets(logits: Tensor, labels: Tensor) -> Tensor:
    """Class offsets of mean zero, shape `[K]`, that move mean predicted probabilities towards the class frequencies.

    Each of `OFFSET_STEPS` steps adds `log((count + PRIOR) / (mass + PRIOR))`, where `mass` is the sum of the predicted
    probabilities of a class over the training images.

    Args:
        logits: Zero-shot logits of the training images, shape `[N, K]`.
        labels: Their classes, shape `[N]`.
    """
    factor = TEMPERATURES[int(nll_at_temperatures(logits, labels).argmin())]
    counts = torch.bincount(labels, minlength=logits.shape[1]).to(logits.dtype)
    offsets = torch.zeros_like(counts)
    for _ in range(OFFSET_STEPS):
        mass = ((logits + offsets) * factor).softmax(dim=1).sum(dim=0)
        offsets = offsets + ((counts + PRIOR) / (mass + PRIOR)).log() / factor
    return offsets - offsets.mean()


def left_out_offsets(logits: Tensor, labels: Tensor) -> Tensor:
    """Leave-one-out `class_offsets`: row i is computed without image i, shape `[N, K]`.

    The masses of all classes, for a block of left-out images, take two matrix products, as in Sinkhorn's algorithm.

    Args:
        logits: Zero-shot logits of the training images, shape `[N, K]`.
        labels: Their classes, shape `[N]`.
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
            scaled_offsets = torch.zeros_like(logits[rows])  # times the factor
            for _ in range(OFFSET_STEPS):
                weights = scaled_offsets.exp()
                mass = weights * ((1 / (weights @ scaled.t())) @ scaled)
                mass -= F.normalize(weights * scaled[rows], p=1, dim=1)
                scaled_offsets += ((own_counts + PRIOR) / (mass + PRIOR)).log()
            offsets[rows] = (scaled_offsets - scaled_offsets.mean(dim=1, keepdim=True)) / factor
    return offsets


def nll_at_temperatures(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood of logits `[N, K]`, summed over the images, at each of `TEMPERATURES`, shape `[T]`."""
    return torch.stack([F.cross_entropy(logits * factor, labels, reduction="sum") for factor in TEMPERATURES])
