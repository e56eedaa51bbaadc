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
from .relations import NODE_TYPES, RELATIONS, RelationType

if TYPE_CHECKING:  # training does not need torch_geometric, which takes seconds to import
    from torch_geometric.data import HeteroData

ROWS = 512  # rows of a matrix of edges that are in memory at once


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

    def edge_weights(self, relation: RelationType, rows: slice = slice(None)) -> Tensor:
        """Rows of the matrix `r` of a relation, which has a row per target and a column per source node; `[R, K]`."""
        weights = self.x_dict[relation.target][rows] @ self.x_dict[relation.source].t()
        weights.diagonal(offset=rows.start or 0).mul_(relation.diagonal)
        return weights

    def degrees(self, relation: RelationType) -> tuple[Tensor, Tensor]:
        """Degrees of a graph convolution with a self loop, counted in absolute weights: `deg_i + 1 = sum_j |r_ij| + 1`
        of every target node and `deg_j + 1 = sum_i |r_ij| + 1` of every source node, each `[K, 1]`.
        """
        target, source = self.x_dict[relation.target].new_ones(2, self.num_classes)
        for start in range(0, self.num_classes, ROWS):
            rows = slice(start, start + ROWS)
            magnitude = self.edge_weights(relation, rows).abs_()  # [R, K]
            target[rows] += magnitude.sum(dim=1)
            source += magnitude.sum(dim=0)
        return target.unsqueeze(1), source.unsqueeze(1)

    def to_hetero_data(self) -> HeteroData:
        """The graph for PyG. Every edge type has `edge_index [2, E]` (row 0 source, row 1 target), `edge_weight [E]`,
        and no edge that the method has not, those from a node to itself."""
        from torch_geometric.data import HeteroData

        data = HeteroData()
        for node_type, x in self.x_dict.items():
            data[node_type].x = x
        for relation in RELATIONS:
            weight = self.edge_weights(relation)
            edges = torch.ones_like(weight, dtype=torch.bool)
            if relation.source == relation.target:
                edges.fill_diagonal_(False)
            target, source = edges.nonzero(as_tuple=True)
            data[relation.edge_type].edge_index = torch.stack([source, target])
            data[relation.edge_type].edge_weight = weight[target, source]
        return data


class Aggregation(nn.Module):
    """Aggregates what the nodes of one relation send to each target node, before `W`, shape `[K, d]`.

        h_i = x_i / (deg_i + 1) + sum_j A_ij x_j,   A_ij = r_ij / sqrt((deg_i + 1)(deg_j + 1))

    The self term, where the relation has one, is that of the graph's nodes. Up to K = d, `A` is one dense matrix.
    Above, it is never formed: off its diagonal it is the product of the normalised nodes, `D_t^-1/2 T S^T D_s^-1/2`,
    and its diagonal is put right afterwards. So a product with `[K, d]` costs at most `min(K, 2d) K d` multiply-adds,
    and memory `min(K, 2d) K`.
    """

    own: Tensor | None
    left: Tensor  # the dense matrix, or a factor of it, [K, d]
    right: Tensor | None  # the other factor, [d, K]
    diagonal: Tensor  # [K, 1]

    def __init__(self, graph: HeteroGraph, relation: RelationType) -> None:
        super().__init__()
        target, source = graph.x_dict[relation.target], graph.x_dict[relation.source]
        target_degree, source_degree = graph.degrees(relation)
        right = diagonal = None
        if graph.num_classes <= graph.width:
            left = graph.edge_weights(relation) / (target_degree * source_degree.t()).sqrt()
        else:
            cosine = (target * source).sum(dim=1, keepdim=True)  # of each class's own two nodes
            left, right = target / target_degree.sqrt(), (source / source_degree.sqrt()).t()
            diagonal = (relation.diagonal - 1) * cosine / (target_degree * source_degree).sqrt()
        own = 1 / target_degree * target if relation.self_term else None
        for name, buffer in {"own": own, "left": left, "right": right, "diagonal": diagonal}.items():
            self.register_buffer(name, buffer, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`h` from source nodes `[K, d]`."""
        h = self.left @ x if self.right is None else torch.addmm(self.diagonal * x, self.left, self.right @ x)
        return h if self.own is None else h.add_(self.own)


def build_graph(positive: Tensor, negative: Tensor, visual: Tensor) -> HeteroGraph:
    """Connects the three kinds of class nodes, each `[K, d]` features of any norm, by cosine similarity; ValueError if
    their shapes differ or one is not finite."""
    nodes = positive, negative, visual
    if not all(x.isfinite().all() for x in nodes):
        raise ValueError("positive, negative and visual nodes must be finite numbers")
    if len({x.shape for x in nodes}) != 1:
        shapes = [tuple(x.shape) for x in nodes]
        raise ValueError(f"positive, negative and visual nodes must have one shape [K, d], got {shapes}")
    return HeteroGraph({name: F.normalize(x.detach(), dim=-1) for name, x in zip(NODE_TYPES, nodes)})


def class_prototypes(features: Tensor, labels: Tensor, classnames: Sequence[str]) -> Tensor:
    """Visual class prototypes: the mean feature of each class, re-normalised, `[K, d]`, of images `[N, d]` with labels
    `[N]`. Raises UserError if a class has no image; the message names it."""
    count = torch.bincount(labels, minlength=len(classnames))
    if empty := [name for name, number in zip(classnames, count.tolist()) if number == 0]:
        raise UserError(
            f"every class needs a training image for its visual node, but {len(empty)} of {len(classnames)} have none: "
            f"{', '.join(empty[:10])}{', ...' if len(empty) > 10 else ''}"
        )
    total = features.new_zeros(len(classnames), features.shape[1]).index_add_(0, labels, features)
    return F.normalize(total / count.unsqueeze(1), dim=-1)
