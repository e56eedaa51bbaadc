"""Trust in the text of each class, estimated from the training images.

CLIP knows "a photo of a cat", but not "part 43" or a name in a language that it has not read. The images of a class
show whether CLIP's text feature describes them. Where it does not, a prediction from the images replaces the text.

1. Evidence. How much better zero-shot CLIP classifies the images of class c than a guess does, at a scale `a` of the
   text, as a mean log-likelihood ratio:

       e_c(a) = log K + (1 / S_c) sum_{i in c} log softmax_k(a tau F_i . t_k)_c

   The images of a class share the fault of their text, so that they are one observation.
2. Mixture. The text of a class has a meaning with probability `pi`. For each `a` of a grid, `pi` maximises

       L(a, pi) = sum_c log(pi exp e_c + 1 - pi) - (1 - a)^2 / (2 s^2) + n (q log pi + (1 - q) log(1 - pi))
       w_c      = pi exp e_c / (pi exp e_c + 1 - pi)

   by expectation-maximisation, and the `a` with the largest `L` is taken. `w_c` is the trust in the text of class c.
   The priors, at `a = 1` and `pi = q`, keep the text of tasks with few images.
3. Text from images. A ridge regression `R` from class means to text (the text prior of `closed_form.py` with both sides
   exchanged), fitted to the trusted classes (`w_c > 1/2`), gives the text of the others. With fewer than three trusted
   classes it is their mean text. With the mean `t'` of the replaced text `t~`:

       t~_c = w_c t_c + (1 - w_c) R(m_c)
       t^_c = t' + a (t~_c - t')

   The text of all classes has logits on the same scale. If all text is trusted and `a = 1`, it does not change.

The closed-form head takes `t~` in its text prior, with a weight that follows the evidence for the prior
(`closed_form.py`, step 2). Zero-shot CLIP and the text nodes of the graph are `t^`.

The constants were chosen on validation images (docs/development/trials.md). This is not part of the paper.

Shapes: N training images, K classes, S_c images of class c, A scales, d feature width. Computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..graph import sum_by_class
from .closed_form import CHUNK_ROWS, TextPrior, class_sums, in_double, kernel_eigenvectors, kernel_inverse

SCALES = (0.0, 0.01, 0.03, 0.06, 0.09, 0.125, 0.18, 0.25, 0.35, 0.5, 0.7, 1.0)  # candidates of `a`
SCALE_DEVIATION = 0.5  # `s`: standard deviation of the prior of `a`
MEANINGFUL = 0.95  # `q`: prior share of classes whose text has a meaning
MEANINGFUL_WEIGHT = 4.0  # `n`: weight of this prior, in classes
EM_STEPS = 30
EVIDENCE_ENTRIES = 2**21  # logits in memory at once
LEAST_SHARE = 1e-3  # `pi` lies between this and one minus this
TRUSTED = 0.5  # trust above which a class is part of the regression from images to text
FEWEST_TRUSTED = 3  # classes of the regression


@dataclass(frozen=True)
class TextTrust:
    """Trust in the text of each class.

    Attributes:
        weights: Trust `w_c`, from 0 to 1, shape `[K]`. A class without images has `pi`.
        scale: `a`, from 0 to 1, by which deviations of text from its mean are scaled.
        share: `pi`, the estimated share of classes whose text has a meaning.
    """

    weights: Tensor
    scale: float
    share: float


@dataclass(frozen=True)
class TextFromImages:
    """Regression `R` from class means to text (step 3).

    Attributes:
        trusted: Classes of the regression, booleans of shape `[K]`.
        mean_text: Mean text of the trusted classes, shape `[d]`, or of all if none is trusted.
        regression: Ridge regression of the trusted classes; None for fewer than `FEWEST_TRUSTED`.
    """

    trusted: Tensor
    mean_text: Tensor
    regression: TextPrior | None

    @classmethod
    def fit(cls, means: Tensor, text: Tensor, trusted: Tensor) -> TextFromImages:
        """Fit to class means and text features, each `[K, d]`, of the classes in a mask, booleans of shape `[K]`."""
        known = text[trusted] if trusted.any() else text
        is_enough = trusted.sum() >= FEWEST_TRUSTED
        regression = TextPrior.fit(means[trusted], known) if is_enough else None
        return cls(trusted, known.mean(dim=0), regression)

    def predict(self, means: Tensor) -> Tensor:
        """Text `R(m)` of class means `[n, d]`, shape `[n, d]`."""
        if self.regression is None:
            return self.mean_text.expand_as(means)
        return self.regression.predict(means)

    def left_out_changes(self, means: Tensor, features: Tensor, classes: Tensor) -> Tensor:
        """Changes of `f . R(m)` if the class of each image is left out of the regression, shape `[N, n]`.

        By the exact leave-one-out of ridge regression, with the inverse `G` of the kernel and its ridge, the dual
        weights `D`, and the kernel row `k` of a mean `m`:

            f . R_(-y)(m) = f . R(m) - (k G)_y (f . D_y) / G_yy

        Args:
            means: Class means `m`, shape `[n, d]`.
            features: Features `f` of images, shape `[N, d]`.
            classes: Classes `y` of the images, shape `[N]`. Other classes than those of the regression change nothing.
        """
        changes = features.new_zeros(len(features), len(means))
        if self.regression is None or self.regression.dual is None or self.regression.ridge is None:
            return changes
        eigenvalues, vectors = kernel_eigenvectors(self.regression.texts, self.regression.constant)
        inverse = kernel_inverse(eigenvalues, vectors, self.regression.ridge)  # G
        influence = self.regression.kernel(means) @ inverse / inverse.diagonal()  # (k G)_y / G_yy, [n, P]
        places = self.trusted.cumsum(0) - 1  # of the classes in the regression
        rows = self.trusted[classes].nonzero()[:, 0]
        own = places[classes[rows]]
        products = (features[rows] * self.regression.dual[own]).sum(dim=1, keepdim=True)  # f . D_y
        changes[rows] = -products * influence.t()[own]
        return changes


@dataclass(frozen=True)
class TrustedText:
    """Text of the classes after step 3, in float64.

    Attributes:
        trust: Trust that the text was replaced by.
        present: Classes with images, shape `[P]`.
        means: Their mean features, shape `[P, d]`.
        from_images: Regression that predicts text from class means.
        replaced: `t~`, shape `[K, d]`.
    """

    trust: TextTrust
    present: Tensor
    means: Tensor
    from_images: TextFromImages
    replaced: Tensor

    @property
    def scaled(self) -> Tensor:
        """`t^`, shape `[K, d]`."""
        return self.scale(self.replaced)

    def scale(self, text: Tensor) -> Tensor:
        """Move text `[n, d]`, of these or of other classes, towards the mean text: `t' + a (t - t')`."""
        mean = self.replaced.mean(dim=0)
        return mean + self.trust.scale * (in_double(text) - mean)


def image_evidence(keys: Tensor, labels: Tensor, text: Tensor, logit_scale: float, scales: Sequence[float]) -> Tensor:
    """Evidence of each image for the text of its class, `log K + log softmax_k(a tau F_i . t_k)_y`, shape `[A, N]`.

    Args:
        keys: Unit-norm features, shape `[N, d]`.
        labels: Their classes, shape `[N]`.
        text: Text features of the classes, shape `[K, d]`, float64.
        logit_scale: CLIP's `tau`.
        scales: Values of `a`.
    """
    num_classes = len(text)
    blocks = []
    rows = max(1, EVIDENCE_ENTRIES // num_classes)
    for block, classes in zip(keys.split(rows), labels.split(rows)):
        logits = logit_scale * in_double(block) @ text.t()
        losses = [F.cross_entropy(scale * logits, classes.to(logits.device), reduction="none") for scale in scales]
        blocks.append(math.log(num_classes) - torch.stack(losses))
    return torch.cat(blocks, dim=1) if blocks else text.new_zeros(len(scales), 0)


def estimate_trust(evidence: Tensor, labels: Tensor, num_classes: int) -> TextTrust:
    """Estimate the trust in the text of each class (steps 1 and 2).

    Args:
        evidence: Evidence of each image at each of `SCALES`, shape `[A, N]`.
        labels: Classes of the images, shape `[N]`. Classes without images do not affect the estimate.
        num_classes: K.
    """
    counts = torch.bincount(labels, minlength=num_classes).to(evidence)
    by_class = (sum_by_class(evidence.t(), labels, num_classes) / counts.clamp_min(1).unsqueeze(1)).t()  # [A, K]
    seen = by_class[:, counts > 0]
    num_seen = seen.shape[1]
    share = torch.full_like(seen[:, :1], MEANINGFUL)
    for _ in range(EM_STEPS):
        weights = (seen + share.logit()).sigmoid()
        expected = weights.sum(dim=1, keepdim=True)
        share = (expected + MEANINGFUL_WEIGHT * MEANINGFUL) / (num_seen + MEANINGFUL_WEIGHT)
        share = share.clamp(LEAST_SHARE, 1 - LEAST_SHARE)
    scales = torch.tensor(SCALES).to(seen)
    likelihood = torch.logaddexp(seen + share.log(), (1 - share).log()).sum(dim=1)
    prior_of_scale = -(1 - scales).square() / (2 * SCALE_DEVIATION**2)
    prior_of_share = MEANINGFUL_WEIGHT * (MEANINGFUL * share.log() + (1 - MEANINGFUL) * (1 - share).log())
    best = int((likelihood + prior_of_scale + prior_of_share[:, 0]).argmax())
    weights = (by_class[best] + share[best].logit()).sigmoid()
    return TextTrust(weights, SCALES[best], share[best].item())


def trust_text(keys: Tensor, labels: Tensor, text: Tensor, logit_scale: float) -> TrustedText:
    """Replace the text of classes whose images it does not describe (steps 1 to 3).

    Args:
        keys: Unit-norm features of the training images, shape `[N, d]`.
        labels: Their classes, shape `[N]`.
        text: Text features of the classes, shape `[K, d]`, of unit norm, or all 0 for classes without names. The text
            of a class without images is kept.
        logit_scale: CLIP's `tau`.
    """
    text = in_double(text)
    evidence = image_evidence(keys, labels, text, logit_scale, SCALES)
    trust = estimate_trust(evidence, labels.to(text.device), len(text))
    counts, sums = class_sums(keys, labels, len(text))
    return replace_text(trust, counts, sums, text)


def replace_text(trust: TextTrust, counts: Tensor, sums: Tensor, text: Tensor) -> TrustedText:
    """Replace the text of classes by their trust (step 3).

    Args:
        trust: The trust.
        counts, sums: Number `[K, 1]` and feature sum `[K, d]` of the images of each class, float64.
        text: Text features of the classes, shape `[K, d]`.
    """
    text = in_double(text)
    present = (counts[:, 0] > 0).nonzero()[:, 0]
    means = sums[present] / counts[present]
    weights = trust.weights[present]
    from_images = TextFromImages.fit(means, text[present], weights > TRUSTED)
    replaced = text.clone()
    replaced[present] = torch.lerp(from_images.predict(means), text[present], weights.unsqueeze(1))
    return TrustedText(trust, present, means, from_images, replaced)


def left_out_similarities(trusted: TrustedText, features: Tensor, labels: Tensor) -> Tensor:
    """Changes of the similarities of images to the replaced text if `R` is fitted without their class, `[N, K]`.

    The text of untrusted classes contains the images of trusted ones through `R`.

    Args:
        trusted: Result of `trust_text` for these images.
        features: Unit-norm features, shape `[N, d]`, float64.
        labels: Their classes, shape `[N]`.
    """
    places = labels.new_zeros(len(trusted.replaced))
    places[trusted.present] = torch.arange(len(trusted.present), device=labels.device)
    changes = trusted.from_images.left_out_changes(trusted.means, features, places[labels])
    all_changes = features.new_zeros(len(features), len(trusted.replaced))
    all_changes[:, trusted.present] = (1 - trusted.trust.weights[trusted.present]) * changes
    return all_changes


def left_out_text(
    trusted: TrustedText, features: Tensor, labels: Tensor, groups: Tensor, text: Tensor, logit_scale: float
) -> Tensor:
    """Replaced text of each image's class without the images of its group, shape `[N, d]`.

    The trust and the mean of the class are those without the group. `pi`, `a` and the regression stay the same. A class
    that has no other images keeps its text.

    Shapes: R pairs of a group and a class.

    Args:
        trusted: Result of `trust_text` for these images.
        features: Unit-norm features, shape `[N, d]`, float64.
        labels: Their classes, shape `[N]`.
        groups: Their groups, integers of shape `[N]`; all different to leave out single images.
        text: Text features of the classes, shape `[K, d]`, float64.
        logit_scale: CLIP's `tau`.
    """
    num_classes = len(text)
    pairs, pair_of = (groups.unique(return_inverse=True)[1] * num_classes + labels).unique(return_inverse=True)
    classes = pairs % num_classes
    counts = labels.bincount(minlength=num_classes)
    left = (counts[classes] - pair_of.bincount()).unsqueeze(1)  # other images of the class, [R, 1]
    evidence = image_evidence(features, labels, text, logit_scale, [trusted.trust.scale]).t()  # [N, 1]
    of_class = sum_by_class(evidence, labels, num_classes)
    of_pair = sum_by_class(evidence, pair_of, len(pairs))
    weights = ((of_class[classes] - of_pair) / left.clamp_min(1) + logit(trusted.trust.share)).sigmoid()
    sums = sum_by_class(features, labels, num_classes)[classes] - sum_by_class(features, pair_of, len(pairs))
    means = (sums / left.clamp_min(1)).split(CHUNK_ROWS)  # a kernel has a column for each class
    from_images = torch.cat([trusted.from_images.predict(rows) for rows in means])
    replaced = torch.lerp(from_images, text[classes], weights)
    return torch.where(left == 0, text[classes], replaced)[pair_of]


def logit(probability: float) -> float:
    """Log odds of a probability."""
    return math.log(probability / (1 - probability))
