"""Message passing along the six relations of the graph. Eq. 1-6 of HeGraphAdapter.

`HeteroMessagePassing` holds the parameters and is what training uses: dense matrices, with everything that does not
change during training multiplied out once. `conv.py` says the same over edges, one relation at a time; the tests hold
the two equal.

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
    POSITIVE_TO_NEGATIVE,
    POSITIVE_TO_POSITIVE,
    VISUAL_TO_NEGATIVE,
    VISUAL_TO_POSITIVE,
    VISUAL_TO_VISUAL,
    EdgeType,
    HeteroGraph,
    degree_normalise,
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


class HeteroMessagePassing(nn.Module):
    """The three steps of message passing: negative text, then positive text, then visual nodes.

    Five of the six relations aggregate frozen features. Since `(A x) W = A (x W)`, their `A x` plus self
    term is a constant, the `input` of the relation, and a step costs one `[K, d] x [d, d]` product per
    message. Only the relation from the updated negative nodes is aggregated anew.

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
        for edge_type in self.relations:
            self._register_inputs(graph, edge_type)

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
        negative = self.x_negative
        for edge_type in (POSITIVE_TO_NEGATIVE, VISUAL_TO_NEGATIVE):
            if edge_type in self.relations:
                negative = negative + self._path_weight(edge_type) * self._message(edge_type)

        positive = self.x_positive
        for edge_type in (POSITIVE_TO_POSITIVE, VISUAL_TO_POSITIVE):
            if edge_type in self.relations:
                positive = positive + self._path_weight(edge_type) * self._message(edge_type)
        if NEGATIVE_TO_POSITIVE in self.relations:
            name = relation_name(NEGATIVE_TO_POSITIVE)
            adjacency, own = getattr(self, f"adjacency_{name}"), getattr(self, f"input_{name}")
            message = self._message(NEGATIVE_TO_POSITIVE, own + adjacency @ negative)
            positive = positive + self._path_weight(NEGATIVE_TO_POSITIVE) * message

        visual_bias = self._message(VISUAL_TO_VISUAL) if VISUAL_TO_VISUAL in self.relations else None
        return Adapted(positive, visual_bias)

    def _register_inputs(self, graph: HeteroGraph, edge_type: EdgeType) -> None:
        source, _, target = edge_type
        adjacency, self_coefficient = degree_normalise(graph.edge_weight_dict[edge_type])
        inputs = adjacency @ graph.x_dict[source]  # [K, d]
        if edge_type == VISUAL_TO_VISUAL:
            pass  # the visual bias has no self term (Eq. 5)
        elif edge_type == NEGATIVE_TO_POSITIVE:  # its sources change: keep the adjacency, not its product
            inputs = self_coefficient * graph.x_dict[target]
            self.register_buffer(f"adjacency_{relation_name(edge_type)}", adjacency, persistent=False)
        else:
            inputs = inputs + self_coefficient * graph.x_dict[target]
        self.register_buffer(f"input_{relation_name(edge_type)}", inputs, persistent=False)

    def _message(self, edge_type: EdgeType, inputs: Tensor | None = None) -> Tensor:
        name = relation_name(edge_type)
        inputs = getattr(self, f"input_{name}") if inputs is None else inputs
        out = inputs @ self.weight[self._weight_name(edge_type)]  # [K, d] x [d, d]
        if name in self.bias:
            out = out + self.bias[name]
        return self.activation(out)

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
