"""The heterogeneous graph: its nodes and, by way of `adjacency.py`, its edges. No parameters.

HeGraphAdapter, section 3.1.1; `relations.py` lists the relations. The edge weights come from the initial, frozen CLIP
features and carry no gradient, so a graph is built once per run.

Shapes: K classes, d feature width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.errors import UserError
from .adjacency import Relation
from .relations import NODE_TYPES, RELATIONS, EdgeType, RelationType

if TYPE_CHECKING:  # training does not need torch_geometric, which takes seconds to import
    from torch_geometric.data import HeteroData


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
        """Edge type -> relation matrix, shape `[K, K]`. They are computed anew at every call; training never asks."""
        return {relation.edge_type: self.relation(relation).weight() for relation in RELATIONS}

    @cached_property
    def _relations(self) -> dict[RelationType, Relation]:
        between_nodes = [row for row in RELATIONS if {row.target, row.source} <= self.x_dict.keys()]
        return {row: Relation(self.x_dict[row.target], self.x_dict[row.source], row.diagonal) for row in between_nodes}

    def relation(self, relation: RelationType) -> Relation:
        """The edges of a relation between the nodes of this graph. All who ask share what these work out."""
        return self._relations[relation]

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
            weight = self.relation(relation).weight()
            edges = torch.ones_like(weight, dtype=torch.bool)
            if relation.diagonal == 0.0:
                edges.fill_diagonal_(False)
            target, source = edges.nonzero(as_tuple=True)
            data[relation.edge_type].edge_index = torch.stack([source, target])
            data[relation.edge_type].edge_weight = weight[target, source]
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


def class_prototypes(features: Tensor, labels: Tensor, classnames: list[str] | int) -> Tensor:
    """Visual class prototypes: the mean feature of each class, re-normalised.

    Classes may have unequal numbers of images, in any order.

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
