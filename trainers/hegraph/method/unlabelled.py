"""Adaptation of a classifier to unlabelled images, by messages between images and class means.

The unlabelled images are a fourth type of node. Images and classes exchange soft-label messages in a few rounds, on top
of any classifier. With a pool of other images the adaptation is semi-supervised, with the test images themselves it is
transductive. Image i starts with the logits `z_i` of the classifier, and the class offsets `o` start at zero:

    a_i = log softmax(z_i / T),   q_i = exp a_i,   o = 0

In each round:

1. Class means (unlabelled -> visual). Image i is distributed over the classes by its probabilities `q_i`:

       n_c = sum_i q_ic,   N_c = S_c + n_c + kappa
       u_c = (S_c m_c + sum_i q_ic f_i + kappa p_c) / N_c

   The text prior `p_c` of a class mean is the one of `head/closed_form.py`, fitted to the labelled images alone. A
   prior fitted to soft means would move images to neighbouring classes. Without labelled images the prior is fitted to
   the soft means, each shrunk towards the mean of all by `n_c / (n_c + kappa)`.
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

   The weights `lam` and `mu` express the evidence for equal and for unequal class proportions (`ClassPrior`). The
   weight of the messages grows with the number of images:

       omega = OMEGA M^2 / (M^2 + (HALF_WEIGHT_AT K)^2)

   Without labelled images it is also multiplied by `min(1, 2 balance)`, since messages between few of the classes
   strengthen unbalanced predictions (`balance` of `ClassPrior`).

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
from .head.closed_form import SMALLEST, TextPrior, whitening_of

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
LEAST_DIFFERENCE = 0.01  # least difference of the balances of the two hypotheses, by which the relative balance divides
UNLABELLED_ROWS = 8192  # images processed at once
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
        for rows, classes in zip(keys.split(UNLABELLED_ROWS), labels.split(UNLABELLED_ROWS)):
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
        for block, soft in zip(features.split(UNLABELLED_ROWS), soft_labels.split(UNLABELLED_ROWS)):
            sums += (soft.t() @ block).double()
        return cls(soft_labels.sum(dim=0, dtype=torch.float64), sums, moment)

    def __add__(self, other: ClassSums) -> ClassSums:
        return ClassSums(self.counts + other.counts, self.sums + other.sums, self.moment + other.moment)

    def to(self, device: str | torch.device) -> ClassSums:
        return ClassSums(self.counts.to(device), self.sums.to(device), self.moment.to(device))


def second_moment(features: Tensor) -> Tensor:
    """`sum_i f_i f_i^T`, shape `[d, d]`, float64."""
    moment = features.new_zeros(features.shape[1], features.shape[1], dtype=torch.float64)
    for block in features.split(UNLABELLED_ROWS):
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
        balance = class_balance(probabilities.mean(dim=0))
        relative = relative_balance(probabilities)
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
    log_y = [(classifier.logits(images) / temperature).log_softmax(dim=1) for images in features.split(UNLABELLED_ROWS)]
    a = torch.cat(log_y)
    num_images, num_classes = a.shape
    has_labels = bool(labelled.counts.sum() > 0)
    order = _order_of(classifier.weights).to(a.device)  # the random numbers do not depend on the order of the classes
    class_prior = ClassPrior.of(a[:, order].exp_(), has_labels)
    strength = message_weight(num_images, num_classes, has_labels, class_prior.balance) * scale  # omega tau
    labelled_prior = _prior_from_labelled(labelled, text) if has_labels else None
    log_q = a.clone()
    discount_weights, discount_bias = _discount(labelled, labelled_prior)
    if has_labels:
        for images, a_block in zip(features.split(UNLABELLED_ROWS), a.split(UNLABELLED_ROWS)):
            discount = images @ discount_weights.float().t() + discount_bias.float()  # delta h
            a_block.sub_(discount.mul_(strength / temperature))
    offsets = torch.zeros_like(labelled.counts)
    equal_count = num_images / num_classes + PRIOR  # M / K + PRIOR
    moment = second_moment(features)  # the same in all rounds
    for _ in range(ROUNDS):
        q = log_q.exp_()  # in place: M times K numbers are much
        soft = ClassSums.soft(features, q, moment)
        prior = _prior_from_soft(soft, text) if labelled_prior is None else labelled_prior
        discriminants = _Discriminants.fit(labelled + soft, prior)
        offsets = offsets - ((soft.counts + PRIOR) / equal_count).log()
        lam_o = class_prior.offset_weight * offsets
        log_q = _assign(q, a, features, discriminants, strength / temperature, lam_o, class_prior, soft.counts)
    weights, bias = discriminants.folded()
    weights = strength * (weights - discount_weights)
    bias = strength * (bias - discount_bias)
    bias = bias + temperature * class_prior.offset_weight * offsets
    adapted = classifier.plus(weights.float(), bias.float())
    return UnlabelledAdaptation(temperature * log_q[inverse], adapted, class_prior)


def _assign(
    q: Tensor,
    a: Tensor,
    features: Tensor,
    discriminants: _Discriminants,
    strength: float,
    offsets: Tensor,
    class_prior: ClassPrior,
    counts: Tensor,
) -> Tensor:
    """Logarithms of the next probabilities (step 3), shape `[M, K]`, in the memory of the current ones.

    Args:
        q: Current probabilities, shape `[M, K]`, which are overwritten.
        a: Logarithms of the first probabilities, less the discounted messages from labelled images, shape `[M, K]`.
        features: Unit-norm features, shape `[M, d]`.
        discriminants: Discriminants of this round.
        strength: `omega tau / T`.
        offsets: `lam o`, shape `[K]`.
        class_prior: Weights of offsets and prior.
        counts: `n_c`, shape `[K]`.
    """
    num_images, num_classes = q.shape
    equal_count = num_images / num_classes + PRIOR  # M / K + PRIOR
    prior_weight = (1 - class_prior.offset_weight) * class_prior.prior_weight / 2  # (1 - lam) mu / 2
    blocks = zip(features.split(UNLABELLED_ROWS), a.split(UNLABELLED_ROWS), q.split(UNLABELLED_ROWS))
    for images, a_block, q_block in blocks:
        logits = discriminants.to_images(images, q_block).mul_(strength).add_(a_block)
        logits += offsets.float()
        if class_prior.prior_weight > 0:
            log_prior = (counts.float() - q_block).clamp_min_(0).add_(PRIOR).div_(equal_count).log_()  # l
            logits += log_prior.mul_(prior_weight)
        q_block.copy_(logits.log_softmax(dim=1))
    return q


def message_weight(num_images: int, num_classes: int, has_labels: bool, balance: float) -> float:
    """Weight `omega` of the messages.

    Args:
        num_images, num_classes: M and K.
        has_labels: Whether there are labelled images.
        balance: Balance of the predictions, which counts without labelled images.
    """
    omega = OMEGA * num_images**2 / (num_images**2 + (HALF_WEIGHT_AT * num_classes) ** 2)
    return omega if has_labels else omega * min(1.0, 2 * balance)


def _discount(labelled: ClassSums, prior: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weights `[K, d]` and biases `[K]` of `delta h`, from labelled images and their text prior; 0 without them."""
    if prior is None:
        return torch.zeros_like(labelled.sums), torch.zeros_like(labelled.counts)
    weights, bias = _Discriminants.fit(labelled, prior).folded()
    return LABELLED_DISCOUNT * weights, LABELLED_DISCOUNT * bias


def distinct(features: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct rows of features `[M, d]`, sorted by value, and the index of each row among them, `[M]`.

    `relative_balance` resamples images by their places. Rounding hardly changes the order of values.
    """
    _, *indices = np.unique(_sort_keys(features.cpu().numpy()), return_index=True, return_inverse=True)
    first, inverse = (torch.from_numpy(index.reshape(-1)).to(features.device) for index in indices)
    return features[first], inverse


def _sort_keys(rows: np.ndarray) -> np.ndarray:
    """Bytes of each row of numbers `[M, d]` that compare as the row's values, the first column first, shape `[M]`."""
    size = rows.dtype.itemsize
    bits = np.ascontiguousarray(rows).view(f"i{size}")
    # Unsigned integers in the order of the numbers: a negative number has its sign bit set, and its other bits descend
    ascending = np.where(bits < 0, ~bits, bits ^ np.iinfo(bits.dtype).min)
    return ascending.astype(f">i{size}").view(np.dtype((np.void, size * rows.shape[1])))[:, 0]


def _order_of(rows: Tensor) -> Tensor:
    """Positions that sort rows of numbers `[K, d]` by value, shape `[K]`."""
    return torch.from_numpy(np.argsort(_sort_keys(rows.cpu().numpy()), kind="stable"))


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
    count = len(probabilities)
    resampling = _Resampling.of(probabilities, generator)
    bootstrap = [torch.randint(count, (count,), generator=generator) for _ in range(RESAMPLES)]
    observed = sum(class_balance(probabilities[rows].mean(dim=0)) for rows in bootstrap) / RESAMPLES
    equal = sum(resampling.balance(torch.ones(num_classes)) for _ in range(RESAMPLES)) / RESAMPLES
    unequal = 0.0
    for _ in range(RESAMPLES):  # exponential variates: proportions uniform on the simplex, Dirichlet(1, ..., 1)
        exponential = -torch.rand(num_classes, generator=generator).clamp_min(SMALLEST).log()
        unequal += resampling.balance(exponential) / RESAMPLES
    relative = (observed - unequal) / max(equal - unequal, LEAST_DIFFERENCE)
    return min(max(relative, -1.0), 1.5)


@dataclass(frozen=True)
class _Resampling:
    """Resampling of images by class, with their probabilities as weights.

    Attributes:
        probabilities: Probabilities of the images, shape `[M, K]`.
        predicted: Class with the largest probability of each image, shape `[M]`.
        weights: Weights of the images of each class, shape `[K, M]`.
        has_images: Probability that a sampled image of a class is one of its images, shape `[K]`; small if hardly any
            image is predicted as the class.
        generator: Generator of all random numbers.
    """

    probabilities: Tensor
    predicted: Tensor
    weights: Tensor
    has_images: Tensor
    generator: torch.Generator

    @classmethod
    def of(cls, probabilities: Tensor, generator: torch.Generator) -> _Resampling:
        weights = probabilities.t().clamp_min(SMALLEST).contiguous()
        mass = weights.sum(dim=1)
        return cls(probabilities, probabilities.argmax(dim=1), weights, mass / (mass + 1), generator)

    def balance(self, proportions: Tensor) -> float:
        """Balance of images that are resampled by class in these proportions, shape `[K]`.

        A class that no image is predicted as has no images to sample. Instead it gets the predictions of random images
        with the probabilities of this class and of the predicted class exchanged.
        """
        count, num_classes = self.probabilities.shape
        classes = torch.multinomial(proportions, count, True, generator=self.generator)
        total = torch.zeros(num_classes, dtype=torch.float64)
        for c, number in enumerate(classes.bincount(minlength=num_classes).tolist()):
            known = int((torch.rand(number, generator=self.generator) < self.has_images[c]).sum())
            if known:
                rows = torch.multinomial(self.weights[c], known, True, generator=self.generator)
                total += self.probabilities[rows].sum(dim=0)
            rows = torch.randint(count, (number - known,), generator=self.generator)
            total += self.probabilities[rows].sum(dim=0)
            predicted = self.predicted[rows]
            gained = (self.probabilities[rows, predicted] - self.probabilities[rows, c]).double()
            total[c] += gained.sum()
            total.index_add_(0, predicted, -gained)
        return class_balance(total / count)


def _prior_from_labelled(labelled: ClassSums, text: Tensor) -> Tensor:
    """Text prior `p_c` of all classes, shape `[K, d]`, fitted to the classes with labelled images, at least two."""
    seen = labelled.counts > 0
    prior = TextPrior.fit(text[seen], labelled.sums[seen] / labelled.counts[seen].unsqueeze(1))
    means = torch.empty_like(labelled.sums)
    means[seen] = prior.left_out
    means[~seen] = prior.predict(text[~seen])
    return means


def _prior_from_soft(soft: ClassSums, text: Tensor) -> Tensor:
    """Text prior `p_c`, shape `[K, d]`, fitted to soft class means, without labelled images."""
    means = soft.sums / soft.counts.clamp_min(SMALLEST).unsqueeze(1)
    trust = (soft.counts / (soft.counts + KAPPA)).unsqueeze(1)
    centre = (trust * means).sum(dim=0) / trust.sum()
    return TextPrior.fit(text, centre + trust * (means - centre)).left_out


@dataclass(frozen=True)
class _Discriminants:
    """Class means (step 1) and discriminants (step 2) from labelled and unlabelled images.

    Attributes:
        counts: `N_c`, shape `[K]`.
        whitening: `A^-1/2`, shape `[d, d]`.
        mean: `m`, shape `[d]`.
        scale: `s`.
        nodes: Whitened class means `v_c`, shape `[K, d]`.
    """

    counts: Tensor
    whitening: Tensor
    mean: Tensor
    scale: Tensor
    nodes: Tensor

    @classmethod
    def fit(cls, images: ClassSums, prior: Tensor) -> _Discriminants:
        """Fit to the sums of all images, with the text prior `p_c`, shape `[K, d]`."""
        counts = images.counts + KAPPA
        total = images.counts.sum()  # N + M
        means = (images.sums + KAPPA * prior) / counts.unsqueeze(1)  # u_c
        # Sum of (f - u_c)(f - u_c)^T over all edges, from the sums alone
        cross = images.sums.t() @ means
        own = (means * images.counts.unsqueeze(1)).t() @ means
        sigma = (images.moment - cross - cross.t() + own) / total
        r = RHO * len(images.moment) / total
        # Rounding may give smaller eigenvalues than the ridge's, for example with equal images
        whitening = whitening_of(sigma, r, r / (1 + r))
        mean = means.mean(dim=0)
        to_mean = torch.outer(images.sums.sum(dim=0), mean)
        around_mean = images.moment / total - (to_mean + to_mean.t()) / total + torch.outer(mean, mean)
        scale = ((whitening @ around_mean) * whitening).sum().clamp_min(0).sqrt()  # tr(A^-1/2 . A^-1/2)
        return cls(counts, whitening, mean, scale.clamp_min(LEAST_SCALE), (means - mean) @ whitening)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weights `[K, d]` and biases `[K]` of the messages `(f - m) . x_c` to an image `f`."""
        weights = F.normalize(self.nodes, dim=1) @ self.whitening / self.scale
        return weights, -weights @ self.mean

    def to_images(self, features: Tensor, q: Tensor) -> Tensor:
        """Messages `g_ic` to images, each without the image's own contribution to the class, shape `[R, K]`.

        Args:
            features: Unit-norm features of R images, which are part of the sums, shape `[R, d]`.
            q: Their probabilities in the sums, shape `[R, K]`.
        """
        w = (features - self.mean.float()) @ self.whitening.float()
        v = self.nodes.float()
        counts = self.counts.float()
        products = w @ v.t()
        sent = q * w.square().sum(dim=1, keepdim=True)  # q |w|^2
        # |N v - q w|^2 = N (N |v|^2 - 2 q v.w) + q (q |w|^2)
        squared_length = (counts * v.square().sum(dim=1) - 2 * q * products).mul_(counts).addcmul_(q, sent)
        length = squared_length.clamp_min_(SMALLEST).sqrt_()
        # w . (N v - q w) / (|N v - q w| s)
        return products.mul_(counts).sub_(sent).div_(length.mul_(self.scale.float()))


def _ramp(value: float, between: tuple[float, float]) -> float:
    """Linear ramp: 0 below the first number, 1 above the second."""
    low, high = between
    return min(max((value - low) / (high - low), 0.0), 1.0)
