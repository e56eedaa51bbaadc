"""Ridge regressions from text to class means as linear smoothers, for leave-one-out of the closed-form head.

Shapes: N images, K classes, P classes with images, d feature width. Computations are in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property, partial

import torch
from torch import Tensor

from ...method.head.closed_form import CONSTANT, RIDGES, SMALLEST, kernel_eigenvectors, kernel_inverse


class Smoother:
    """Ridge regression from text with one strength, as a linear smoother with its leave-one-class-out errors.

    Attributes:
        matrix: `L`, shape `[K, P]`, which maps the residuals of the class means to their predictions from the other
            classes.
        images, texts: `(I - L)` times the centred class means and times the centred texts, shape `[P, d]`.
        units: `(I - L)` times the centred unit vectors, shape `[P, P]`.
        inverse: `G`, inverse of the kernel with its ridge, shape `[P, P]`; None without ridge regression.
    """

    def __init__(
        self,
        matrix: Tensor,
        present: Tensor,
        images: Tensor,
        texts: Tensor,
        inverse: Callable[[], Tensor] | None = None,
    ) -> None:
        error = torch.eye(len(images), dtype=matrix.dtype, device=matrix.device) - matrix[present]
        self.matrix = matrix
        self.images = error @ images
        self.texts = error @ texts
        self.units = error - error.mean(dim=1, keepdim=True)
        self._inverse = inverse

    @cached_property
    def inverse(self) -> Tensor | None:
        return None if self._inverse is None else self._inverse()

    def errors(self, rows: Tensor, deltas: Tensor, slopes: Tensor) -> Tensor:
        """Squared error without each image, shape `[N]`: the squared norm of `images + unit delta^T - slope texts`.

        Args:
            rows: Row of each image's class among the classes with images, shape `[N]`.
            deltas: Change of the class mean without each image, shape `[N, d]`.
            slopes: Slope without each image, shape `[N]`.
        """
        from_images = (self.units.t() @ self.images)[rows]
        from_texts = (self.units.t() @ self.texts)[rows]
        moved = from_images - slopes.unsqueeze(1) * from_texts
        fixed = self.images.square().sum() - 2 * slopes * (self.images * self.texts).sum()
        lengths = self.units.square().sum(dim=0)[rows] * deltas.square().sum(dim=1)
        return fixed + slopes.square() * self.texts.square().sum() + 2 * (moved * deltas).sum(dim=1) + lengths


class Smoothers:
    """Smoothers of the candidate text priors: one without ridge regression, and one per strength.

    Each has several matrices of K rows or columns, so it is computed when it is taken, and not kept.

    Attributes:
        present: Classes with images, shape `[P]`.
        images: Their centred class means, shape `[P, d]`.
        texts: Centred texts of all classes, shape `[K, d]`.
    """

    def __init__(self, present: Tensor, images: Tensor, texts: Tensor) -> None:
        self.present = present
        self.images = images
        self.texts = texts
        known = texts[present]
        constant = CONSTANT * known.square().sum(dim=1).mean()
        self._eigenvalues, self._vectors = kernel_eigenvectors(known, constant)
        self._kernel = (texts @ known.t() + constant) @ self._vectors
        self._unit = (self._eigenvalues[:-1].sum() / (len(known) - 1)).clamp_min(SMALLEST)

    def __len__(self) -> int:
        return 1 + len(RIDGES)

    def __iter__(self) -> Iterator[Smoother]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Smoother:
        known = self.texts[self.present]
        if number == 0:
            nothing = torch.zeros(len(self.texts), len(known), dtype=known.dtype, device=known.device)
            return Smoother(nothing, self.present, self.images, known)
        strength = RIDGES[number - 1] * self._unit
        matrix = (self._kernel / (self._eigenvalues + strength)) @ self._vectors.t()
        leverage = matrix[self.present, torch.arange(len(known))].clone()
        own = matrix[self.present] - torch.diag(leverage)
        matrix[self.present] = own / (1 - leverage).unsqueeze(1)
        inverse = partial(kernel_inverse, self._eigenvalues, self._vectors, strength)
        return Smoother(matrix, self.present, self.images, known, inverse)
