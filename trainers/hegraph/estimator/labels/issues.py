"""Label issues: labels of a training set that are likely wrong, by exact leave-one-out.

Each image is classified by the training-free variant fitted to all other images, at a temperature fitted on the same
images. The score of an image with label `y` is

    score = log( |(p_c) for all classes c except y|_2 / p_y )

in which the best other class counts most. Class offsets are not used, because they adapt to the class frequencies of
the labels and have no information about a single label.

`method/closed_form.py` is linear in the class means, except for one number, the slope `a`, and one choice, the ridge.
If both are fixed, leaving out image `j`, with feature `f` and class `y` of `S` images, is a change of low rank. With

    q = f - u_y,   p = m_y - u_y,   n = f - m,   delta = (m_y - f) / (S - 1)     (the class mean moves by delta)
    p_c' = p_c + g_c delta,   g = 1/K + L (e_y - 1/K)                            (L: matrix of the ridge regression)
    u_c' = u_c + h_c delta,   h_c = kappa g_c / (S_c + kappa)                    (c != y)
    u_y' = u_y + epsilon,     epsilon = (kappa g_y delta - q) / (S - 1 + kappa)

the scatter matrix `C = N Sigma` becomes `C + Z W Z^T` with `Z = [q, p, rho]`, `rho = sum_c h_c S_c (m_c - u_c)` and a
`W` of shape `[3, 3]`. One eigendecomposition of `C` is therefore enough for all images: in its basis, the ridge, which
is different for each image, is added to the eigenvalues, and Woodbury's identity gives the inverse. The slope changes
by about 1/N, and the logits are smooth in it, so they are computed at a few slopes and interpolated.

Leaving out the only image of a class leaves a class without images, whose mean is its text prior. The ridge regression
without a class equals the one with the class mean at its own prediction, except for the share 1/K of the class in the
centre. Other classes without images have their text prior as mean, too.

If all other images are of one class, no model can be trained without the image, and zero-shot CLIP classifies it.

Shapes: N images, K classes, P classes with images, d feature width, J images of a block. Computations are in float64
and take O(N^2 (K + d)).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...method.closed_form import BLOCK, CONSTANT, RIDGES, SMALLEST, kernel_eigenvectors, left_out_offsets
from ...method.graph import sum_by_class
from ...method.options import TrainingFreeOptions
from ...method.training.confidence import fit_temperature
from ...utils.errors import UserError
from ...utils.option import options_of

LARGEST_SCORE = 700.0  # whose exponential is finite
SLOPE_ERROR = 1e-6  # approximate error of the interpolation between slopes
MAX_SLOPES = 6


@dataclass(frozen=True)
class LabelIssue:
    """Label of an image, judged by a model that was fitted without the image.

    Attributes:
        index: Index of the image.
        label: Label of the image.
        suggested: The most probable other class.
        score: Score of the label, about the log odds of the other classes; above 0, the label is likely wrong.

    Examples:
        >>> from hegraph import HeGraphClassifier
        >>> features = [[1.0, 0.0], [1.0, 0.1], [0.9, 0.0], [0.0, 1.0], [0.1, 1.0], [0.0, 0.8]]
        >>> labels = ["cat", "cat", "dog", "dog", "dog", "dog"]  # the third one is wrong
        >>> classifier = HeGraphClassifier(variant="training_free").fit(features, labels)
        >>> issue = classifier.label_issues(features, labels)[0]
        >>> issue.index, issue.label, issue.suggested, issue.score > 0
        (2, 'dog', 'cat', True)
    """

    index: int
    label: Any
    suggested: Any
    score: float

    @property
    def odds(self) -> float:
        """Approximate odds of the other classes against the label."""
        return math.exp(min(self.score, LARGEST_SCORE))


def find_label_issues(
    features: Tensor, labels: Tensor, text: Tensor, logit_scale: float, classes: Sequence[Any]
) -> list[LabelIssue]:
    """Score the label of every image, and sort from the most to the least suspicious one.

    Args:
        features: Unit-norm image features, shape `[N, d]`.
        labels: Indices into `classes`, shape `[N]`.
        text: Unit-norm text features of the classes, shape `[K, d]`.
        logit_scale: CLIP's `tau`.
        classes: Names of the K classes in the result.

    Raises:
        UserError: If all images have the same label.
    """
    if len(labels.unique()) < 2:
        raise UserError("expected images of at least two classes, got one class; add images of another class")
    options = training_free_options(int(labels.bincount().max()))
    return rank_labels(left_out_logits(features, labels, text, logit_scale, options), labels, classes)


def rank_labels(logits: Tensor, labels: Tensor, classes: Sequence[Any]) -> list[LabelIssue]:
    """Return the result of `find_label_issues`, from the logits `[N, K]` of `left_out_logits`."""
    scores, suggested = label_scores(logits / fit_temperature(logits, labels), labels)
    order = scores.argsort(descending=True, stable=True)
    rows = zip(order.tolist(), labels[order].tolist(), suggested[order].tolist(), scores[order].tolist())
    return [LabelIssue(index, classes[label], classes[other], score) for index, label, other, score in rows]


def label_scores(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of labels and the most probable other classes, both `[N]`, from calibrated logits `[N, K]`."""
    own = logits.gather(1, labels.unsqueeze(1))[:, 0]
    other_logits = logits.scatter(1, labels.unsqueeze(1), -torch.inf)
    return (2 * other_logits).logsumexp(dim=1) / 2 - own, other_logits.argmax(dim=1)


def training_free_options(shots: int) -> TrainingFreeOptions:
    """Default options of the training-free variant for a number of images per class."""
    return TrainingFreeOptions(*(o.at_shots(o.default, max(shots, 1)) for o in options_of(TrainingFreeOptions)))


@torch.no_grad()
def left_out_logits(
    features: Tensor, labels: Tensor, text: Tensor, logit_scale: float, options: TrainingFreeOptions
) -> Tensor:
    """Compute the logits of each image by the training-free variant fitted to all other images.

    Args:
        features: Unit-norm image features of at least two classes, shape `[N, d]`.
        labels: Classes of the images, shape `[N]`.
        text: Unit-norm text features, shape `[K, d]`.
        logit_scale: CLIP's `tau`.
        options: Options of the closed-form head.

    Returns:
        Logits without class offsets, shape `[N, K]`, float64.
    """
    features, text = features.double(), text.double()
    messages = _Messages(features, labels, text, options).left_out()
    messages = messages.masked_fill(_others_of_one_class(labels), 0)
    return logit_scale * features @ text.t() + options.omega * logit_scale * messages


def leave_one_out(features: Tensor, labels: Tensor, text: Tensor, logit_scale: float) -> tuple[Tensor, Tensor]:
    """Classify each image by the training-free variant, with its default options, fitted to all other images.

    Args:
        features, labels, text, logit_scale: As for `left_out_logits`.

    Returns:
        Logits without class offsets, shape `[N, K]`, and predicted classes with class offsets, shape `[N]`.
    """
    options = training_free_options(int(labels.bincount().max()))
    logits = left_out_logits(features, labels, text, logit_scale, options)
    offsets = left_out_offsets(logit_scale * (features @ text.t()).double(), labels)
    offsets = offsets.masked_fill(_others_of_one_class(labels), 0)
    return logits, (logits + offsets).argmax(dim=1)


def _others_of_one_class(labels: Tensor) -> Tensor:
    """Whether all other images are of one class, for each image, shape `[N, 1]`."""
    counts = labels.bincount()
    return ((counts[labels] == 1) & ((counts > 0).sum() == 2)).unsqueeze(1)


class _Smoother:
    """Ridge regression from text with one strength, as a linear smoother with its leave-one-out errors.

    Attributes:
        matrix: `L`, shape `[K, P]`, which maps the residuals of the class means to their predictions from the other
            classes.
        images, texts: `(I - L)` times the centred class means and times the centred texts, shape `[P, d]`.
        units: `(I - L)` times the centred unit vectors, shape `[P, P]`.
    """

    def __init__(self, matrix: Tensor, present: Tensor, images: Tensor, texts: Tensor) -> None:
        error = torch.eye(len(images), dtype=matrix.dtype, device=matrix.device) - matrix[present]
        self.matrix, self.images, self.texts = matrix, error @ images, error @ texts
        self.units = error - error.mean(dim=1, keepdim=True)

    def errors(self, rows: Tensor, deltas: Tensor, slopes: Tensor) -> Tensor:
        """Squared error without each image, shape `[N]`: the squared norm of `images + unit delta^T - slope texts`.

        Args:
            rows: Row of each image's class among the classes with images, shape `[N]`.
            deltas: Change of the class mean without each image, shape `[N, d]`.
            slopes: Slope without each image, shape `[N]`.
        """
        moved = (self.units.t() @ self.images)[rows] - slopes.unsqueeze(1) * (self.units.t() @ self.texts)[rows]
        fixed = self.images.square().sum() - 2 * slopes * (self.images * self.texts).sum()
        lengths = self.units.square().sum(dim=0)[rows] * deltas.square().sum(dim=1)
        return fixed + slopes.square() * self.texts.square().sum() + 2 * (moved * deltas).sum(dim=1) + lengths


class _Messages:
    """Messages `(f - m) . x_c` of the closed-form head, with and without each labelled image.

    Attributes:
        counts, sums: Number `[K]` and feature sum `[K, d]` of the images of each class.
        present: Classes with images, shape `[P]`.
        rows: Row of each image's class in `present`, shape `[N]`.
        means, centre: Class means `[P, d]` and their mean.
        images, texts: Centred class means `[P, d]`, and texts minus the mean text of `present`, `[K, d]`.
    """

    def __init__(self, features: Tensor, labels: Tensor, text: Tensor, options: TrainingFreeOptions) -> None:
        self.features, self.labels, self.kappa, self.rho = features, labels, options.kappa, options.rho
        self.counts = torch.bincount(labels, minlength=len(text)).double()
        self.sums = sum_by_class(features, labels, len(text))
        present = (self.counts > 0).nonzero()[:, 0]
        self.rows = torch.searchsorted(present, labels)
        means = self.sums[present] / self.counts[present].unsqueeze(1)
        self.texts = text - text[present].mean(dim=0)
        self.images, self.centre = means - means.mean(dim=0), means.mean(dim=0)
        self.present, self.means = present, means

    @cached_property
    def smoothers(self) -> list[_Smoother]:
        """Return the smoothers of the candidate text priors: one without ridge regression, and one per strength."""
        texts = self.texts[self.present]
        constant = CONSTANT * texts.square().sum(dim=1).mean()
        eigenvalues, vectors = kernel_eigenvectors(texts, constant)
        kernel = (self.texts @ texts.t() + constant) @ vectors
        unit = (eigenvalues[:-1].sum() / (len(texts) - 1)).clamp_min(SMALLEST)
        matrices = [torch.zeros(len(self.texts), len(texts), dtype=texts.dtype, device=texts.device)]
        for strength in RIDGES:
            matrix = (kernel / (eigenvalues + strength * unit)) @ vectors.t()
            leverage = matrix[self.present, torch.arange(len(texts))].clone()
            own = matrix[self.present] - torch.diag(leverage)
            matrix[self.present] = own / (1 - leverage).unsqueeze(1)
            matrices.append(matrix)
        return [_Smoother(matrix, self.present, self.images, texts) for matrix in matrices]

    def prior(self, matrix: Tensor, slope: float) -> Tensor:
        """Text priors `p_c` of all classes, shape `[K, d]`."""
        residuals = self.images - slope * self.texts[self.present]
        return self.centre + slope * self.texts + matrix @ residuals

    def left_out(self) -> Tensor:
        """Messages to each image from the classes without that image, shape `[N, K]`."""
        texts = self.texts[self.present]
        square = texts.square().sum().clamp_min(SMALLEST)
        slope = (texts * self.images).sum() / square
        deltas = self._deltas(slope.clamp_min(0))
        slopes = (slope + (texts[self.rows] * deltas).sum(dim=1) / square).clamp_min(0)
        errors = torch.stack([smoother.errors(self.rows, deltas, slopes) for smoother in self.smoothers])
        best = errors.argmin(dim=0)
        messages = self.features.new_empty(len(self.features), len(self.texts))
        for number in best.unique().tolist():
            images = (best == number).nonzero()[:, 0]
            nodes, weights = _interpolation(slopes[images])
            matrix = self.smoothers[number].matrix
            at_nodes = torch.stack([_LeaveOneOut(self, matrix, node).messages(images) for node in nodes.tolist()])
            messages[images] = torch.einsum("rn,nrk->rk", weights, at_nodes)
        return messages

    def _deltas(self, slope: Tensor) -> Tensor:
        """`delta` of each image, shape `[N, d]`."""
        count, rows = self.counts[self.labels].unsqueeze(1), self.rows
        deltas = (self.means[rows] - self.features) / (count - 1).clamp_min(1)
        alone = count[:, 0] == 1
        if alone.any():
            errors = [smoother.errors(rows[:1], deltas[:1] * 0, slope.reshape(1)) for smoother in self.smoothers]
            prior = self.prior(self.smoothers[int(torch.cat(errors).argmin())].matrix, slope.item())
            deltas[alone] = prior[self.labels[alone]] - self.features[alone]
        return deltas


class _LeaveOneOut:
    """Messages at one slope and one strength of the ridge regression, from classes without the receiving image.

    Vectors are in the eigenbasis of `C`.
    """

    def __init__(self, whole: _Messages, matrix: Tensor, slope: float) -> None:
        self.whole, self.counts, kappa = whole, whole.counts, whole.kappa
        nodes = (whole.sums + kappa * whole.prior(matrix, slope)) / (self.counts + kappa).unsqueeze(1)
        mean = whole.features.mean(dim=0)
        deviations = whole.features - nodes[whole.labels]
        eigenvalues, vectors = torch.linalg.eigh(deviations.t() @ deviations)
        self.eigenvalues = eigenvalues.clamp_min(0)
        self.nodes, self.images = (nodes - mean) @ vectors, (whole.features - mean) @ vectors
        self.residuals = (whole.sums - self.counts.unsqueeze(1) * nodes) @ vectors
        # Row c: L (e_c - 1/P) + 1/P of the c-th class with images
        unit = (matrix - matrix.mean(dim=1, keepdim=True)).t().contiguous() + 1 / len(whole.present)
        self.shifts = unit * kappa / (self.counts + kappa)  # h, before the entry of its own class is set to 0
        self.own_shift = unit[torch.arange(len(unit)), whole.present] * kappa

    def messages(self, indices: Tensor) -> Tensor:
        """Messages `(f - m) . x_c` to R images, from their indices `[R]`; shape `[R, K]`."""
        size = max(1, BLOCK // (4 * max(len(self.images), *self.nodes.shape)))
        return torch.cat([self._block(block) for block in indices.split(size)])

    def _block(self, indices: Tensor) -> Tensor:
        whole, kappa = self.whole, self.whole.kappa
        labels, rows, total = whole.labels[indices], whole.rows[indices], len(self.images)
        count = self.counts[labels]
        shifts = self.shifts[rows].scatter(1, labels.unsqueeze(1), 0.0)  # h, [J, K]
        own, residuals = self.images[indices], self.residuals[labels]
        basis = torch.stack(  # q, p, rho and n, [J, 4, d]
            [own - self.nodes[labels], residuals / count.unsqueeze(1), shifts @ self.residuals, own], dim=1
        )
        unit = torch.eye(4, dtype=own.dtype, device=own.device)
        # Coefficients of delta and epsilon in this basis, [J, 4]
        alone, fewer = count == 1, (count - 1).clamp_min(1)
        delta = torch.where(alone, -(1 + kappa) / kappa, -1 / fewer).unsqueeze(1) * unit[0]
        delta += torch.where(alone, 0.0, 1 / fewer).unsqueeze(1) * unit[1]
        epsilon = (self.own_shift[rows].unsqueeze(1) * delta - unit[0]) / (count - 1 + kappa).unsqueeze(1)
        rest = count.unsqueeze(1) * unit[1] - unit[0]
        change = -_symmetric(unit[2].expand_as(delta), delta) - _symmetric(rest, epsilon)
        change -= torch.outer(unit[0], unit[0])
        change += (shifts.square() @ self.counts)[:, None, None] * _outer(delta, delta)
        change += (count - 1)[:, None, None] * _outer(epsilon, epsilon)
        trace = self.eigenvalues.sum() + (change * (basis @ basis.transpose(1, 2))).sum(dim=(1, 2))
        ridge = (whole.rho * trace / (total - 1)).clamp_min(SMALLEST)
        inverse = 1 / (self.eigenvalues + ridge.unsqueeze(1))  # [J, d]
        solved = inverse.unsqueeze(1) * basis
        inner = solved @ basis.transpose(1, 2)
        middle = change @ torch.linalg.inv(unit + inner @ change)

        def lengths(vectors: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
            """Squared lengths of vectors in the metric without the image.

            Args:
                vectors: V vectors, shape `[V, d]`.
                coefficients: Coefficients in the basis of a vector to add to each, shape `[J, 4, V]`.

            Returns:
                Squared lengths `[J, V]`, and products with the basis before Woodbury's term, `[J, 4, V]`.
            """
            products = (solved.flatten(0, 1) @ vectors.t()).unflatten(0, basis.shape[:2])
            sums = products + inner @ coefficients
            plain = inverse @ vectors.square().t() + ((products + sums) * coefficients).sum(dim=1)
            return plain - ((middle @ sums) * sums).sum(dim=1), sums

        moved = (unit[3] / (total - 1)).unsqueeze(1)  # m - m'
        own_class = F.one_hot(labels, len(self.nodes)).to(own.dtype)
        node_shifts = delta.unsqueeze(2) * shifts.unsqueeze(1) + epsilon.unsqueeze(2) * own_class.unsqueeze(1) + moved
        squares, sums = lengths(self.nodes, node_shifts)
        products = sums[:, 3] - (inner[:, 3:] @ middle @ sums)[:, 0]  # (f - m) . v
        norms = lengths(self.images, moved.expand(len(indices), 4, 1))[0].clamp_min(0).sqrt()
        scale = (norms.sum(dim=1) - norms[torch.arange(len(indices)), indices]) / total
        return products / (squares.clamp_min(SMALLEST**2).sqrt() * scale.clamp_min(SMALLEST).unsqueeze(1))


def _outer(left: Tensor, right: Tensor) -> Tensor:
    return left.unsqueeze(2) * right.unsqueeze(1)


def _symmetric(left: Tensor, right: Tensor) -> Tensor:
    return _outer(left, right) + _outer(right, left)


def _interpolation(slopes: Tensor) -> tuple[Tensor, Tensor]:
    """Chebyshev interpolation between slopes `[R]`, with more nodes for a wider range.

    Returns:
        Nodes `[n]`, and weights `[R, n]` of a function's values at the nodes in its values at the slopes.
    """
    number, middle, half = 1, (slopes.max() + slopes.min()) / 2, (slopes.max() - slopes.min()) / 2
    while half**number > SLOPE_ERROR and number < MAX_SLOPES:
        number += 1
    degrees = torch.arange(number, dtype=torch.float64, device=slopes.device)
    angles = (degrees + 0.5) * torch.pi / number
    positions = ((slopes - middle) / half.clamp_min(SMALLEST)).clamp(-1, 1).acos()
    weights = (positions.unsqueeze(1) * degrees).cos() @ torch.linalg.inv((angles.unsqueeze(1) * degrees).cos())
    return middle + half * angles.cos(), weights
