"""The fourth kind of node: images without a label, which hear from the class nodes and tell them what they look like.

A few rounds of messages on top of any classifier. Unlabelled image i starts with what the classifier says of it, and
the classes start without offsets:

    a_i = log softmax(z_i / T),   q_i = exp a_i,   o = 0

In each round:

1. unlabelled -> visual. An image counts as one image, spread over the classes by its soft edges `q_i`:

       n_c = sum_i q_ic,   N_c = S_c + n_c + kappa
       u_c = (S_c m_c + sum_i q_ic f_i + kappa p_c) / N_c

   `p_c`, the text's guess of the class mean, is that of `closed_form.py`. It comes from the labelled images alone: one
   that was fitted on soft means would carry an image to the neighbours of its class, and not to the class itself.
   Without labelled images it comes from the soft means, each drawn to the mean of all by `n_c / (n_c + kappa)`.
2. visual -> unlabelled, in the metric of the within-class covariance of all images:

       Sigma = [sum_k (F_k - u_yk)(..)^T + sum_ic q_ic (f_i - u_c)(..)^T] / (N + M),   r = rho d / (N + M)
       A = (Sigma / sigma^2 + r I) / (1 + r),   m = mean_c u_c,   w_i = A^-1/2 (f_i - m),   v_c = A^-1/2 (u_c - m)
       v_c^(-i) = (N_c v_c - q_ic w_i) / (N_c - q_ic),   g_ic = w_i . v_c^(-i) / (|v_c^(-i)| s)

   with `sigma^2 = tr Sigma / d` and `s` the root mean square of `|A^-1/2 (f - m)|` over all images, at least
   `LEAST_SCALE`. What an image has sent does not come back to it (the non-backtracking rule of belief propagation).
   Without that rule every image confirms itself. `h_ic` is the same message from the labelled images alone: a
   classifier that has been trained on them says much of it already, so `HELD` of it is taken back.
3. Class shares. `o` moves the classes towards occurring equally often, and `l_i` is a prior for those that occur:

       o_c -= log[(n_c + PRIOR) / (M / K + PRIOR)],   l_ic = log[(n_c - q_ic + PRIOR) / (M / K + PRIOR)]
       q_i = softmax(a_i + omega tau (g_i - HELD h_i) / T + lam o + (1 - lam) mu l_i / 2)

   `lam` and `mu` say how sure it is that the classes occur equally often, or that they do not (`ClassShares`).

Images outside the graph get `z + omega tau ((f - m) . x_c - HELD h_c) + T lam o_c`, folded into weights and a bias.

Of the labelled images only their number, sum and second moment are needed (`ClassSums`), so that a saved model can
hear as well. Copies of an unlabelled image count once: a hundred of them say no more of their class than one.

Shapes: M unlabelled and N labelled images, K classes, S_c labelled images of class c, d feature width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .cache import FoldedClassifier
from .closed_form import SMALLEST, TextGuess, whitening_of

ROUNDS = 4
KAPPA = 2.0  # how many images the text's guess of a class counts as
RHO = 0.3  # strength of the covariance's ridge, times d / (N + M)
OMEGA = 0.4  # weight of the messages where unlabelled images are many
HELD = 0.3  # the part of the labelled images' own messages that the classifier holds already
HALF_AT = 6.0  # unlabelled images per class at which the weight is half of that
PRIOR = 3.0  # images that every class is given before shares are compared
EVEN = 0.85, 0.95  # evenness of the mean prediction at which the offsets begin to count, and count in full
EVEN_ZERO_SHOT = 0.80, 0.90  # the same without labelled images, where text makes the predictions less even
# Evenness, on a scale from 0 for unequal classes to 1 for equal ones, at which the offsets begin to count, and count in
# full; and at which the prior counts in full, and no more
TENABLE = 0.55, 0.80
TENABLE_ZERO_SHOT = 0.45, 0.70
REFUTED = -0.20, 0.20
DRAWS = 4  # resamples of each kind
MOST_IMAGES = 4000  # images that a resample has
ROWS = 8192  # images that are worked on at once
LEAST_SCALE = 0.1  # of `s`, which is 0.2 or more for different images; copies of one image would make it 0


@dataclass(frozen=True)
class ClassSums:
    """What images tell of their classes, in sums. Those of two sets of images add up to those of both.

    Attributes:
        counts: `S_c` of labelled images, `n_c` of unlabelled ones, shape `[K]`, float64.
        sums: The sum of each class's unit-norm features, `S_c m_c` or `sum_i q_ic f_i`, shape `[K, d]`, float64.
        moment: `sum f f^T`, shape `[d, d]`, float64.
    """

    counts: Tensor
    sums: Tensor
    moment: Tensor

    @classmethod
    def of(cls, keys: Tensor, labels: Tensor, num_classes: int) -> ClassSums:
        """Of features `[N, d]` with labels `[N]`; N may be 0, as for zero-shot CLIP."""
        counts = torch.bincount(labels, minlength=num_classes).double()
        sums = keys.new_zeros(num_classes, keys.shape[1], dtype=torch.float64)
        for rows, classes in zip(keys.split(ROWS), labels.split(ROWS)):
            sums.index_add_(0, classes, rows.double())
        return cls(counts, sums, second_moment(keys))

    @classmethod
    def soft(cls, features: Tensor, edges: Tensor, moment: Tensor) -> ClassSums:
        """Of unlabelled images with features `[M, d]`, soft edges `[M, K]` and a known moment."""
        sums = torch.zeros(edges.shape[1], features.shape[1]).to(moment)
        for block, soft in zip(features.split(ROWS), edges.split(ROWS)):
            sums += (soft.t() @ block).double()
        return cls(edges.sum(dim=0, dtype=torch.float64), sums, moment)

    def __add__(self, other: ClassSums) -> ClassSums:
        return ClassSums(self.counts + other.counts, self.sums + other.sums, self.moment + other.moment)

    def to(self, device: str | torch.device) -> ClassSums:
        return ClassSums(self.counts.to(device), self.sums.to(device), self.moment.to(device))


def second_moment(features: Tensor) -> Tensor:
    """`sum_i f_i f_i^T`, shape `[d, d]`, float64."""
    moment = features.new_zeros(features.shape[1], features.shape[1], dtype=torch.float64)
    for block in features.split(ROWS):
        moment += block.double().t() @ block.double()
    return moment


@dataclass(frozen=True)
class ClassShares:
    """What the predictions tell of how often each class occurs among the unlabelled images.

    Unsure predictions look even whatever the truth is, so evenness alone proves nothing. It is therefore compared with
    what it would be: images are drawn anew by their own predictions, once with all classes equally often, and once with
    unequal shares (uniform on the simplex). Where the predictions are too unsure for a difference, or the images too
    few, `scale` is near neither end, and no offset is added.

    Attributes:
        evenness: `exp H(mean_i q_i) / K`, 1 if all classes are predicted equally often.
        scale: Where that lies between drawings of unequal classes, 0, and of equal ones, 1.
        offsets: `lam`, the weight of the class offsets.
        prior: `mu`, the weight of the prior.
    """

    evenness: float
    scale: float
    offsets: float
    prior: float

    @classmethod
    def of(cls, probabilities: Tensor, labelled: bool) -> ClassShares:
        """Judges calibrated probabilities `[M, K]`; `labelled`: whether the classifier has seen labelled images."""
        count, num_classes = probabilities.shape
        even, scale = evenness(probabilities.mean(dim=0)), relative_evenness(probabilities)
        if not labelled:
            return cls(even, scale, _ramp(even, EVEN_ZERO_SHOT) * _ramp(scale, TENABLE_ZERO_SHOT), 0.0)
        prior = (1 - _ramp(scale, REFUTED)) * count / (count + HALF_AT * num_classes)
        return cls(even, scale, _ramp(even, EVEN) * _ramp(scale, TENABLE), prior)


@dataclass(frozen=True)
class Heard:
    """What the rounds leave: logits of the unlabelled images, shape `[M, K]`, to be divided by the temperature; the
    classifier for images outside the graph; and how the class shares were judged."""

    logits: Tensor
    classifier: FoldedClassifier
    shares: ClassShares


@torch.no_grad()
def hear_unlabelled(
    classifier: FoldedClassifier, labelled: ClassSums, text: Tensor, features: Tensor, scale: float, temperature: float
) -> Heard:
    """Lets any classifier hear unlabelled images.

    Args:
        labelled: Of the images that the classifier was trained on; of none for zero-shot CLIP's.
        text, features: Of unit norm, shape `[K, d]` of the classes and `[M, d]` of the unlabelled images, M at least 1.
        scale: CLIP's `tau`.
        temperature: What the classifier's logits are divided by to become calibrated, `T`.
    """
    features, place = distinct(features)
    scores = torch.cat([(classifier.logits(block) / temperature).log_softmax(dim=1) for block in features.split(ROWS)])
    edges = scores.exp()
    count, num_classes = scores.shape
    has_labels = bool(labelled.counts.sum() > 0)
    shares = ClassShares.of(edges, has_labels)
    omega = OMEGA * count**2 / (count**2 + (HALF_AT * num_classes) ** 2)
    omega *= 1.0 if has_labels else min(1.0, 2 * shares.evenness)
    strength = omega * scale
    guess, held = None, (torch.zeros_like(labelled.sums), torch.zeros_like(labelled.counts))
    if has_labels:
        guess = _guess_of_labelled(labelled, text)
        weights, bias = _Metric(labelled, guess).folded()
        held = HELD * weights, HELD * bias
        for images, score in zip(features.split(ROWS), scores.split(ROWS)):
            score.sub_((images @ held[0].float().t() + held[1].float()).mul_(strength / temperature))
    offsets = torch.zeros_like(labelled.counts)
    equal = count / num_classes + PRIOR
    moment = second_moment(features)  # no round changes it
    for number in range(ROUNDS):
        if number:
            edges.exp_()
        soft = ClassSums.soft(features, edges, moment)
        metric = _Metric(labelled + soft, _guess_of_soft(soft, text) if guess is None else guess)
        offsets = offsets - ((soft.counts + PRIOR) / equal).log()
        for images, score, own in zip(*(tensor.split(ROWS) for tensor in (features, scores, edges))):
            moved = metric.to_images(images, own).mul_(strength / temperature).add_(score)
            moved += (shares.offsets * offsets).float()
            if shares.prior > 0:
                prior = (soft.counts.float() - own).clamp_min_(0).add_(PRIOR).div_(equal).log_()
                moved += prior.mul_((1 - shares.offsets) * shares.prior / 2)
            own.copy_(moved.log_softmax(dim=1))  # the edges of the next round, as logarithms
    weights, bias = (strength * (now - before) for now, before in zip(metric.folded(), held))
    bias = bias + temperature * shares.offsets * offsets
    return Heard(temperature * edges[place], classifier.plus(weights.float(), bias.float()), shares)


def distinct(features: Tensor) -> tuple[Tensor, Tensor]:
    """The different rows of features `[M, d]`, in an order of their own, and the place of every row among them."""
    rows = np.ascontiguousarray(features.cpu().numpy())
    as_bytes = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1])))[:, 0]
    _, first, place = np.unique(as_bytes, return_index=True, return_inverse=True)
    kept, places = (torch.from_numpy(found.reshape(-1)).to(features.device) for found in (first, place))
    return features[kept], places


def evenness(shares: Tensor) -> float:
    """`exp H / K` of class shares `[K]` that add up to 1."""
    return (torch.special.entr(shares.double()).sum().exp() / len(shares)).item()


def relative_evenness(probabilities: Tensor) -> float:
    """The `scale` of `ClassShares`, cut to -1 to 1.5, of calibrated probabilities `[M, K]`; the draws have one seed."""
    probabilities = probabilities.cpu()
    num_classes = probabilities.shape[1]
    generator = torch.Generator().manual_seed(0)
    if len(probabilities) > MOST_IMAGES:
        probabilities = probabilities[torch.randperm(len(probabilities), generator=generator)[:MOST_IMAGES]]
    count, best = len(probabilities), probabilities.argmax(dim=1)
    of_class = probabilities.t().clamp_min(SMALLEST).contiguous()
    seen = of_class.sum(dim=1)
    seen = seen / (seen + 1)

    def drawn(shares: Tensor) -> float:
        """Evenness of images of which as many are drawn for each class as the shares say, by their probabilities.

        A class that no image is predicted as cannot be drawn. It is taken to look like the others: the prediction of
        any image, with this class in the place of the predicted one.
        """
        wanted = torch.multinomial(shares, count, replacement=True, generator=generator).bincount(minlength=num_classes)
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
        return evenness(total / count)

    present = [torch.randint(count, (count,), generator=generator) for _ in range(DRAWS)]
    now = sum(evenness(probabilities[rows].mean(dim=0)) for rows in present) / DRAWS
    equal = sum(drawn(torch.ones(num_classes)) for _ in range(DRAWS)) / DRAWS
    unequal = 0.0
    for _ in range(DRAWS):  # shares that are uniform on the simplex, that is, of a Dirichlet distribution of ones
        unequal += drawn(-torch.rand(num_classes, generator=generator).clamp_min(SMALLEST).log()) / DRAWS
    return min(max((now - unequal) / max(equal - unequal, 0.01), -1.0), 1.5)


def _guess_of_labelled(labelled: ClassSums, text: Tensor) -> Tensor:
    """`p_c`, shape `[K, d]`, from at least two classes with labelled images; it reaches the others by their text."""
    seen = labelled.counts > 0
    of_seen = TextGuess(text[seen], labelled.sums[seen] / labelled.counts[seen].unsqueeze(1))
    guess = torch.empty_like(labelled.sums)
    guess[seen], guess[~seen] = of_seen.left_out, of_seen.of(text[~seen])
    return guess


def _guess_of_soft(soft: ClassSums, text: Tensor) -> Tensor:
    """`p_c`, shape `[K, d]`, without labelled images."""
    means = soft.sums / soft.counts.clamp_min(SMALLEST).unsqueeze(1)
    trust = (soft.counts / (soft.counts + KAPPA)).unsqueeze(1)
    centre = (trust * means).sum(dim=0) / trust.sum()
    return TextGuess(text, centre + trust * (means - centre)).left_out


class _Metric:
    """Step 1, and the metric of step 2, of labelled and unlabelled images; `guess` is `p_c`, shape `[K, d]`.

    Attributes: `A^-1/2` `[d, d]`, `m` `[d]`, `s`, and of the classes `v_c` `[K, d]` and `N_c` `[K]`.
    """

    def __init__(self, images: ClassSums, guess: Tensor) -> None:
        self.counts, total, width = images.counts + KAPPA, images.counts.sum(), len(images.moment)
        nodes = (images.sums + KAPPA * guess) / self.counts.unsqueeze(1)
        # The sum of (f - u_c)(f - u_c)^T over all edges, without a pass over the images
        cross, own = images.sums.t() @ nodes, (nodes * images.counts.unsqueeze(1)).t() @ nodes
        ridge = RHO * width / total
        # No eigenvalue is less than the ridge's, but for rounding: with images that are all alike that is all there is
        whitening = whitening_of((images.moment - cross - cross.t() + own) / total, ridge, ridge / (1 + ridge))
        mean = nodes.mean(dim=0)
        to_mean = torch.outer(images.sums.sum(dim=0), mean)
        around_mean = images.moment / total - (to_mean + to_mean.t()) / total + torch.outer(mean, mean)
        scale = ((whitening @ around_mean) * whitening).sum().clamp_min(0).sqrt()  # tr(A^-1/2 . A^-1/2)
        self.whitening, self.mean, self.scale = whitening, mean, scale.clamp_min(LEAST_SCALE)
        self.nodes = (nodes - mean) @ whitening

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weights `[K, d]` and a bias `[K]` that give an image `f` its messages, `(f - m) . x_c`."""
        weights = F.normalize(self.nodes, dim=1) @ self.whitening / self.scale
        return weights, -weights @ self.mean

    def to_images(self, features: Tensor, own: Tensor) -> Tensor:
        """`g_ic`, shape `[R, K]`, of images with features `[R, d]` and soft edges `own`, `q_ic`, `[R, K]`."""
        images = (features - self.mean.float()) @ self.whitening.float()
        nodes, counts = self.nodes.float(), self.counts.float()
        products = images @ nodes.t()
        sent = own * images.square().sum(dim=1, keepdim=True)  # q |w|^2
        # |N v - q w|^2 = N (N |v|^2 - 2 q v.w) + q (q |w|^2)
        without = (counts * nodes.square().sum(dim=1) - 2 * own * products).mul_(counts).addcmul_(own, sent)
        return products.mul_(counts).sub_(sent).div_(without.clamp_min_(SMALLEST).sqrt_().mul_(self.scale.float()))


def _ramp(value: float, between: tuple[float, float]) -> float:
    """0 up to the first number, 1 from the second on, and a line between them."""
    low, high = between
    return min(max((value - low) / (high - low), 0.0), 1.0)
