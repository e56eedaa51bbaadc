"""Message passing along the six relations of the graph. Eq. 1-6 of HeGraphAdapter.

`HeteroMessagePassing` holds the parameters and is what training uses: dense products, with everything that does not
change during training multiplied out once, and no `[K, K]` matrix where K > d. `conv.py` says the same over edges, one
relation at a time; the tests hold the two equal.

Shapes: K classes, d feature width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .graph import (
    EDGE_TYPES,
    NEGATIVE_TO_POSITIVE,
    VISUAL_TO_VISUAL,
    EdgeType,
    HeteroGraph,
    Relation,
)

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "identity": lambda x: x,
}
WEIGHT_INITS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": nn.init.eye_,
    "xavier": nn.init.xavier_uniform_,
    "zero": nn.init.zeros_,
}


class Adapted(NamedTuple):
    """What message passing changes.

    Attributes:
        positive: Updated positive text nodes `X_p'`, shape `[K, d]`.
        visual_bias: One bias per class for its cached images `B`, shape `[K, d]`; None without a
            visual classifier.
    """

    positive: Tensor
    visual_bias: Tensor | None


class Adjacency(nn.Module):
    """Multiplies by the edge coefficients `r_ij / sqrt((deg_i + 1)(deg_j + 1))` of one relation, `[K, K]`.

    Up to K = d that is one dense matrix. Above, it is never formed: off its diagonal it is the product of the
    normalised nodes, `D_t^-1/2 T S^T D_s^-1/2`, and its diagonal is put right afterwards. So a product with `[K, d]`
    costs `min(K, 2d) K d` multiply-adds at most, and memory `min(K, 2d) K`.

    Attributes:
        self_coefficient: Of the self term, `1 / (deg_i + 1)`, shape `[K, 1]`. Not a buffer: it is used before training.
    """

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


class HeteroMessagePassing(nn.Module):
    """The three steps of message passing: negative text, then positive text, then visual nodes.

    Five of the six relations aggregate frozen features. Since `(A x) W = A (x W)`, their `A x` plus self
    term is a constant, the `input` of the relation, and a step costs one `[K, d] x [d, d]` product per
    message; the inputs of a step that share `W` are stacked, and go in one product. Only the relation from the updated
    negative nodes is aggregated anew.

    Args:
        graph: The heterogeneous graph.
        metapath: Weight of each relation but v->v: `beta_pn, beta_vn` (Eq. 2), `alpha_pp, alpha_vp,
            alpha_np` (Eq. 4). A relation with weight 0 is not computed.
        metapath_np_test: `alpha_np` in evaluation mode.
        activation: One of `ACTIVATIONS`.
        weight_per: "target": one `W` per target node type; "relation": one per relation.
        weight_init: How each `W` starts: "identity", "xavier" (uniform) or "zero".
        bias: Whether each message has a trainable bias per class (zero at the start).
        learn_metapath: Whether the meta-path weights are trained.
        visual: Whether visual nodes are aggregated (Eq. 5-6).
    """

    def __init__(
        self,
        graph: HeteroGraph,
        metapath: dict[EdgeType, float],
        metapath_np_test: float,
        activation: str = "tanh",
        weight_per: str = "target",
        weight_init: str = "identity",
        bias: bool = True,
        learn_metapath: bool = False,
        visual: bool = True,
    ) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.weight_per = weight_per
        self.weight_init = weight_init
        self.learn_metapath = learn_metapath
        self.relations = tuple(e for e in EDGE_TYPES if metapath.get(e, 0.0) != 0.0)
        if NEGATIVE_TO_POSITIVE not in self.relations:  # then nobody reads the negative nodes
            self.relations = tuple(e for e in self.relations if e[2] != "negative")
        self.metapath_np_test = metapath_np_test
        if visual:
            self.relations += (VISUAL_TO_VISUAL,)

        for node_type in ("positive", "negative"):
            self.register_buffer(f"x_{node_type}", graph.x_dict[node_type], persistent=False)
        self._register_inputs(graph)

        weights, biases, paths = {}, {}, {}
        for edge_type in self.relations:
            name = relation_name(edge_type)
            weights[self._weight_name(edge_type)] = nn.Parameter(torch.empty(graph.width, graph.width))
            if bias:
                biases[name] = nn.Parameter(torch.empty(graph.num_classes, graph.width))
            if edge_type != VISUAL_TO_VISUAL:
                paths[name] = float(metapath[edge_type])
        self.weight = nn.ParameterDict(weights)
        self.bias = nn.ParameterDict(biases)
        self.metapath = paths
        if learn_metapath:
            self.metapath = nn.ParameterDict({n: nn.Parameter(torch.tensor(w)) for n, w in paths.items()})
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for weight in self.weight.values():
            WEIGHT_INITS[self.weight_init](weight)
        for bias in self.bias.values():
            nn.init.zeros_(bias)

    def parameters_by_role(self) -> dict[str, list[nn.Parameter]]:
        """Every parameter once: "weights" and "biases" (with the meta-path weights) of the text relations, and
        all that belongs to the "visual" relation."""
        visual_bias, visual_weight = relation_name(VISUAL_TO_VISUAL), self._weight_name(VISUAL_TO_VISUAL)
        paths = self.metapath.values() if self.learn_metapath else ()
        return {
            "weights": [weight for name, weight in self.weight.items() if name != visual_weight],
            "biases": [bias for name, bias in self.bias.items() if name != visual_bias] + list(paths),
            "visual": [
                group[name] for group, name in ((self.weight, visual_weight), (self.bias, visual_bias)) if name in group
            ],
        }

    def forward(self) -> Adapted:
        negative = self._receive(self.x_negative, "negative")
        positive = self._receive(self.x_positive, "positive")
        if NEGATIVE_TO_POSITIVE in self.relations:
            inputs = self.self_terms + self.from_negative(negative)
            message = self._message(NEGATIVE_TO_POSITIVE, inputs @ self.weight[self._weight_name(NEGATIVE_TO_POSITIVE)])
            positive = positive + self._path_weight(NEGATIVE_TO_POSITIVE) * message

        visual_bias = None
        if VISUAL_TO_VISUAL in self.relations:
            name = self._weight_name(VISUAL_TO_VISUAL)
            visual_bias = self._message(VISUAL_TO_VISUAL, getattr(self, f"input_{name}") @ self.weight[name])
        return Adapted(positive, visual_bias)

    def _register_inputs(self, graph: HeteroGraph) -> None:
        """What stays the same in every step: the inputs of each `W`, `[m K, d]` for m frozen relations that share it,
        and the adjacency and self terms of the relation whose sources change."""
        inputs: dict[str, list[Tensor]] = {}
        self.shared: dict[str, list[EdgeType]] = {}  # name of a W -> the frozen relations that share it
        for edge_type in self.relations:
            source, _, target = edge_type
            adjacency = Adjacency(graph.relation(edge_type))
            self_terms = adjacency.self_coefficient * graph.x_dict[target]
            if edge_type == NEGATIVE_TO_POSITIVE:
                self.from_negative = adjacency
                self.register_buffer("self_terms", self_terms, persistent=False)
                continue
            aggregated = adjacency(graph.x_dict[source])
            if edge_type != VISUAL_TO_VISUAL:  # the visual bias has no self term (Eq. 5)
                aggregated = aggregated + self_terms
            name = self._weight_name(edge_type)
            inputs.setdefault(name, []).append(aggregated)
            self.shared.setdefault(name, []).append(edge_type)
        for name, rows in inputs.items():
            self.register_buffer(f"input_{name}", torch.cat(rows), persistent=False)

    def _receive(self, x: Tensor, node_type: str) -> Tensor:
        """The nodes with the weighted messages of the frozen relations that they are the target of."""
        for name, edge_types in self.shared.items():
            if edge_types[0][2] != node_type:
                continue
            products = getattr(self, f"input_{name}") @ self.weight[name]  # [m K, d] x [d, d]
            for edge_type, product in zip(edge_types, products.chunk(len(edge_types))):
                x = x + self._path_weight(edge_type) * self._message(edge_type, product)
        return x

    def _message(self, edge_type: EdgeType, product: Tensor) -> Tensor:
        """`act(product + b)`, where the product is that of the aggregated inputs with `W`."""
        name = relation_name(edge_type)
        return self.activation(product + self.bias[name] if name in self.bias else product)

    def _path_weight(self, edge_type: EdgeType) -> Tensor | float:
        name = relation_name(edge_type)
        if edge_type == NEGATIVE_TO_POSITIVE and not self.training and not self.learn_metapath:
            return self.metapath_np_test
        return self.metapath[name]

    def _weight_name(self, edge_type: EdgeType) -> str:
        return edge_type[2] if self.weight_per == "target" else relation_name(edge_type)


def relation_name(edge_type: EdgeType) -> str:
    """("negative", "to", "positive") -> "negative_to_positive", which can name a buffer."""
    return "_".join(edge_type)
