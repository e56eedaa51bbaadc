"""Exact leave-one-out of the closed-form head: its logits for each labelled image, without that image.

`method/head/closed_form.py` is linear in the class means, except for one number, the slope `a`, and one choice, the
ridge regression `L`. If both are fixed, leaving out one image is a change of low rank. Let the image have feature `f`
and class `y` of `S` images. Further,

    q = f - u_y            deviation of the image from its visual node
    r = m_y - u_y          residual of its class: class mean minus visual node
    n = f - m              image, centred
    g = 1/P + L (e_y - 1/P)
    h_c = kappa g_c / (S_c + kappa)     for c != y, and h_y = 0
    s = sum_c h_c S_c (m_c - u_c)

Without the image, the mean of its class moves by `delta`, and with it the text priors and the visual nodes:

    delta = (m_y - f) / (S - 1) = (r - q) / (S - 1)
    p_c' = p_c + g_c delta
    u_c' = u_c + h_c delta              for c != y
    u_y' = u_y + epsilon,   epsilon = (kappa g_y delta - q) / (S - 1 + kappa)
    m' = m - n / (N - 1)

The scatter matrix `C = N Sigma` becomes

    C' = C - s delta^T - delta s^T - t epsilon^T - epsilon t^T - q q^T
           + (sum_c h_c^2 S_c) delta delta^T + (S - 1) epsilon epsilon^T,   t = S r - q
       = C + Z W Z^T

with `Z = [q, r, s, n]` and a `W` of shape `[4, 4]`, whose entries for `n` are 0. The ridge, `lambda = rho tr C' /
(N - 1)`, is different for each image. In the eigenbasis of `C` it is added to the eigenvalues, so one decomposition is
enough for all images. Woodbury's identity gives the inverse:

    A = (C + lambda I)^-1
    (C' + lambda I)^-1 = A - A Z M Z^T A,   M = W (I + Z^T A Z W)^-1

Norms below are of this inverse. With `v_c = u_c' - m'`, the message of class c to the image is

    n . v_c / (|v_c| scale),   scale = (sum_i |F_i - m'| over all other images) / N

The head has `(f - m') . v_c` with the mean norm over N - 1 images, and `f - m' = n N / (N - 1)`, so the factors cancel.

The slope changes by about 1/N, and the logits are smooth in it. They are computed at a few slopes and interpolated.

Leaving out the only image of a class leaves a class without images, whose mean is its text prior:

    delta = p_y - f = -(1 + kappa) / kappa q

The ridge regression without a class equals the one with the class mean at its own prediction, except for the share 1/P
of the class in the centre. Other classes without images have their text prior as mean, too.

With trust in text (`leave_one_out.py`), the text of class y changes by `v` without the image, which moves its prior
by `x = a v + k' (G - G_{:y} G_{y:} / G_yy) R`, with `k' = v T^T`, the inverse `G` of the kernel with its ridge, and the
residuals `R` of the class means. Then `epsilon` gains `kappa x / (S - 1 + kappa)`, and `Z` gains `x`. The regressions
of the other classes, in which the text of class y is one of P, keep the old text.

Shapes: N images, K classes, P classes with images, d feature width, J images of a block. Computations are in float64
and take O(N^2 (K + d)).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ...method.graph import sum_by_class
from ...method.head.closed_form import BLOCK, SMALLEST
from ...method.options import TrainingFreeOptions
from .smoothers import Smoother, Smoothers

SLOPE_ERROR = 1e-6  # approximate error of the interpolation between slopes
MAX_SLOPES = 6
WIDEST_SLOPES = 0.03  # widest range of slopes that is interpolated at once


@torch.no_grad()
def left_out_messages(
    features: Tensor, labels: Tensor, text: Tensor, options: TrainingFreeOptions, changes: Tensor | None = None
) -> Tensor:
    """Messages of the closed-form head to each image, from the classes without that image, shape `[N, K]`, float64.

    Args:
        features: Unit-norm image features of at least two classes, shape `[N, d]`, float64.
        labels: Classes of the images, shape `[N]`.
        text: Text features of the text prior, shape `[K, d]`, float64.
        options: Options of the closed-form head.
        changes: `v`, change of the text of each image's class without the image, shape `[N, d]`; None: no change.
    """
    return Messages(features, labels, text, options, changes).left_out()


class Messages:
    """Messages of the closed-form head, with and without each labelled image.

    Attributes:
        features, labels: Image features `[N, d]` and their classes `[N]`.
        kappa, rho: Options of the closed-form head.
        counts, sums: Number `[K]` and feature sum `[K, d]` of the images of each class.
        present: Classes with images, shape `[P]`.
        rows: Row of each image's class in `present`, shape `[N]`.
        means, centre: Class means `[P, d]` and their mean.
        images, texts: Centred class means `[P, d]`, and texts minus the mean text of `present`, `[K, d]`.
        changes: `v` of each image, shape `[N, d]`, or None.
    """

    def __init__(
        self, features: Tensor, labels: Tensor, text: Tensor, options: TrainingFreeOptions, changes: Tensor | None
    ) -> None:
        self.features = features
        self.labels = labels
        self.kappa = options.kappa
        self.rho = options.rho
        self.counts = torch.bincount(labels, minlength=len(text)).double()
        self.sums = sum_by_class(features, labels, len(text))
        self.present = (self.counts > 0).nonzero()[:, 0]
        self.rows = torch.searchsorted(self.present, labels)
        self.means = self.sums[self.present] / self.counts[self.present].unsqueeze(1)
        self.centre = self.means.mean(dim=0)
        self.images = self.means - self.centre
        self.texts = text - text[self.present].mean(dim=0)
        self.changes = changes

    @cached_property
    def smoothers(self) -> Smoothers:
        """Candidate text priors: one without ridge regression, and one per strength."""
        return Smoothers(self.present, self.images, self.texts)

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
            smoother = self.smoothers[number]
            for part in narrow_parts(slopes[images]):
                chosen = images[part]
                nodes, weights = interpolation(slopes[chosen])
                at_nodes = torch.stack([Classes(self, smoother, node).messages(chosen) for node in nodes.tolist()])
                messages[chosen] = torch.einsum("rn,nrk->rk", weights, at_nodes)
        return messages

    def _deltas(self, slope: Tensor) -> Tensor:
        """`delta` of each image, shape `[N, d]`."""
        count = self.counts[self.labels].unsqueeze(1)
        deltas = (self.means[self.rows] - self.features) / (count - 1).clamp_min(1)
        alone = count[:, 0] == 1
        if alone.any():
            row = self.rows[:1]  # any image, because the class means do not move
            errors = [smoother.errors(row, deltas[:1] * 0, slope.reshape(1)) for smoother in self.smoothers]
            best = int(torch.cat(errors).argmin())
            prior = self.prior(self.smoothers[best].matrix, slope.item())
            deltas[alone] = prior[self.labels[alone]] - self.features[alone]
        return deltas


class Classes:
    """Classes at one slope and one strength of the ridge regression, and their messages to images that are left out.

    Vectors are in the eigenbasis of `C`.

    Attributes:
        whole: The labelled images.
        eigenvalues: Eigenvalues of `C`, shape `[d]`.
        nodes: `u_c - m`, shape `[K, d]`.
        images: `F_i - m`, shape `[N, d]`.
        residuals: `S_c (m_c - u_c)`, shape `[K, d]`.
        shifts: `h` by class `y`, shape `[P, K]`, before `h_y` is set to 0.
        own_shifts: `kappa g_y` by class `y`, shape `[P]`.
        smoother, slope: Strength of the ridge regression, and slope `a`.
        to_basis: Eigenvectors of `C` in columns, shape `[d, d]`.
    """

    def __init__(self, whole: Messages, smoother: Smoother, slope: float) -> None:
        kappa = whole.kappa
        matrix = smoother.matrix
        weight = (whole.counts + kappa).unsqueeze(1)
        nodes = (whole.sums + kappa * whole.prior(matrix, slope)) / weight
        mean = whole.features.mean(dim=0)
        deviations = whole.features - nodes[whole.labels]
        eigenvalues, vectors = torch.linalg.eigh(deviations.t() @ deviations)
        self.whole = whole
        self.smoother = smoother
        self.slope = slope
        self.to_basis = vectors
        self.eigenvalues = eigenvalues.clamp_min(0)
        self.nodes = (nodes - mean) @ vectors
        self.images = (whole.features - mean) @ vectors
        self.residuals = (whole.sums - whole.counts.unsqueeze(1) * nodes) @ vectors
        g = (matrix - matrix.mean(dim=1, keepdim=True)).t().contiguous() + 1 / len(whole.present)
        self.shifts = g * kappa / (whole.counts + kappa)
        self.own_shifts = g[torch.arange(len(g)), whole.present] * kappa

    def prior_changes(self, indices: Tensor) -> Tensor | None:
        """`x` of J images from their indices `[J]`, shape `[J, d]`; None if no text changes."""
        whole = self.whole
        if whole.changes is None:
            return None
        changes = whole.changes[indices]
        moved = self.slope * changes
        if self.smoother.inverse is not None:
            inverse = self.smoother.inverse  # G
            rows = whole.rows[indices]
            texts = whole.texts[whole.present]
            residuals = whole.images - self.slope * texts  # R
            weights = changes @ texts.t() @ inverse  # k' G
            own_weight = weights.gather(1, rows.unsqueeze(1)) / inverse.diagonal()[rows].unsqueeze(1)
            moved = moved + (weights - own_weight * inverse[rows]) @ residuals
        return moved @ self.to_basis

    def messages(self, indices: Tensor) -> Tensor:
        """Messages to R images from the classes without the image, from their indices `[R]`; shape `[R, K]`."""
        size = max(1, BLOCK // (4 * max(len(self.images), *self.nodes.shape)))
        return torch.cat([_Block.of(self, block).messages() for block in indices.split(size)])


@dataclass(frozen=True)
class _Block:
    """Changes of the classes without each of J images. A vector is given by its Q coefficients in `Z`.

    Attributes:
        classes: The classes with all images.
        indices: Indices of the images, shape `[J]`.
        Z: The basis of each image, `[q, r, s, n]`, and `x` if its text changes; shape `[J, Q, d]`.
        h: Shifts of the other classes, shape `[J, K]`.
        delta, epsilon: Coefficients of the shifts, shape `[J, Q]`.
        moved: Coefficients of `m - m'`, shape `[Q, 1]`.
    """

    classes: Classes
    indices: Tensor
    Z: Tensor
    h: Tensor
    delta: Tensor
    epsilon: Tensor
    moved: Tensor

    @classmethod
    def of(cls, classes: Classes, indices: Tensor) -> _Block:
        """The changes without each of the images with these indices `[J]`."""
        whole = classes.whole
        kappa = whole.kappa
        labels = whole.labels[indices]
        rows = whole.rows[indices]
        S = whole.counts[labels]
        h = classes.shifts[rows].scatter(1, labels.unsqueeze(1), 0.0)
        n = classes.images[indices]
        q = n - classes.nodes[labels]
        r = classes.residuals[labels] / S.unsqueeze(1)
        s = h @ classes.residuals
        x = classes.prior_changes(indices)
        Z = torch.stack([q, r, s, n] if x is None else [q, r, s, n, x], dim=1)

        e_q, e_r, _, e_n, *e_x = _units(Z)
        fewer = (S - 1).clamp_min(1)
        delta_q = torch.where(S == 1, -(1 + kappa) / kappa, -1 / fewer)
        delta_r = torch.where(S == 1, 0.0, 1 / fewer)
        delta = delta_q.unsqueeze(1) * e_q + delta_r.unsqueeze(1) * e_r
        own_shift = classes.own_shifts[rows].unsqueeze(1) * delta  # kappa g_y delta
        if e_x:
            own_shift = own_shift + kappa * e_x[0]
        epsilon = (own_shift - e_q) / (S - 1 + kappa).unsqueeze(1)
        moved = (e_n / (len(classes.images) - 1)).unsqueeze(1)
        return cls(classes, indices, Z, h, delta, epsilon, moved)

    @cached_property
    def labels(self) -> Tensor:
        """Classes of the images, shape `[J]`."""
        return self.classes.whole.labels[self.indices]

    @cached_property
    def W(self) -> Tensor:
        """Change `W` of the scatter matrix, shape `[J, Q, Q]`."""
        counts = self.classes.whole.counts
        S = counts[self.labels]
        e_q, e_r, e_s, *_ = _units(self.Z)
        s = e_s.expand_as(self.delta)
        t = S.unsqueeze(1) * e_r - e_q
        sum_of_squares = self.h.square() @ counts  # sum_c h_c^2 S_c
        W = -_symmetric(s, self.delta)
        W = W - _symmetric(t, self.epsilon)
        W = W - torch.outer(e_q, e_q)
        W = W + sum_of_squares[:, None, None] * _outer(self.delta, self.delta)
        W = W + (S - 1)[:, None, None] * _outer(self.epsilon, self.epsilon)
        return W

    def messages(self) -> Tensor:
        """Messages to each image from the classes without it, shape `[J, K]`."""
        total = len(self.classes.images)
        metric = _Metric.of(self)
        own_class = F.one_hot(self.labels, len(self.classes.nodes)).to(self.Z.dtype)
        of_others = self.delta.unsqueeze(2) * self.h.unsqueeze(1)
        of_own = self.epsilon.unsqueeze(2) * own_class.unsqueeze(1)
        node_squares, products = metric.lengths(self.classes.nodes, of_others + of_own + self.moved)
        image_squares, _ = metric.lengths(self.classes.images, self.moved.expand(len(self.indices), -1, 1))
        node_norms = node_squares.clamp_min(SMALLEST**2).sqrt()
        image_norms = image_squares.clamp_min(0).sqrt()
        own_norm = image_norms[torch.arange(len(self.indices)), self.indices]
        scale = (image_norms.sum(dim=1) - own_norm) / total
        n_products = metric.with_n(products)
        return n_products / (node_norms * scale.clamp_min(SMALLEST).unsqueeze(1))


@dataclass(frozen=True)
class _Metric:
    """Metric `(C' + lambda I)^-1` without each of J images, by Woodbury's identity.

    Attributes:
        A: Diagonal of `(C + lambda I)^-1`, shape `[J, d]`.
        AZ: `A Z`, shape `[J, Q, d]`.
        ZAZ: `Z^T A Z`, shape `[J, Q, Q]`.
        M: `W (I + Z^T A Z W)^-1`, shape `[J, Q, Q]`.
    """

    A: Tensor
    AZ: Tensor
    ZAZ: Tensor
    M: Tensor

    @classmethod
    def of(cls, block: _Block) -> _Metric:
        """The metric without each image of a block."""
        classes = block.classes
        Z = block.Z
        W = block.W
        trace = classes.eigenvalues.sum() + (W * (Z @ Z.transpose(1, 2))).sum(dim=(1, 2))  # tr C'
        ridge = (classes.whole.rho * trace / (len(classes.images) - 1)).clamp_min(SMALLEST)  # lambda
        A = 1 / (classes.eigenvalues + ridge.unsqueeze(1))
        AZ = A.unsqueeze(1) * Z
        ZAZ = AZ @ Z.transpose(1, 2)
        M = W @ torch.linalg.inv(_units(Z) + ZAZ @ W)
        return cls(A, AZ, ZAZ, M)

    def lengths(self, vectors: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """Squared lengths of vectors `v + Z a`.

        Args:
            vectors: `v`, V vectors that all images share, shape `[V, d]`.
            coefficients: `a`, for each image and vector, shape `[J, Q, V]`.

        Returns:
            Squared lengths `[J, V]`, and the products `b = Z^T A (v + Z a)`, `[J, Q, V]`.
        """
        ZAv = (self.AZ.flatten(0, 1) @ vectors.t()).unflatten(0, self.AZ.shape[:2])
        b = ZAv + self.ZAZ @ coefficients
        plain = self.A @ vectors.square().t() + ((ZAv + b) * coefficients).sum(dim=1)
        return plain - ((self.M @ b) * b).sum(dim=1), b

    def with_n(self, b: Tensor) -> Tensor:
        """Inner products of `n` with the vectors of `lengths`, `[J, V]`, from their products `b`."""
        n = 3  # row of n in Z
        return b[:, n] - (self.ZAZ[:, n:] @ self.M @ b)[:, 0]


def _units(Z: Tensor) -> Tensor:
    """Coefficients of q, r, s, n and x in `Z`: the unit matrix, shape `[Q, Q]`."""
    return torch.eye(Z.shape[1], dtype=Z.dtype, device=Z.device)


def _outer(left: Tensor, right: Tensor) -> Tensor:
    return left.unsqueeze(2) * right.unsqueeze(1)


def _symmetric(left: Tensor, right: Tensor) -> Tensor:
    return _outer(left, right) + _outer(right, left)


def narrow_parts(slopes: Tensor) -> Iterator[Tensor]:
    """Iterate over the indices of slopes `[R]` in ranges that are narrow enough for `interpolation`.

    With few images of two classes, slopes differ widely.
    """
    ranges = ((slopes - slopes.min()) / WIDEST_SLOPES).long()
    for number in ranges.unique():
        yield (ranges == number).nonzero()[:, 0]


def interpolation(slopes: Tensor) -> tuple[Tensor, Tensor]:
    """Chebyshev interpolation between slopes `[R]`, with more nodes for a wider range; few slopes are nodes themselves.

    Returns:
        Nodes `[n]`, and weights `[R, n]` of a function's values at the nodes in its values at the slopes.
    """
    middle = (slopes.max() + slopes.min()) / 2
    half = (slopes.max() - slopes.min()) / 2
    number = 1
    while half**number > SLOPE_ERROR and number < MAX_SLOPES:
        number += 1
    if len(slopes) <= number:
        return slopes, torch.eye(len(slopes), dtype=slopes.dtype, device=slopes.device)
    degrees = torch.arange(number, dtype=torch.float64, device=slopes.device)
    angles = (degrees + 0.5) * torch.pi / number
    positions = ((slopes - middle) / half.clamp_min(SMALLEST)).clamp(-1, 1).acos()
    at_slopes = (positions.unsqueeze(1) * degrees).cos()
    at_nodes = (angles.unsqueeze(1) * degrees).cos()
    return middle + half * angles.cos(), at_slopes @ torch.linalg.inv(at_nodes)
