"""Which labels of a training set seem wrong.

Each image is scored by the training-free variant fitted without that image (exact leave-one-out), at a temperature
that is fitted on the same images:

    score = log( |(p_c) of the classes c that are not y|_2 / p_y )

for an image with label `y`. The best other class counts most. Class offsets are left out: they move the classes towards
occurring as often as the labels say, which says nothing of one label.

`method/closed_form.py` is linear in the class means but for one number, the slope `a`, and one choice, the ridge. With
both given, image `j` with feature `f`, of class `y` with `S` images, leaves a change of low rank. With

    q = f - u_y,   p = m_y - u_y,   n = f - m,   delta = (m_y - f) / (S - 1)     (the class mean moves by delta)
    p_c' = p_c + g_c delta,   g = 1/K + L (e_y - 1/K)                            (L: what the ridge regression does)
    u_c' = u_c + h_c delta,   h_c = kappa g_c / (S_c + kappa)                    (c != y)
    u_y' = u_y + epsilon,     epsilon = (kappa g_y delta - q) / (S - 1 + kappa)

the scatter matrix `C = N Sigma` becomes `C + Z W Z^T` with `Z = [q, p, rho]`, `rho = sum_c h_c S_c (m_c - u_c)` and a
`W` of shape `[3, 3]`. So one eigendecomposition of `C` serves all images: in its basis the ridge, which each image
changes, is added to the eigenvalues, and Woodbury's identity does the rest. The slope moves by about 1/N, and what
depends on it is smooth; it is worked out at a few slopes and interpolated.

An image that is alone in its class leaves a class without images, whose mean is then what text says of it. The ridge
regression without a class is the one with that class at its own prediction, but for the class's 1/K of the centre.

Classes without images take part in all of this with the mean that text says.

Shapes: N images, K classes, d feature width, J images of a block. Computed in float64; the work grows with N^2 (K + d).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..method.closed_form import BLOCK, CONSTANT, RIDGES, SMALLEST, kernel_eigenvectors
from ..method.options import TrainingFreeOptions
from ..training.confidence import fit_temperature
from ..utils.errors import UserError
from ..utils.option import options_of

SLOPE_ERROR = 1e-6  # of the interpolation between slopes, about
MOST_SLOPES = 6


@dataclass(frozen=True)
class LabelIssue:
    """What a model that has not seen an image says of its label.

    Attributes:
        index: Position of the image.
        label: Its label.
        suggested: The likeliest other class.
        score: How suspicious the label is: above 0, the others are likelier by their calibrated probabilities.
    """

    index: int
    label: Any
    suggested: Any
    score: float


def find_label_issues(
    features: Tensor, labels: Tensor, text: Tensor, logit_scale: float, classes: Sequence[Any]
) -> list[LabelIssue]:
    """One for each image, the most suspicious first.

    Args:
        features: Unit-norm, shape `[N, d]`.
        labels: Positions in `classes`, shape `[N]`.
        text: Unit-norm text features of the classes, shape `[K, d]`.
        logit_scale: CLIP's `tau`.
        classes: What the K classes are called in the result.

    Raises:
        UserError: If the images are of fewer than two classes.
    """
    if len(labels.unique()) < 2:
        raise UserError("labels can be checked where images of at least two classes are there")
    options = free_options(int(labels.bincount().max()))
    return issues_of(left_out_logits(features, labels, text, logit_scale, options), labels, classes)


def issues_of(logits: Tensor, labels: Tensor, classes: Sequence[Any]) -> list[LabelIssue]:
    """As `find_label_issues`, from what models without each image say of it, logits `[N, K]`."""
    scores, others = suspicions(logits / fit_temperature(logits, labels), labels)
    order = scores.argsort(descending=True, stable=True).tolist()
    found = labels.tolist(), others.tolist(), scores.tolist()
    return [LabelIssue(i, classes[found[0][i]], classes[found[1][i]], found[2][i]) for i in order]


def suspicions(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The scores and the likeliest other classes, both `[N]`, from calibrated logits `[N, K]`."""
    own = logits.gather(1, labels.unsqueeze(1))[:, 0]
    others = logits.scatter(1, labels.unsqueeze(1), -torch.inf)
    return (2 * others).logsumexp(dim=1) / 2 - own, others.argmax(dim=1)


def free_options(shots: int) -> TrainingFreeOptions:
    """The default constants of the variant "training_free" at so many images of a class."""
    return TrainingFreeOptions(
        *(declared.at_shots(declared.default, max(shots, 1)) for declared in options_of(TrainingFreeOptions))
    )


@torch.no_grad()
def left_out_logits(
    features: Tensor, labels: Tensor, text: Tensor, logit_scale: float, options: TrainingFreeOptions
) -> Tensor:
    """Logits `[N, K]` of each image by the training-free variant, fitted to all others, without class offsets; float64.

    Args:
        features: Unit-norm, shape `[N, d]`; of at least two classes.
        labels: Shape `[N]`.
        text: Unit-norm text features, shape `[K, d]`.
        logit_scale: CLIP's `tau`.
        options: Constants of the closed form.
    """
    features, text = features.double(), text.double()
    messages = _Messages(features, labels, text, options).left_out()
    return logit_scale * features @ text.t() + options.omega * logit_scale * messages


class _Smoother:
    """One strength of the ridge regression: `matrix` `[K, P]` takes the rest of the P class means to what the others
    say of it. For its error on the rest without an image: `(I - L)` times the centred means, the texts and the centred
    unit vectors, of P rows each.
    """

    def __init__(self, matrix: Tensor, present: Tensor, images: Tensor, texts: Tensor) -> None:
        error = torch.eye(len(images), dtype=matrix.dtype, device=matrix.device) - matrix[present]
        self.matrix, self.images, self.texts = matrix, error @ images, error @ texts
        self.units = error - error.mean(dim=1, keepdim=True)

    def errors(self, place: Tensor, deltas: Tensor, slopes: Tensor) -> Tensor:
        """The squared error where class `place` moves by `deltas` and the slope is another one, for each image, `[N]`:
        the squared norm of `images + unit delta^T - slope texts`.
        """
        moved = (self.units.t() @ self.images)[place] - slopes.unsqueeze(1) * (self.units.t() @ self.texts)[place]
        fixed = self.images.square().sum() - 2 * slopes * (self.images * self.texts).sum()
        lengths = self.units.square().sum(dim=0)[place] * deltas.square().sum(dim=1)
        return fixed + slopes.square() * self.texts.square().sum() + 2 * (moved * deltas).sum(dim=1) + lengths


class _Messages:
    """The messages `(f - m) . x_c` of a labelled set, and what they are without each of its images."""

    def __init__(self, features: Tensor, labels: Tensor, text: Tensor, options: TrainingFreeOptions) -> None:
        self.features, self.labels, self.kappa, self.rho = features, labels, options.kappa, options.rho
        self.counts = torch.bincount(labels, minlength=len(text)).double()
        self.sums = features.new_zeros(text.shape).index_add_(0, labels, features)
        present = (self.counts > 0).nonzero()[:, 0]
        self.place = torch.searchsorted(present, labels)
        means = self.sums[present] / self.counts[present].unsqueeze(1)
        self.texts = text - text[present].mean(dim=0)
        self.images, self.centre = means - means.mean(dim=0), means.mean(dim=0)
        self.present, self.means = present, means

    @cached_property
    def smoothers(self) -> list[_Smoother]:
        """No ridge regression at all, and one of each strength."""
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

    def guess(self, matrix: Tensor, slope: float) -> Tensor:
        """`p_c` of all classes, `[K, d]`."""
        rest = self.images - slope * self.texts[self.present]
        return self.centre + slope * self.texts + matrix @ rest

    def left_out(self) -> Tensor:
        """The messages to each image from the classes without it, `[N, K]`."""
        texts = self.texts[self.present]
        square = texts.square().sum().clamp_min(SMALLEST)
        slope = (texts * self.images).sum() / square
        deltas = self._deltas(slope.clamp_min(0))
        slopes = (slope + (texts[self.place] * deltas).sum(dim=1) / square).clamp_min(0)
        errors = torch.stack([smoother.errors(self.place, deltas, slopes) for smoother in self.smoothers])
        chosen = errors.argmin(dim=0)
        messages = self.features.new_empty(len(self.features), len(self.texts))
        for number in chosen.unique().tolist():
            rows = (chosen == number).nonzero()[:, 0]
            nodes, weights = _interpolated(slopes[rows])
            matrix = self.smoothers[number].matrix
            found = torch.stack([_WithoutOne(self, matrix, node).messages(rows) for node in nodes.tolist()])
            messages[rows] = torch.einsum("rn,nrk->rk", weights, found)
        return messages

    def _deltas(self, slope: Tensor) -> Tensor:
        """`delta` of each image, `[N, d]`."""
        count, rows = self.counts[self.labels].unsqueeze(1), self.place
        deltas = (self.means[rows] - self.features) / (count - 1).clamp_min(1)
        alone = count[:, 0] == 1
        if alone.any():
            errors = [smoother.errors(rows[:1], deltas[:1] * 0, slope.reshape(1)) for smoother in self.smoothers]
            guess = self.guess(self.smoothers[int(torch.cat(errors).argmin())].matrix, slope.item())
            deltas[alone] = guess[self.labels[alone]] - self.features[alone]
        return deltas


class _WithoutOne:
    """Messages at one slope and one strength of the ridge regression, from classes without the image that receives
    them; vectors are in the eigenbasis of `C`.
    """

    def __init__(self, whole: _Messages, matrix: Tensor, slope: float) -> None:
        self.whole, self.counts, kappa = whole, whole.counts, whole.kappa
        guess = whole.guess(matrix, slope)
        nodes = (whole.sums + kappa * guess) / (self.counts + kappa).unsqueeze(1)
        mean = whole.features.mean(dim=0)
        deviations = whole.features - nodes[whole.labels]
        eigenvalues, vectors = torch.linalg.eigh(deviations.t() @ deviations)
        self.eigenvalues = eigenvalues.clamp_min(0)
        self.nodes, self.images = (nodes - mean) @ vectors, (whole.features - mean) @ vectors
        self.residuals = (whole.sums - self.counts.unsqueeze(1) * nodes) @ vectors
        # Row c: L (e_c - 1/P) + 1/P of the c-th class that has images
        unit = (matrix - matrix.mean(dim=1, keepdim=True)).t().contiguous() + 1 / len(whole.present)
        self.shifts = unit * kappa / (self.counts + kappa)  # h, before its own class is set to 0
        self.own_shift = unit[torch.arange(len(unit)), whole.present] * kappa

    def messages(self, rows: Tensor) -> Tensor:
        """`(f - m) . x_c` to some images, `[R, K]`."""
        size = max(1, BLOCK // (4 * max(len(self.images), *self.nodes.shape)))
        return torch.cat([self._block(some) for some in rows.split(size)])

    def _block(self, rows: Tensor) -> Tensor:
        whole, kappa = self.whole, self.whole.kappa
        labels, place, total = whole.labels[rows], whole.place[rows], len(self.images)
        count = self.counts[labels]
        shifts = self.shifts[place].scatter(1, labels.unsqueeze(1), 0.0)  # h, [J, K]
        own, residuals = self.images[rows], self.residuals[labels]
        basis = torch.stack(  # q, p, rho and n, [J, 4, d]
            [own - self.nodes[labels], residuals / count.unsqueeze(1), shifts @ self.residuals, own], dim=1
        )
        unit = torch.eye(4, dtype=own.dtype, device=own.device)
        # delta and epsilon by their coefficients in this basis, [J, 4]
        alone, fewer = count == 1, (count - 1).clamp_min(1)
        delta = torch.where(alone, -(1 + kappa) / kappa, -1 / fewer).unsqueeze(1) * unit[0]
        delta += torch.where(alone, 0.0, 1 / fewer).unsqueeze(1) * unit[1]
        epsilon = (self.own_shift[place].unsqueeze(1) * delta - unit[0]) / (count - 1 + kappa).unsqueeze(1)
        rest = count.unsqueeze(1) * unit[1] - unit[0]
        change = -_both(unit[2].expand_as(delta), delta) - _both(rest, epsilon) - torch.outer(unit[0], unit[0])
        change += (shifts.square() @ self.counts)[:, None, None] * _outer(delta, delta)
        change += (count - 1)[:, None, None] * _outer(epsilon, epsilon)
        trace = self.eigenvalues.sum() + (change * (basis @ basis.transpose(1, 2))).sum(dim=(1, 2))
        ridge = (whole.rho * trace / (total - 1)).clamp_min(SMALLEST)
        inverse = 1 / (self.eigenvalues + ridge.unsqueeze(1))  # [J, d]
        solved = inverse.unsqueeze(1) * basis
        inner = solved @ basis.transpose(1, 2)
        middle = change @ torch.linalg.inv(unit + inner @ change)

        def lengths(vectors: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
            """Squared lengths in the metric without the image, `[J, V]`, of vectors `[V, d]` plus what their
            coefficients `[J, 4, V]` say, and the products of these with the basis before Woodbury's term, `[J, 4, V]`.
            """
            products = (solved.flatten(0, 1) @ vectors.t()).unflatten(0, basis.shape[:2])
            sums = products + inner @ coefficients
            plain = inverse @ vectors.square().t() + ((products + sums) * coefficients).sum(dim=1)
            return plain - ((middle @ sums) * sums).sum(dim=1), sums

        moved = (unit[3] / (total - 1)).unsqueeze(1)  # m - m'
        own_class = F.one_hot(labels, len(self.nodes)).to(own.dtype)
        of_nodes = delta.unsqueeze(2) * shifts.unsqueeze(1) + epsilon.unsqueeze(2) * own_class.unsqueeze(1) + moved
        squares, sums = lengths(self.nodes, of_nodes)
        towards = sums[:, 3] - (inner[:, 3:] @ middle @ sums)[:, 0]  # (f - m) . v
        norms = lengths(self.images, moved.expand(len(rows), 4, 1))[0].clamp_min(0).sqrt()
        scale = (norms.sum(dim=1) - norms[torch.arange(len(rows)), rows]) / total
        return towards / (squares.clamp_min(SMALLEST**2).sqrt() * scale.clamp_min(SMALLEST).unsqueeze(1))


def _outer(left: Tensor, right: Tensor) -> Tensor:
    return left.unsqueeze(2) * right.unsqueeze(1)


def _both(left: Tensor, right: Tensor) -> Tensor:
    return _outer(left, right) + _outer(right, left)


def _interpolated(slopes: Tensor) -> tuple[Tensor, Tensor]:
    """Chebyshev's nodes, `[n]`, between slopes `[R]`, the more, the further apart these are; and the weights, `[R, n]`,
    of a smooth function's values at the nodes in its values at the slopes.
    """
    number, middle, half = 1, (slopes.max() + slopes.min()) / 2, (slopes.max() - slopes.min()) / 2
    while half**number > SLOPE_ERROR and number < MOST_SLOPES:
        number += 1
    degrees = torch.arange(number, dtype=torch.float64, device=slopes.device)
    angles = (degrees + 0.5) * torch.pi / number
    places = ((slopes - middle) / half.clamp_min(SMALLEST)).clamp(-1, 1).acos()
    weights = (places.unsqueeze(1) * degrees).cos() @ torch.linalg.inv((angles.unsqueeze(1) * degrees).cos())
    return middle + half * angles.cos(), weights
