"""Message passing along the relations of the graph. Eq. 1-6 of HeGraphAdapter.

A message is `m_i = tanh( x_i W / (deg_i + 1) + sum_j A_ij x_j W + b_i )`, with one `W` for each type of node that
receives, and one `b` for each relation. Where the source nodes never change, `x_i / (deg_i + 1) + sum_j A_ij x_j` does
not either: it is worked out once, and those that share a `W` are stacked, so that they take one product. `conv.py` has
the same over edges, one relation at a time, and the tests hold the two equal.

Shapes: K classes, d feature width, m relations that share one `W`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .graph import Adjacency, HeteroGraph
from .relations import NODE_TYPES, RelationType, reads_updated_nodes, relations_in_use

WEIGHT_INITS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": nn.init.eye_,
    "xavier": nn.init.xavier_uniform_,
    "zero": nn.init.zeros_,
}


class Adapted(NamedTuple):
    """What message passing changes.

    Attributes:
        positive: Updated positive text nodes `X_p'`, shape `[K, d]`.
        visual_bias: What moves the cached images of each class, `B`, shape `[K, d]`; None without a cache classifier.
    """

    positive: Tensor
    visual_bias: Tensor | None


class HeteroMessagePassing(nn.Module):
    """Passes messages along the relations, step by step: to negative text, positive text, then visual nodes.

    Args:
        graph: The heterogeneous graph.
        metapath: Key of each meta-path weight -> its value, `beta_pn, beta_vn` (Eq. 2), `alpha_pp, alpha_vp,
            alpha_np` (Eq. 4). A relation of weight 0 is not computed. A key that ends in `_TEST` holds the weight in
            evaluation mode.
        weight_init: How each `W` starts, one of `WEIGHT_INITS`.
        bias: Whether each message has a trainable bias per class, which starts at zero.
        learn_metapath: Whether the meta-path weights are trained.
        visual: Whether visual nodes are aggregated (Eq. 5-6).
        text_weights: Whether messages to text nodes have a `W`; without one, each is `tanh(b)`.
    """

    x_positive: Tensor
    x_negative: Tensor

    def __init__(
        self,
        graph: HeteroGraph,
        metapath: Mapping[str, float],
        weight_init: str = "identity",
        bias: bool = True,
        learn_metapath: bool = False,
        visual: bool = True,
        text_weights: bool = True,
    ) -> None:
        super().__init__()
        used = relations_in_use(metapath, visual, text_weights)
        self.relations = tuple(sorted(used, key=lambda relation: relation.step))
        self.register_buffer("x_positive", graph.x_dict["positive"], persistent=False)
        self.register_buffer("x_negative", graph.x_dict["negative"], persistent=False)

        with_weight = [r for r in self.relations if text_weights or not r.weight_key]
        targets = [name for name in NODE_TYPES if name in {r.target for r in with_weight}]
        width, shape = graph.width, (graph.num_classes, graph.width)
        self.weight = nn.ParameterDict({name: nn.Parameter(torch.empty(width, width)) for name in targets})
        self.bias = nn.ParameterDict({r.name: nn.Parameter(torch.zeros(shape)) for r in self.relations if bias})
        for weight in self.weight.values():
            WEIGHT_INITS[weight_init](weight)

        self.live = nn.ModuleDict()  # the edges of relations whose sources an earlier step updates
        self.frozen: dict[str, list[RelationType]] = {}  # the others, by their targets
        inputs: dict[str, list[Tensor]] = {}
        for relation in with_weight:
            adjacency = Adjacency(graph.edges(relation))
            if reads_updated_nodes(relation):
                self.live[relation.name] = adjacency
                continue
            constant = adjacency(graph.x_dict[relation.source])
            constant = constant + adjacency.own if relation.self_term else constant
            inputs.setdefault(relation.target, []).append(constant)
            self.frozen.setdefault(relation.target, []).append(relation)
        for target, stacked in inputs.items():
            self.register_buffer(f"to_{target}", torch.cat(stacked), persistent=False)  # [m K, d]

        weighted = [r for r in self.relations if r.weight_key]
        weights = {r.name: float(metapath[r.weight_key]) for r in weighted}
        self.metapath: Mapping[str, float] | nn.ParameterDict = weights
        self.metapath_at_test: dict[str, float] = {}
        if learn_metapath:
            self.metapath = nn.ParameterDict(
                {name: nn.Parameter(torch.tensor(weight)) for name, weight in weights.items()}
            )
        elif text_weights:  # a bias alone is no message to weigh less
            keys = {r.name: f"{r.weight_key}_TEST" for r in weighted}
            self.metapath_at_test = {name: float(metapath[key]) for name, key in keys.items() if key in metapath}

    def forward(self) -> Adapted:
        """Passes all messages, starting from the nodes of the graph."""
        x = {"positive": self.x_positive, "negative": self.x_negative}
        visual_bias = None
        products: dict[str, Tensor] = {}  # of inputs and W, by relation, each [K, d]
        for target, relations in self.frozen.items():
            stacked = (getattr(self, f"to_{target}") @ self.weight[target]).chunk(len(relations))
            products.update({relation.name: product for relation, product in zip(relations, stacked)})
        for relation in self.relations:  # Eq. 1-6, step by step
            if relation.name in self.live:
                adjacency = self.live[relation.name]
                inputs = adjacency.own + adjacency(x[relation.source])
                products[relation.name] = inputs @ self.weight[relation.target]
            message = self._message(products.get(relation.name), self.bias.get(relation.name))
            if relation.weight_key:  # Eq. 2 and 4
                x[relation.target] = self._add(x[relation.target], message, relation)
            else:  # Eq. 5
                visual_bias = message
        return Adapted(x["positive"], visual_bias)

    def parameters_by_role(self) -> dict[str, list[nn.Parameter]]:
        """Every parameter once: "weights" and "biases" (with the meta-path weights) of the relations that update nodes,
        and all that belongs to the "visual" relation."""
        paths = list(self.metapath.values()) if isinstance(self.metapath, nn.ParameterDict) else []
        biases = {r.name: self.bias[r.name] for r in self.relations if r.name in self.bias}
        moves_cache = {name for r in self.relations if not r.weight_key for name in (r.target, r.name)}
        named = [*self.weight.items(), *biases.items()]
        return {
            "weights": [weight for name, weight in self.weight.items() if name not in moves_cache],
            "biases": [bias for name, bias in biases.items() if name not in moves_cache] + paths,
            "visual": [parameter for name, parameter in named if name in moves_cache],
        }

    def _message(self, product: Tensor | None, bias: Tensor | None) -> Tensor:
        """`tanh(product + bias)`, shape `[K, d]`."""
        if product is None or bias is None:
            only = product if bias is None else bias
            assert only is not None  # a message has a W or a bias
            return torch.tanh(only)
        return (product + bias).tanh_()  # in place, which saves a pass over the message

    def _add(self, nodes: Tensor, message: Tensor, relation: RelationType) -> Tensor:
        """Nodes plus the message times its meta-path weight, `[K, d]`."""
        weight = self.metapath[relation.name]
        if not self.training:
            weight = self.metapath_at_test.get(relation.name, weight)
        if isinstance(weight, Tensor):
            return nodes + weight * message
        return nodes.add(message, alpha=weight)  # in one pass over memory
