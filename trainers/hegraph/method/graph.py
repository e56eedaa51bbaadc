"""Heterogeneous graph of class nodes, and aggregation over the edges of a relation (HeGraphAdapter, section 3.1.1).

Each class has a positive text node, a negative text node and a visual node. `relations.py` lists the relations between
them. Edge weights are cosines of frozen CLIP features and carry no gradient, so a run builds the graph once. Nothing
here has trainable parameters.

Shapes: K classes, d feature width, N images, R rows of a block.
"""

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

EDGE_ROWS = 512  # rows of the [K, K] edge matrix in memory at once


@dataclass(frozen=True)
class HeteroGraph:
    """Class nodes of three types, and the edge weights between them.

    Attributes:
        x_dict: Node type -> unit-norm node features, shape `[K, d]`.

    Examples:
        >>> import torch
        >>> from hegraph import build_graph
        >>> graph = build_graph(positive=torch.randn(3, 8), negative=torch.randn(3, 8), visual=torch.randn(3, 8))
        >>> graph.num_classes, graph.width, list(graph.x_dict)
        (3, 8, ['positive', 'negative', 'visual'])
    """

    x_dict: dict[str, Tensor]

    @property
    def num_classes(self) -> int:
        return self.x_dict["positive"].shape[0]

    @property
    def width(self) -> int:
        return self.x_dict["positive"].shape[1]

    def with_positive(self, text: Tensor) -> "HeteroGraph":
        """Graph with other positive text nodes, shape `[K, d]` and of any norm."""
        return HeteroGraph({**self.x_dict, "positive": F.normalize(text, dim=-1)})

    def edge_weights(self, relation: RelationType, rows: slice = slice(None)) -> Tensor:
        """Edge weights `r_ij` of a relation, with target nodes in rows and source nodes in columns, shape `[R, K]`."""
        weights = self.x_dict[relation.target][rows] @ self.x_dict[relation.source].t()
        weights.diagonal(offset=rows.start or 0).mul_(relation.diagonal)
        return weights

    def degrees(self, relation: RelationType) -> tuple[Tensor, Tensor]:
        """Degrees of the target and of the source nodes, in absolute edge weights with a self loop, each `[K, 1]`.

        `deg_i + 1 = sum_j |r_ij| + 1` for target nodes and `deg_j + 1 = sum_i |r_ij| + 1` for source nodes.
        """
        target, source = self.x_dict[relation.target].new_ones(2, self.num_classes)
        for start in range(0, self.num_classes, EDGE_ROWS):
            rows = slice(start, start + EDGE_ROWS)
            magnitude = self.edge_weights(relation, rows).abs_()  # [R, K]
            target[rows] += magnitude.sum(dim=1)
            source += magnitude.sum(dim=0)
        return target.unsqueeze(1), source.unsqueeze(1)

    def to_hetero_data(self) -> "HeteroData":
        """Convert the graph to PyG's `HeteroData`, without edges from a node to itself.

        Each edge type has `edge_index` `[2, E]` (row 0: source, row 1: target) and `edge_weight` `[E]`. Needs
        torch_geometric.
        """
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
    """Neighbourhood aggregation of one relation, before the weight matrix is applied (the sum of Eq. 1).

        h_i = x_i / (deg_i + 1) + sum_j A_ij x_j,   A_ij = r_ij / sqrt((deg_i + 1)(deg_j + 1))

    The self term `x_i` uses the initial target nodes. Up to K = d, `A` is one dense matrix. Above, `A` is factored:
    off the diagonal it is the product of the normalised nodes, `D_t^-1/2 T S^T D_s^-1/2`, and `forward` corrects the
    diagonal. A product with `[K, d]` thus costs at most `min(K, 2d) K d` multiply-adds and memory `min(K, 2d) K`.
    """

    self_term: Tensor | None  # x_i / (deg_i + 1), [K, d]
    left: Tensor  # A, [K, K], or its left factor, [K, d]
    right: Tensor | None  # its right factor, [d, K]
    diagonal: Tensor  # correction of the diagonal, [K, 1]

    def __init__(self, graph: HeteroGraph, relation: RelationType) -> None:
        super().__init__()
        target = graph.x_dict[relation.target]
        source = graph.x_dict[relation.source]
        target_degree, source_degree = graph.degrees(relation)
        right = diagonal = None
        if graph.num_classes <= graph.width:
            left = graph.edge_weights(relation) / (target_degree * source_degree.t()).sqrt()
        else:
            cosine = (target * source).sum(dim=1, keepdim=True)  # of the two nodes of each class
            left = target / target_degree.sqrt()
            right = (source / source_degree.sqrt()).t()
            diagonal = (relation.diagonal - 1) * cosine / (target_degree * source_degree).sqrt()
        self_term = 1 / target_degree * target if relation.self_term else None
        for name, buffer in {"self_term": self_term, "left": left, "right": right, "diagonal": diagonal}.items():
            self.register_buffer(name, buffer, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Aggregate source nodes `x` `[K, d]`; returns `h`, shape `[K, d]`."""
        h = self.left @ x if self.right is None else torch.addmm(self.diagonal * x, self.left, self.right @ x)
        return h if self.self_term is None else h.add_(self.self_term)


def build_graph(positive: Tensor, negative: Tensor, visual: Tensor) -> HeteroGraph:
    """Build the graph from three node matrices of shape `[K, d]` and any norm.

    Raises:
        ValueError: If the shapes differ or a value is not finite.

    Examples:
        >>> from hegraph import build_graph, load_backbone
        >>> backbone = load_backbone("mini")
        >>> positive = backbone.encode_text(["a photo of a cat", "a photo of a dog"])
        >>> negative = backbone.encode_text(["a photo of no cat", "a photo of no dog"])
        >>> graph = build_graph(positive, negative, visual=positive)  # without images of the classes
        >>> graph.x_dict["negative"].shape
        torch.Size([2, 64])
    """
    nodes = positive, negative, visual
    if not all(x.isfinite().all() for x in nodes):
        raise ValueError("positive, negative and visual nodes must be finite numbers")
    if len({x.shape for x in nodes}) != 1 or positive.dim() != 2:
        shapes = [tuple(x.shape) for x in nodes]
        raise ValueError(f"positive, negative and visual nodes must have one shape [K, d], got {shapes}")
    return HeteroGraph({name: F.normalize(x.detach(), dim=-1) for name, x in zip(NODE_TYPES, nodes)})


def class_prototypes(features: Tensor, labels: Tensor, classnames: Sequence[str]) -> Tensor:
    """Visual class prototypes: the normalised mean feature of each class, shape `[K, d]`.

    Args:
        features: Image features, shape `[N, d]`.
        labels: Class of each image, shape `[N]`.
        classnames: Names of the K classes.

    Raises:
        UserError: If a class has no image; the message names the class.
    """
    count = torch.bincount(labels, minlength=len(classnames))
    empty = [name for name, number in zip(classnames, count.tolist()) if number == 0]
    if empty:
        problem = f"{len(empty)} of {len(classnames)} have none"
        listed = f"{', '.join(empty[:10])}{', ...' if len(empty) > 10 else ''}"
        raise UserError(f"every class needs a training image for its visual node, but {problem}: {listed}")
    return F.normalize(sum_by_class(features, labels, len(classnames)) / count.unsqueeze(1), dim=-1)


def sum_by_class(values: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Sum the values `[N, ...]` of images by class, shape `[K, ...]`; 0 for a class without images."""
    return values.new_zeros(num_classes, *values.shape[1:]).index_add(0, labels, values)
