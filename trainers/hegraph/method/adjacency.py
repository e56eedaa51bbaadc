"""The edges of one relation, and products with them. No parameters.

What the products need, and those with the relation's own nodes, are worked out when they are first asked for, and once.

Shapes: K classes, d feature width, R rows of a block. A relation is a `[K, K]` matrix with a row per target node and a
column per source node. Up to K = d it is formed; above, it is computed from the nodes, in blocks of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

ROWS = 512  # rows of a relation matrix that are in memory at once


@dataclass(frozen=True)
class Relation:
    """The edges of one relation: from every source node to every target node, weighted by cosine.

    Attributes:
        target, source: Unit-norm node features, each `[K, d]`.
        diagonal: Factor on the diagonal, see `RelationType.diagonal`.
    """

    target: Tensor
    source: Tensor
    diagonal: float

    def weight(self, rows: slice = slice(None)) -> Tensor:
        """The given rows of the relation matrix, shape `[R, K]`."""
        cosine = self.target[rows] @ self.source.t()
        cosine.diagonal(offset=rows.start or 0).mul_(self.diagonal)
        return cosine

    def diagonal_cosine(self) -> Tensor:
        """Cosine of each class's own two nodes, shape `[K, 1]`. The edge between them weighs `diagonal` times this."""
        return (self.target * self.source).sum(dim=1, keepdim=True)

    def degrees(self) -> tuple[Tensor, Tensor]:
        """Degrees of a graph convolution with a self loop, counted in absolute weights.

        Returns:
            `deg_i + 1 = sum_j |r_ij| + 1` of every target node and, since a relation is not symmetric,
            `deg_j + 1 = sum_i |r_ij| + 1` of every source node, each `[K, 1]`.
        """
        num_classes = len(self.target)
        target, source = self.target.new_ones(num_classes), self.target.new_ones(num_classes)
        for start in range(0, num_classes, ROWS):
            rows = slice(start, start + ROWS)
            magnitude = self.weight(rows).abs_()  # [R, K]
            target[rows] += magnitude.sum(dim=1)
            source += magnitude.sum(dim=0)
        return target.unsqueeze(1), source.unsqueeze(1)

    @cached_property
    def adjacency(self) -> Adjacency:
        """What multiplies by the edges."""
        return Adjacency(self)

    @cached_property
    def aggregated(self) -> Tensor:
        """The source nodes, aggregated to target features, shape `[K, d]`."""
        return self.adjacency(self.source)

    @cached_property
    def self_terms(self) -> Tensor:
        """The target nodes' own terms, `x_i / (deg_i + 1)`, shape `[K, d]`."""
        return self.adjacency.self_coefficient * self.target


class Adjacency(nn.Module):
    """Multiplies by the edge coefficients `r_ij / sqrt((deg_i + 1)(deg_j + 1))` of one relation, `[K, K]`.

    Up to K = d that is one dense matrix. Above, the matrix is never formed: off its diagonal it is the product of the
    normalised nodes, `D_t^-1/2 T S^T D_s^-1/2`, and its diagonal is put right afterwards. So a product with `[K, d]`
    costs at most `min(K, 2d) K d` multiply-adds, and memory `min(K, 2d) K`.

    Attributes:
        self_coefficient: Factor of the self term, `1 / (deg_i + 1)`, shape `[K, 1]`. It is no buffer, since it is only
            read before training.
    """

    matrix: Tensor
    left: Tensor
    right: Tensor
    diagonal: Tensor

    def __init__(self, relation: Relation) -> None:
        super().__init__()
        target_degree, source_degree = relation.degrees()
        self.self_coefficient = 1 / target_degree
        num_classes, width = relation.target.shape
        self.dense = num_classes <= width
        if self.dense:
            matrix = relation.weight() / (target_degree * source_degree.t()).sqrt()
            self.register_buffer("matrix", matrix, persistent=False)
        else:
            correction = (relation.diagonal - 1) * relation.diagonal_cosine()
            correction = correction / (target_degree * source_degree).sqrt()
            self.register_buffer("left", relation.target / target_degree.sqrt(), persistent=False)  # [K, d]
            self.register_buffer("right", (relation.source / source_degree.sqrt()).t(), persistent=False)  # [d, K]
            self.register_buffer("diagonal", correction, persistent=False)  # [K, 1]

    def forward(self, x: Tensor) -> Tensor:
        """Source features `[K, d]` to aggregated target features `[K, d]`."""
        if self.dense:
            return self.matrix @ x
        return torch.addmm(self.diagonal * x, self.left, self.right @ x)
