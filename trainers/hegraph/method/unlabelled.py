"""Adaptation of a classifier to unlabelled images, by messages between images and class means.

The unlabelled images are a fourth type of node. Images and classes exchange soft-label messages in a few rounds, on top
of any classifier. With a pool of other images the adaptation is semi-supervised, with the test images themselves it is
transductive. Image i starts with the logits `z_i` of the classifier, and the class offsets `o` start at zero:

    a_i = log softmax(z_i / T),   q_i = exp a_i,   o = 0

In each round:

1. Class means (unlabelled -> visual). Image i is distributed over the classes by its probabilities `q_i`:

       n_c = sum_i q_ic,   N_c = S_c + n_c + kappa
       u_c = (S_c m_c + sum_i q_ic f_i + kappa p_c) / N_c

   The text prior `p_c` of a class mean is the one of `closed_form.py`, fitted to the labelled images alone. A prior
   fitted to soft means would move images to neighbouring classes. Without labelled images the prior is fitted to the
   soft means, each shrunk towards the mean of all by `n_c / (n_c + kappa)`.
2. Discriminants (visual -> unlabelled), with the within-class covariance of all images:

       Sigma = [sum_k (F_k - u_yk)(..)^T + sum_ic q_ic (f_i - u_c)(..)^T] / (N + M),   r = rho d / (N + M)
       A = (Sigma / sigma^2 + r I) / (1 + r),   m = mean_c u_c,   w_i = A^-1/2 (f_i - m),   v_c = A^-1/2 (u_c - m)
       v_c^(-i) = (N_c v_c - q_ic w_i) / (N_c - q_ic),   g_ic = w_i . v_c^(-i) / (|v_c^(-i)| s)

   with `sigma^2 = tr Sigma / d` and `s` the root mean square of `|A^-1/2 (f - m)|` over all images, at least
   `LEAST_SCALE`. The message to image i leaves out the image's own contribution (the non-backtracking rule of belief
   propagation), because otherwise each image confirms its own prediction. `h_ic` is the same message from the labelled
   images alone. The update subtracts the fraction `LABELLED_DISCOUNT` (`delta`) of it, because the trained classifier
   already contains it.
3. Class prior. The offsets `o` move the classes towards equal proportions; the prior `l_i` favours frequent classes:

       o_c -= log[(n_c + PRIOR) / (M / K + PRIOR)],   l_ic = log[(n_c - q_ic + PRIOR) / (M / K + PRIOR)]
       q_i = softmax(a_i + omega tau (g_i - delta h_i) / T + lam o + (1 - lam) mu l_i / 2)

   The weights `lam` and `mu` express the evidence for equal and for unequal class proportions (`ClassPrior`).

The adapted classifier for other images has the logits `z + omega tau ((f - m) . x_c - delta h_c) + T lam o_c`, folded
into weights and a bias.

The labelled images enter as number, sum and second moment of each class (`ClassSums`), which a saved model stores.
Copies of an unlabelled image count once.

Shapes: M unlabelled and N labelled images, K classes, S_c labelled images of class c, d feature width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .cache import FoldedClassifier
from .closed_form import SMALLEST, TextPrior, whitening_of

ROUNDS = 4
KAPPA = 2.0  # weight of the text prior of a class mean, in images
RHO = 0.3  # shrinkage of the covariance, times d / (N + M)
OMEGA = 0.4  # weight of the messages with many unlabelled images
LABELLED_DISCOUNT = 0.3  # subtracted fraction of the messages from labelled images
HALF_WEIGHT_AT = 6.0  # unlabelled images per class at which the weight is OMEGA / 2
PRIOR = 3.0  # pseudo-images of each class in class proportions
# Ranges in which a weight rises from 0 to 1: of the balance of the mean prediction, and of the relative balance
BALANCED_FROM = 0.85, 0.95
BALANCED_FROM_ZERO_SHOT = 0.80, 0.90  # without labelled images, text makes the predictions less balanced
RELATIVELY_BALANCED_FROM = 0.55, 0.80
RELATIVELY_BALANCED_FROM_ZERO_SHOT = 0.45, 0.70
IMBALANCED_BELOW = -0.20, 0.20  # range of the relative balance in which the prior falls from its full weight to 0
RESAMPLES = 4  # for each of the two hypotheses
MAX_RESAMPLED = 4000  # images of a resample
CHUNK_ROWS = 8192  # images processed at once
LEAST_SCALE = 0.1  # least `s`, which is 0.2 or more for different images, and 0 for copies of one image


@dataclass(frozen=True)
class ClassSums:
    """Sums over images by class, which are the sufficient statistics of the class means and the covariance.

    Attributes:
        counts: `S_c` of labelled images, `n_c` of unlabelled ones, shape `[K]`, float64.
        sums: Sum of the unit-norm features of each class, `S_c m_c` or `sum_i q_ic f_i`, shape `[K, d]`, float64.
        moment: `sum f f^T`, shape `[d, d]`, float64.
    """

    counts: Tensor
    sums: Tensor
    moment: Tensor

    @classmethod
    def of(cls, keys: Tensor, labels: Tensor, num_classes: int) -> ClassSums:
        """Sums of labelled images with features `[N, d]` and labels `[N]`; N may be 0, as for zero-shot CLIP."""
        counts = torch.bincount(labels, minlength=num_classes).double()
        sums = keys.new_zeros(num_classes, keys.shape[1], dtype=torch.float64)
        for rows, classes in zip(keys.split(CHUNK_ROWS), labels.split(CHUNK_ROWS)):
            sums.index_add_(0, classes, rows.double())
        return cls(counts, sums, second_moment(keys))

    @classmethod
    def soft(cls, features: Tensor, soft_labels: Tensor, moment: Tensor) -> ClassSums:
        """Sums of unlabelled images, weighted by their soft labels.

        Args:
            features: Unit-norm features, shape `[M, d]`.
            soft_labels: `q`, shape `[M, K]`.
            moment: `second_moment(features)`, shape `[d, d]`. Callers with several soft labels compute it once.
        """
        sums = torch.zeros(soft_labels.shape[1], features.shape[1]).to(moment)
        for block, soft in zip(features.split(CHUNK_ROWS), soft_labels.split(CHUNK_ROWS)):
            sums += (soft.t() @ block).double()
        return cls(soft_labels.sum(dim=0, dtype=torch.float64), sums, moment)

    def __add__(self, other: ClassSums) -> ClassSums:
        return ClassSums(self.counts + other.counts, self.sums + other.sums, self.moment + other.moment)

    def to(self, device: str | torch.device) -> ClassSums:
        return ClassSums(self.counts.to(device), self.sums.to(device), self.moment.to(device))


def second_moment(features: Tensor) -> Tensor:
    """`sum_i f_i f_i^T`, shape `[d, d]`, float64."""
    moment = features.new_zeros(features.shape[1], features.shape[1], dtype=torch.float64)
    for block in features.split(CHUNK_ROWS):
        moment += block.double().t() @ block.double()
    return moment


@dataclass(frozen=True)
class ClassPrior:
    """Evidence for equal or unequal class proportions among unlabelled images, from their predictions.

    Uncertain predictions are balanced whatever the proportions are. The balance of the predictions is therefore
    compared with resamples of the images by their own predictions: with equal proportions, and with unequal ones
    (uniform on the simplex). If predictions are too uncertain or images too few for a difference, the relative balance
    is near neither 0 nor 1, and no offset is added.

    Attributes:
        balance: `exp H(mean_i q_i) / K`; 1 if all classes are predicted equally often.
        relative_balance: Position of the balance between resamples with unequal (0) and equal (1) proportions.
        offset_weight: `lam`, weight of the class offsets.
        prior_weight: `mu`, weight of the prior.
    """

    balance: float
    relative_balance: float
    offset_weight: float
    prior_weight: float

    @classmethod
    def of(cls, probabilities: Tensor, labelled: bool) -> ClassPrior:
        """Estimate from calibrated probabilities `[M, K]`; `labelled`: the classifier was fitted to labelled images."""
        count, num_classes = probabilities.shape
        balance, relative = class_balance(probabilities.mean(dim=0)), relative_balance(probabilities)
        if not labelled:
            offsets = _ramp(balance, BALANCED_FROM_ZERO_SHOT) * _ramp(relative, RELATIVELY_BALANCED_FROM_ZERO_SHOT)
            return cls(balance, relative, offsets, 0.0)
        prior = (1 - _ramp(relative, IMBALANCED_BELOW)) * count / (count + HALF_WEIGHT_AT * num_classes)
        offsets = _ramp(balance, BALANCED_FROM) * _ramp(relative, RELATIVELY_BALANCED_FROM)
        return cls(balance, relative, offsets, prior)


@dataclass(frozen=True)
class UnlabelledAdaptation:
    """Result of the adaptation to unlabelled images.

    Attributes:
        logits: Logits of the unlabelled images, shape `[M, K]`, to be divided by the temperature.
        classifier: Adapted classifier for other images.
        class_prior: Evidence about the class proportions.
    """

    logits: Tensor
    classifier: FoldedClassifier
    class_prior: ClassPrior


@torch.no_grad()
def adapt_to_unlabelled(
    classifier: FoldedClassifier, labelled: ClassSums, text: Tensor, features: Tensor, scale: float, temperature: float
) -> UnlabelledAdaptation:
    """Adapt a classifier to unlabelled images. Works best if they have the distribution of the images to classify.

    Args:
        classifier: The classifier, of K classes.
        labelled: Sums of the images that the classifier was fitted to; of no image for zero-shot CLIP.
        text: Unit-norm text features of the classes, shape `[K, d]`.
        features: Unit-norm features of the unlabelled images, shape `[M, d]` with M of at least 1.
        scale: CLIP's `tau`.
        temperature: Calibration temperature `T` of the classifier's logits.
    """
    features, inverse = distinct(features)
    scores = torch.cat([(classifier.logits(x) / temperature).log_softmax(dim=1) for x in features.split(CHUNK_ROWS)])
    edges = scores.exp()
    count, num_classes = scores.shape
    has_labels = bool(labelled.counts.sum() > 0)
    class_prior = ClassPrior.of(edges, has_labels)
    omega = OMEGA * count**2 / (count**2 + (HALF_WEIGHT_AT * num_classes) ** 2)
    omega *= 1.0 if has_labels else min(1.0, 2 * class_prior.balance)
    strength = omega * scale
    text_prior, discount = None, (torch.zeros_like(labelled.sums), torch.zeros_like(labelled.counts))
    if has_labels:
        text_prior = _prior_from_labelled(labelled, text)
        weights, bias = _Discriminants(labelled, text_prior).folded()
        discount = LABELLED_DISCOUNT * weights, LABELLED_DISCOUNT * bias
        for images, score in zip(features.split(CHUNK_ROWS), scores.split(CHUNK_ROWS)):
            score.sub_((images @ discount[0].float().t() + discount[1].float()).mul_(strength / temperature))
    offsets = torch.zeros_like(labelled.counts)
    equal = count / num_classes + PRIOR
    moment = second_moment(features)  # the same in all rounds
    for number in range(ROUNDS):
        if number:
            edges.exp_()
        soft = ClassSums.soft(features, edges, moment)
        prior_means = _prior_from_soft(soft, text) if text_prior is None else text_prior
        discriminants = _Discriminants(labelled + soft, prior_means)
        offsets = offsets - ((soft.counts + PRIOR) / equal).log()
        for images, score, own in zip(*(tensor.split(CHUNK_ROWS) for tensor in (features, scores, edges))):
            moved = discriminants.to_images(images, own).mul_(strength / temperature).add_(score)
            moved += (class_prior.offset_weight * offsets).float()
            if class_prior.prior_weight > 0:
                prior = (soft.counts.float() - own).clamp_min_(0).add_(PRIOR).div_(equal).log_()
                moved += prior.mul_((1 - class_prior.offset_weight) * class_prior.prior_weight / 2)
            own.copy_(moved.log_softmax(dim=1))  # edges of the next round, as logarithms
    weights, bias = (strength * (new - old) for new, old in zip(discriminants.folded(), discount))
    bias = bias + temperature * class_prior.offset_weight * offsets
    adapted = classifier.plus(weights.float(), bias.float())
    return UnlabelledAdaptation(temperature * edges[inverse], adapted, class_prior)


def distinct(features: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct rows of features `[M, d]`, sorted, and the index of each row among them, `[M]`."""
    rows = np.ascontiguousarray(features.cpu().numpy())
    as_bytes = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1])))[:, 0]
    _, *indices = np.unique(as_bytes, return_index=True, return_inverse=True)
    first, inverse = (torch.from_numpy(index.reshape(-1)).to(features.device) for index in indices)
    return features[first], inverse


def class_balance(proportions: Tensor) -> float:
    """Balance `exp H / K` of class proportions `[K]`, which add up to 1; 1 for equal proportions."""
    return (torch.special.entr(proportions.double()).sum().exp() / len(proportions)).item()


def relative_balance(probabilities: Tensor) -> float:
    """Relative balance of `ClassPrior`, clipped to [-1, 1.5], of probabilities `[M, K]`. The seed is fixed."""
    probabilities = probabilities.cpu()
    num_classes = probabilities.shape[1]
    generator = torch.Generator().manual_seed(0)
    if len(probabilities) > MAX_RESAMPLED:
        probabilities = probabilities[torch.randperm(len(probabilities), generator=generator)[:MAX_RESAMPLED]]
    count, best = len(probabilities), probabilities.argmax(dim=1)
    of_class = probabilities.t().clamp_min(SMALLEST).contiguous()
    seen = of_class.sum(dim=1)
    seen = seen / (seen + 1)

    def resampled_balance(proportions: Tensor) -> float:
        """Balance of images that are resampled by class, in these proportions, with their probabilities as weights.

        A class that no image is predicted as has no images to sample. Instead it gets the predictions of random images
        with the probabilities of this class and of the predicted class exchanged.
        """
        wanted = torch.multinomial(proportions, count, True, generator=generator).bincount(minlength=num_classes)
        total = torch.zeros(num_classes, dtype=torch.float64)
        for c, number in enumerate(wanted.tolist()):
            known = int((torch.rand(number, generator=generator) < seen[c]).sum())
            if known:
                total += probabilities[torch.multinomial(of_class[c], known, True, generator=generator)].sum(dim=0)
            rows = torch.randint(count, (number - known,), generator=generator)
            total += probabilities[rows].sum(dim=0)
            gained = (probabilities[rows, best[rows]] - probabilities[rows, c]).double()
            total[c] += gained.sum()
            total.index_add_(0, best[rows], -gained)
        return class_balance(total / count)

    bootstrap = [torch.randint(count, (count,), generator=generator) for _ in range(RESAMPLES)]
    observed = sum(class_balance(probabilities[rows].mean(dim=0)) for rows in bootstrap) / RESAMPLES
    equal = sum(resampled_balance(torch.ones(num_classes)) for _ in range(RESAMPLES)) / RESAMPLES
    unequal = 0.0
    for _ in range(RESAMPLES):  # exponential variates: proportions uniform on the simplex, Dirichlet(1, ..., 1)
        exponential = -torch.rand(num_classes, generator=generator).clamp_min(SMALLEST).log()
        unequal += resampled_balance(exponential) / RESAMPLES
    return min(max((observed - unequal) / max(equal - unequal, 0.01), -1.0), 1.5)


def _prior_from_labelled(labelled: ClassSums, text: Tensor) -> Tensor:
    """Text prior `p_c` of all classes, shape `[K, d]`, fitted to the classes with labelled images, at least two."""
    seen = labelled.counts > 0
    prior = TextPrior(text[seen], labelled.sums[seen] / labelled.counts[seen].unsqueeze(1))
    means = torch.empty_like(labelled.sums)
    means[seen], means[~seen] = prior.left_out, prior.predict(text[~seen])
    return means


def _prior_from_soft(soft: ClassSums, text: Tensor) -> Tensor:
    """Text prior `p_c`, shape `[K, d]`, fitted to soft class means, without labelled images."""
    means = soft.sums / soft.counts.clamp_min(SMALLEST).unsqueeze(1)
    trust = (soft.counts / (soft.counts + KAPPA)).unsqueeze(1)
    centre = (trust * means).sum(dim=0) / trust.sum()
    return TextPrior(text, centre + trust * (means - centre)).left_out


class _Discriminants:
    """Class means (step 1) and discriminants (step 2) from labelled and unlabelled images.

    Attributes:
        counts: `N_c`, shape `[K]`.
        whitening: `A^-1/2`, shape `[d, d]`.
        mean: `m`, shape `[d]`.
        scale: `s`.
        nodes: Whitened class means `v_c`, shape `[K, d]`.
    """

    def __init__(self, images: ClassSums, prior: Tensor) -> None:
        self.counts, total, width = images.counts + KAPPA, images.counts.sum(), len(images.moment)
        nodes = (images.sums + KAPPA * prior) / self.counts.unsqueeze(1)
        # Sum of (f - u_c)(f - u_c)^T over all edges, from the sums alone
        cross, own = images.sums.t() @ nodes, (nodes * images.counts.unsqueeze(1)).t() @ nodes
        ridge = RHO * width / total
        # Rounding may give smaller eigenvalues than the ridge's, for example with equal images
        whitening = whitening_of((images.moment - cross - cross.t() + own) / total, ridge, ridge / (1 + ridge))
        mean = nodes.mean(dim=0)
        to_mean = torch.outer(images.sums.sum(dim=0), mean)
        around_mean = images.moment / total - (to_mean + to_mean.t()) / total + torch.outer(mean, mean)
        scale = ((whitening @ around_mean) * whitening).sum().clamp_min(0).sqrt()  # tr(A^-1/2 . A^-1/2)
        self.whitening, self.mean, self.scale = whitening, mean, scale.clamp_min(LEAST_SCALE)
        self.nodes = (nodes - mean) @ whitening

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weights `[K, d]` and biases `[K]` of the messages `(f - m) . x_c` to an image `f`."""
        weights = F.normalize(self.nodes, dim=1) @ self.whitening / self.scale
        return weights, -weights @ self.mean

    def to_images(self, features: Tensor, own: Tensor) -> Tensor:
        """Messages `g_ic`, shape `[R, K]`, to images with features `[R, d]` and probabilities `own` `q_ic` `[R, K]`."""
        images = (features - self.mean.float()) @ self.whitening.float()
        nodes, counts = self.nodes.float(), self.counts.float()
        products = images @ nodes.t()
        sent = own * images.square().sum(dim=1, keepdim=True)  # q |w|^2
        # |N v - q w|^2 = N (N |v|^2 - 2 q v.w) + q (q |w|^2)
        without = (counts * nodes.square().sum(dim=1) - 2 * own * products).mul_(counts).addcmul_(own, sent)
        return products.mul_(counts).sub_(sent).div_(without.clamp_min_(SMALLEST).sqrt_().mul_(self.scale.float()))


def _ramp(value: float, between: tuple[float, float]) -> float:
    """Linear ramp: 0 below the first number, 1 above the second."""
    low, high = between
    return min(max((value - low) / (high - low), 0.0), 1.0)
