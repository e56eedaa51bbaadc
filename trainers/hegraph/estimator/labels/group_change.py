"""Changes of the closed-form head without a group of images; the symbols are those of `left_out_groups.py`.

Shapes: N images, K classes, d feature width; n images and A classes of a group, `b = n + 4 A`. Computed in float64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ...method.head.closed_form import CHUNK_ROWS, SMALLEST
from .left_out_messages import Classes


@dataclass(frozen=True)
class Group:
    """A group that is left out.

    Attributes:
        images: Indices of its images, shape `[n]`.
        rows: Its classes, as rows among the classes with images, shape `[A]`.
        first: Indices of the first image of each class, shape `[A]`.
        left: Number `S_c - g_c` of the other images of these classes, shape `[A]`.
        delta: Change of the means of these classes, shape `[A, d]`.
    """

    images: Tensor
    rows: Tensor
    first: Tensor
    left: Tensor
    delta: Tensor


@dataclass(frozen=True)
class Change:
    """Changes of the classes without a group.

    Attributes:
        r: Deviations of the images of the group, shape `[n, d]`.
        delta, epsilon, rho, residuals: `delta_y`, `epsilon_c`, `rho_y` and `R_c'` of its classes, each `[A, d]`.
        products: `sum_c S_c H_cy H_cz`, shape `[A, A]`.
        left: `S_c - g_c`, shape `[A]`.
        nodes: Change of the visual nodes, shape `[K, d]`.
    """

    r: Tensor
    delta: Tensor
    epsilon: Tensor
    rho: Tensor
    residuals: Tensor
    products: Tensor
    left: Tensor
    nodes: Tensor

    @classmethod
    def of(cls, classes: Classes, group: Group) -> Change:
        """Changes without a group."""
        whole = classes.whole
        kappa = whole.kappa
        own = whole.present[group.rows]  # the set a
        labels = whole.labels[group.images]
        H = classes.shifts[group.rows].t().clone()
        prior_weights = H[own] * (whole.counts[own] + kappa).unsqueeze(1)  # kappa U^T
        H[own] = 0
        delta = group.delta @ classes.to_basis
        r = classes.images[group.images] - classes.nodes[labels]
        r_sums = (labels == own.unsqueeze(1)).to(r) @ r
        moved = prior_weights @ delta  # kappa (p_c' - p_c)
        x = classes.prior_changes(group.first)
        if x is not None:
            moved = moved + kappa * x
        epsilon = (moved - r_sums) / (group.left + kappa).unsqueeze(1)
        residuals = classes.residuals[own] - r_sums  # R'
        nodes = H @ delta
        nodes[own] = epsilon
        products = (H * whole.counts.unsqueeze(1)).t() @ H  # sum_c S_c H_cy H_cz
        return cls(r, delta, epsilon, H.t() @ classes.residuals, residuals, products, group.left, nodes)

    @property
    def rank(self) -> int:
        """Number b of rows of `B`."""
        return len(self.r) + 4 * len(self.left)

    def factors(self) -> tuple[Tensor, Tensor]:
        """`B` and `W`, the change of the scatter matrix, shapes `[b, d]` and `[b, b]`."""
        B = torch.cat([self.r, self.delta, self.epsilon, self.rho, self.residuals])
        return B, _weights(len(self.r), self.products, self.left)

    def scatter(self) -> Tensor:
        """`B^T W B`, shape `[d, d]`, without a matrix of b rows and columns."""
        mixed = self.rho.t() @ self.delta + self.residuals.t() @ self.epsilon
        of_nodes = self.delta.t() @ (self.products @ self.delta)
        of_nodes = of_nodes + (self.epsilon * self.left.unsqueeze(1)).t() @ self.epsilon
        return of_nodes - self.r.t() @ self.r - mixed - mixed.t()


def _weights(num_images: int, products: Tensor, left: Tensor) -> Tensor:
    """`W`, shape `[b, b]`, of a group of n images.

    Args:
        num_images: n.
        products: `sum_c S_c H_cy H_cz`, shape `[A, A]`.
        left: `S_c - g_c`, shape `[A]`.
    """
    size = len(left)
    W = products.new_zeros(num_images + 4 * size, num_images + 4 * size)
    starts = range(num_images, len(W), size)
    delta, epsilon, rho, residuals = (torch.arange(start, start + size) for start in starts)
    images = torch.arange(num_images)
    W[images, images] = -1
    for left_rows, right_rows in ((rho, delta), (residuals, epsilon)):
        W[left_rows, right_rows] = -1
        W[right_rows, left_rows] = -1
    W[delta.unsqueeze(1), delta] = products
    W[epsilon, epsilon] = left
    return W


class Metric(ABC):
    """Metric `(C' + lambda I)^-1` without a group."""

    @staticmethod
    def of(classes: Classes, change: Change, total: int) -> Metric:
        """The metric of `total` images without a group, by the smaller of two systems of equations, of b or of d."""
        ridge = partial(ridge_of, rho=classes.whole.rho, total=total)
        if change.rank > len(classes.eigenvalues):
            return DenseMetric.of_change(classes, change, ridge)
        return LowRankMetric.of_change(classes, change, ridge)

    @abstractmethod
    def products(self, left: Tensor, right: Tensor) -> Tensor:
        """Inner products of vectors `[n, d]` and `[K, d]`, shape `[n, K]`."""

    @abstractmethod
    def squares(self, vectors: Tensor) -> Tensor:
        """Squared norms of vectors `[K, d]`, shape `[K]`."""

    @abstractmethod
    def squares_of_images(self, images: Tensor, squares: Tensor, mean: Tensor) -> Tensor:
        """Squared norms of images `[N, d]` minus a mean `[d]`, shape `[N]`, without a copy of the images.

        `squares` has the squared entries of the images.
        """


def ridge_of(trace: Tensor, rho: float, total: int) -> Tensor:
    """`lambda` from `tr C'`, the shrinkage and the number of images."""
    return (rho * trace / total).clamp_min(SMALLEST)


@dataclass(frozen=True)
class LowRankMetric(Metric):
    """Metric by Woodbury's identity.

    Attributes:
        D: Diagonal of `(C + lambda I)^-1`, shape `[d]`.
        BD: `B D`, shape `[b, d]`.
        M: `W (I + B D B^T W)^-1`, shape `[b, b]`.
    """

    D: Tensor
    BD: Tensor
    M: Tensor

    @classmethod
    def of_change(cls, classes: Classes, change: Change, ridge: Callable[[Tensor], Tensor]) -> LowRankMetric:
        """The metric without a group."""
        B, W = change.factors()
        trace = classes.eigenvalues.sum() + (W * (B @ B.t())).sum()  # tr C'
        D = 1 / (classes.eigenvalues + ridge(trace))
        BD = B * D
        unit = torch.eye(len(B), dtype=B.dtype, device=B.device)
        M = W @ torch.linalg.inv(unit + BD @ B.t() @ W)
        return cls(D, BD, M)

    def products(self, left: Tensor, right: Tensor) -> Tensor:
        return (left * self.D) @ right.t() - left @ self.BD.t() @ self.M @ (self.BD @ right.t())

    def squares(self, vectors: Tensor) -> Tensor:
        projected = vectors @ self.BD.t()
        return vectors.square() @ self.D - ((projected @ self.M) * projected).sum(dim=1)

    def squares_of_images(self, images: Tensor, squares: Tensor, mean: Tensor) -> Tensor:
        projected = images @ self.BD.t() - self.BD @ mean
        plain = squares @ self.D - 2 * images @ (self.D * mean) + mean.square() @ self.D
        return plain - ((projected @ self.M) * projected).sum(dim=1)


@dataclass(frozen=True)
class DenseMetric(Metric):
    """Metric of a large group, from the scatter matrix itself.

    Attributes:
        inverse: `(C' + lambda I)^-1`, shape `[d, d]`.
    """

    inverse: Tensor

    @classmethod
    def of_change(cls, classes: Classes, change: Change, ridge: Callable[[Tensor], Tensor]) -> DenseMetric:
        """The metric without a group."""
        scatter = torch.diag(classes.eigenvalues) + change.scatter()
        scatter.diagonal().add_(ridge(scatter.trace()))
        return cls(torch.linalg.inv(scatter))

    def products(self, left: Tensor, right: Tensor) -> Tensor:
        return left @ self.inverse @ right.t()

    def squares(self, vectors: Tensor) -> Tensor:
        blocks = vectors.split(CHUNK_ROWS)
        return torch.cat([((rows @ self.inverse) * rows).sum(dim=1) for rows in blocks])

    def squares_of_images(self, images: Tensor, squares: Tensor, mean: Tensor) -> Tensor:
        of_mean = self.inverse @ mean
        return self.squares(images) - 2 * images @ of_mean + mean @ of_mean
