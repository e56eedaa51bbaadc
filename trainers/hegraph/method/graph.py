"""The heterogeneous graph: nodes, the edges of each relation, and products with them. No parameters.

HeGraphAdapter, section 3.1.1; `relations.py` lists the relations. The edge weights come from the initial, frozen CLIP
features and carry no gradient, so a graph is built once per run.

Shapes: K classes, d feature width, N images, R rows of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..utils.errors import UserError
from .relations import NODE_TYPES, RELATIONS, EdgeType, RelationType

if TYPE_CHECKING:  # training does not need torch_geometric, which takes seconds to import
    from torch_geometric.data import HeteroData

ROWS = 512  # rows of a matrix of edges that are in memory at once


@dataclass(frozen=True)
class Edges:
    """The edges of one relation: a `[K, K]` matrix `r` of cosines, a row per target and a column per source node.

    Attributes:
        target, source: Unit-norm node features, each `[K, d]`.
        diagonal: Factor on the diagonal, see `RelationType.diagonal`.
    """

    target: Tensor
    source: Tensor
    diagonal: float

    def weight(self, rows: slice = slice(None)) -> Tensor:
        """The given rows of the matrix, shape `[R, K]`."""
        cosine = self.target[rows] @ self.source.t()
        cosine.diagonal(offset=rows.start or 0).mul_(self.diagonal)
        return cosine

    def degrees(self) -> tuple[Tensor, Tensor]:
        """Degrees of a graph convolution with a self loop, counted in absolute weights.

        Returns:
            `deg_i + 1 = sum_j |r_ij| + 1` of every target node and, since the matrix is not symmetric,
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


class Adjacency(nn.Module):
    """Multiplies by the edge coefficients `A_ij = r_ij / sqrt((deg_i + 1)(deg_j + 1))` of one relation, `[K, K]`.

    Up to K = d that is one dense matrix. Above, the matrix is never formed: off its diagonal it is the product of the
    normalised nodes, `D_t^-1/2 T S^T D_s^-1/2`, and its diagonal is put right afterwards. So a product with `[K, d]`
    costs at most `min(K, 2d) K d` multiply-adds, and memory `min(K, 2d) K`.

    Attributes:
        own: The self terms of the target nodes, `x_i / (deg_i + 1)`, shape `[K, d]`.
    """

    own: Tensor
    matrix: Tensor
    left: Tensor
    right: Tensor
    diagonal: Tensor

    def __init__(self, edges: Edges) -> None:
        super().__init__()
        target_degree, source_degree = edges.degrees()
        buffers = {"own": 1 / target_degree * edges.target}
        self.dense = len(edges.target) <= edges.target.shape[1]
        if self.dense:
            buffers["matrix"] = edges.weight() / (target_degree * source_degree.t()).sqrt()
        else:
            cosine = (edges.target * edges.source).sum(dim=1, keepdim=True)  # of each class's own two nodes
            buffers["left"] = edges.target / target_degree.sqrt()  # [K, d]
            buffers["right"] = (edges.source / source_degree.sqrt()).t()  # [d, K]
            buffers["diagonal"] = (edges.diagonal - 1) * cosine / (target_degree * source_degree).sqrt()  # [K, 1]
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Source features `[K, d]` to aggregated target features `A x`, `[K, d]`."""
        if self.dense:
            return self.matrix @ x
        return torch.addmm(self.diagonal * x, self.left, self.right @ x)


@dataclass(frozen=True)
class HeteroGraph:
    """Nodes and weighted edges.

    Attributes:
        x_dict: Node type -> unit-norm node features, shape `[K, d]`.
    """

    x_dict: dict[str, Tensor]

    @property
    def num_classes(self) -> int:
        return self.x_dict["positive"].shape[0]

    @property
    def width(self) -> int:
        return self.x_dict["positive"].shape[1]

    @property
    def edge_weight_dict(self) -> dict[EdgeType, Tensor]:
        """Edge type -> its edges as a matrix, shape `[K, K]`. They are computed at every call; training never asks."""
        return {relation.edge_type: self.edges(relation).weight() for relation in RELATIONS}

    def edges(self, relation: RelationType) -> Edges:
        """The edges of a relation between the nodes of this graph."""
        return Edges(self.x_dict[relation.target], self.x_dict[relation.source], relation.diagonal)

    def to_hetero_data(self) -> HeteroData:
        """The graph as `torch_geometric.data.HeteroData`.

        Every edge type gets `edge_index [2, E]` (row 0 source, row 1 target) and `edge_weight [E]`. The edges that the
        method has not, those from a node to itself, are left out.
        """
        from torch_geometric.data import HeteroData

        data = HeteroData()
        for node_type, x in self.x_dict.items():
            data[node_type].x = x
        for relation in RELATIONS:
            weight = self.edges(relation).weight()
            edges = torch.ones_like(weight, dtype=torch.bool)
            if relation.diagonal == 0.0:
                edges.fill_diagonal_(False)
            target, source = edges.nonzero(as_tuple=True)
            data[relation.edge_type].edge_index = torch.stack([source, target])
            data[relation.edge_type].edge_weight = weight[target, source]
        return data


def build_graph(positive: Tensor, negative: Tensor, visual: Tensor) -> HeteroGraph:
    """Connects the three kinds of class nodes, each `[K, d]` features of any norm, by cosine similarity.

    Raises:
        ValueError: If the three shapes differ.
    """
    nodes = positive, negative, visual
    shapes = [tuple(x.shape) for x in nodes]
    if len(set(shapes)) != 1:
        raise ValueError(f"positive, negative and visual nodes must have one shape [K, d], got {shapes}")
    return HeteroGraph({name: F.normalize(x.detach(), dim=-1) for name, x in zip(NODE_TYPES, nodes)})


def class_prototypes(features: Tensor, labels: Tensor, classnames: Sequence[str]) -> Tensor:
    """Visual class prototypes: the mean feature of each class, re-normalised.

    Args:
        features: Image features, shape `[N, d]`.
        labels: Class of each image, shape `[N]`, in `0 ... K-1`.
        classnames: The K class names.

    Returns:
        Unit-norm prototypes, shape `[K, d]`.

    Raises:
        UserError: If a class has no image; the message names it.
    """
    count = torch.bincount(labels, minlength=len(classnames))
    empty = [classnames[k] for k in (count == 0).nonzero().flatten().tolist()]
    if empty:
        raise UserError(
            f"every class needs at least one training image to have a visual node, but {len(empty)} of "
            f"{len(classnames)} have none: {', '.join(empty[:10])}{', ...' if len(empty) > 10 else ''}"
        )
    total = features.new_zeros(len(classnames), features.shape[1]).index_add_(0, labels, features)
    return F.normalize(total / count.unsqueeze(1), dim=-1)
