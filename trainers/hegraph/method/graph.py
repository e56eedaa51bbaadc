"""The heterogeneous graph: three node types, six relations, their degrees. No parameters.

HeGraphAdapter, section 3.1.1. The edge weights come from the initial, frozen CLIP features and
carry no gradient, so a graph is built once per run.

Shapes: K classes, d feature width. Every relation is a `[K, K]` matrix, row = target node,
column = source node. No such matrix is kept: it is worked out from the nodes, in blocks of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.errors import UserError

if TYPE_CHECKING:  # training does not need torch_geometric, which takes seconds to import
    from torch_geometric.data import HeteroData

EdgeType = tuple[str, str, str]  # (source, relation, target), as in PyG

NODE_TYPES = ("positive", "negative", "visual")

POSITIVE_TO_POSITIVE: EdgeType = ("positive", "to", "positive")
VISUAL_TO_POSITIVE: EdgeType = ("visual", "to", "positive")
NEGATIVE_TO_POSITIVE: EdgeType = ("negative", "to", "positive")
POSITIVE_TO_NEGATIVE: EdgeType = ("positive", "to", "negative")
VISUAL_TO_NEGATIVE: EdgeType = ("visual", "to", "negative")
VISUAL_TO_VISUAL: EdgeType = ("visual", "to", "visual")

# The factor on the diagonal (a class's node to its own node of the other type). Within one node
# type there is no such edge: the self term of the message stands for it. A negative prompt says the
# opposite of its class, so relations that touch a negative node carry the dissimilarity.
DIAGONAL_FACTOR: dict[EdgeType, float] = {
    POSITIVE_TO_POSITIVE: 0.0,
    VISUAL_TO_POSITIVE: 1.0,
    NEGATIVE_TO_POSITIVE: -1.0,
    POSITIVE_TO_NEGATIVE: -1.0,
    VISUAL_TO_NEGATIVE: -1.0,
    VISUAL_TO_VISUAL: 0.0,
}
EDGE_TYPES = tuple(DIAGONAL_FACTOR)

ROWS = 512  # of a relation matrix that are in memory at once


@dataclass(frozen=True)
class Relation:
    """The edges from every source node to every target node, weighted by cosine.

    Attributes:
        target, source: Unit-norm node features, each `[K, d]`.
        diagonal: Factor on the diagonal.
    """

    target: Tensor
    source: Tensor
    diagonal: float

    def weight(self, rows: slice = slice(None)) -> Tensor:
        """Those rows of the relation matrix, shape `[R, K]`."""
        cosine = self.target[rows] @ self.source.t()
        cosine.diagonal(offset=rows.start or 0).mul_(self.diagonal)
        return cosine

    def diagonal_cosine(self) -> Tensor:
        """Cosine of each class's own two nodes, shape `[K, 1]`; its weight is `diagonal` times this."""
        return (self.target * self.source).sum(dim=1, keepdim=True)

    def degrees(self) -> tuple[Tensor, Tensor]:
        """Degrees of a graph convolution with a self loop.

        They count absolute weights: `deg_i + 1 = sum_j |r_ij| + 1` on the target side and, since a relation is
        not symmetric, `deg_j + 1 = sum_i |r_ij| + 1` on the source side.

        Returns:
            Of the targets and of the sources, each `[K, 1]`.
        """
        num_classes = len(self.target)
        target, source = self.target.new_ones(num_classes), self.target.new_ones(num_classes)
        for start in range(0, num_classes, ROWS):
            rows = slice(start, start + ROWS)
            magnitude = self.weight(rows).abs_()  # [R, K]
            target[rows] += magnitude.sum(dim=1)
            source += magnitude.sum(dim=0)
        return target.unsqueeze(1), source.unsqueeze(1)


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
        """Edge type -> relation matrix, shape `[K, K]`, made anew: six of them, which training never asks for."""
        return {edge_type: self.relation(edge_type).weight() for edge_type in EDGE_TYPES}

    def relation(self, edge_type: EdgeType) -> Relation:
        source, _, target = edge_type
        return Relation(self.x_dict[target], self.x_dict[source], DIAGONAL_FACTOR[edge_type])

    def to_hetero_data(self) -> HeteroData:
        """Returns the graph as `torch_geometric.data.HeteroData`.

        Every edge type gets `edge_index [2, E]` (row 0 source, row 1 target) and `edge_weight [E]`.
        Edges without a weight in the method (the diagonals of p->p and v->v) are left out.
        """
        from torch_geometric.data import HeteroData

        data = HeteroData()
        for node_type, x in self.x_dict.items():
            data[node_type].x = x
        for edge_type, weight in self.edge_weight_dict.items():
            edges = torch.ones_like(weight, dtype=torch.bool)
            if DIAGONAL_FACTOR[edge_type] == 0.0:
                edges.fill_diagonal_(False)
            target, source = edges.nonzero(as_tuple=True)
            data[edge_type].edge_index = torch.stack([source, target])
            data[edge_type].edge_weight = weight[target, source]
        return data


def build_graph(positive: Tensor, negative: Tensor, visual: Tensor) -> HeteroGraph:
    """Connects the three kinds of class nodes by cosine similarity.

    Args:
        positive: Positive text features, shape `[K, d]`.
        negative: Negative text features, shape `[K, d]`.
        visual: Visual class prototypes, shape `[K, d]`.

    Raises:
        ValueError: If the three shapes differ.
    """
    shapes = [tuple(x.shape) for x in (positive, negative, visual)]
    if len(set(shapes)) != 1:
        raise ValueError(f"positive, negative and visual nodes must have one shape [K, d], got {shapes}")
    nodes = (positive, negative, visual)
    x_dict = {name: F.normalize(x.detach(), dim=-1) for name, x in zip(NODE_TYPES, nodes)}
    return HeteroGraph(x_dict)


def class_means(features: Tensor, labels: Tensor, classnames: list[str] | int) -> Tensor:
    """Visual class prototypes: the mean feature of each class, re-normalised.

    Classes may have any number of images. Nothing is assumed about their order.

    Args:
        features: Image features, shape `[N, d]`.
        labels: Class of each image, shape `[N]`, in `0 ... K-1`.
        classnames: The K class names, or K itself.

    Returns:
        Unit-norm prototypes, shape `[K, d]`.

    Raises:
        UserError: If a class has no image; the message names it.
    """
    num_classes = classnames if isinstance(classnames, int) else len(classnames)
    count = torch.bincount(labels, minlength=num_classes)
    empty = (count == 0).nonzero().flatten().tolist()
    if empty:
        names = [str(k) if isinstance(classnames, int) else classnames[k] for k in empty]
        raise UserError(
            f"every class needs at least one training image to have a visual node, but {len(names)} of "
            f"{num_classes} have none: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
        )
    total = features.new_zeros(num_classes, features.shape[1]).index_add_(0, labels, features)
    return F.normalize(total / count.unsqueeze(1), dim=-1)
