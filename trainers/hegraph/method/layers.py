"""Message passing along the relations of the graph (Eq. 1-6 of HeGraphAdapter).

The message of a relation, from source nodes `X_s` to target nodes `X_t`, each `[K, d]`, is

    M = tanh(H W + B),   H = D_t^-1 X_t + A X_s

with the normalised edge weights `A` and degrees `D_t` (`graph.py`), a weight matrix `W` for each target type and a bias
`B` for each relation. Three groups of relations pass messages in turn: to negative text nodes, to positive text nodes,
and to visual nodes. Each message is added to its target nodes with the meta-path weight of the relation.

`H` is constant where the source nodes are frozen CLIP features. Relations with constant `H` and a common `W` share one
matrix product.

Shapes: K classes, d feature width, m relations of a group.
"""

from collections.abc import Mapping
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .graph import Aggregation, HeteroGraph
from .options import ModelOptions
from .relations import NODE_TYPES, RelationType

WEIGHT_INITS: dict[str, Any] = {"identity": nn.init.eye_, "xavier": nn.init.xavier_uniform_, "zero": nn.init.zeros_}


class Adapted(NamedTuple):
    """Nodes after message passing.

    Attributes:
        positive: Updated positive text nodes `X_p'`, shape `[K, d]`.
        visual_bias: Shift of the cache keys of each class (Eq. 6), shape `[K, d]`; None without a cache.
    """

    positive: Tensor
    visual_bias: Tensor | None


class HeteroMessagePassing(nn.Module):
    """Update the text nodes of a graph by messages, and compute the shift of the cache keys.

    With `text_weights=False`, messages to text nodes have no `W` and are `tanh(B)`.

    Attributes:
        weight: `W` of each target type, shape `[d, d]`.
        bias: `B` of each relation, by its name, shape `[K, d]`.
        metapath: Meta-path weight of each relation that updates nodes, by its name: a float, or a learned parameter.
        aggregation: Module that gives `H` of each group of relations with a `W`, by the name of the first relation.
    """

    x_positive: Tensor
    x_negative: Tensor

    def __init__(self, graph: HeteroGraph, options: ModelOptions) -> None:
        super().__init__()
        self.relations = options.relations
        self.register_buffer("x_positive", graph.x_dict["positive"], persistent=False)
        self.register_buffer("x_negative", graph.x_dict["negative"], persistent=False)

        targets = {r.target for r in self.relations if options.text_weights or not r.weight_key}
        d = graph.width
        self.weight = nn.ParameterDict({t: nn.Parameter(torch.empty(d, d)) for t in NODE_TYPES if t in targets})
        for weight in self.weight.values():
            WEIGHT_INITS[options.weight_init](weight)
        biased = self.relations if options.bias else ()
        self.bias = nn.ParameterDict({r.name: nn.Parameter(torch.zeros(graph.num_classes, d)) for r in biased})

        weights = options.variant_metapath
        weighted = [r for r in self.relations if r.weight_key]
        self.metapath: Mapping[str, float] | nn.ParameterDict = {r.name: weights[r.weight_key] for r in weighted}
        self.metapath_at_test: dict[str, float] = {}
        if options.learn_metapath:
            learned = {name: nn.Parameter(torch.tensor(float(weight))) for name, weight in self.metapath.items()}
            self.metapath = nn.ParameterDict(learned)
        elif options.text_weights:  # without `W`, the test weights are not used
            self.metapath_at_test = {r.name: weights[r.key_at_test] for r in weighted if r.key_at_test in weights}

        self.groups = [tuple(group) for _, group in groupby(self.relations, lambda r: (r.target, r.frozen))]
        self.aggregation = nn.ModuleDict()
        for group in self.groups:
            first = group[0]
            if first.target in self.weight:
                h = [Aggregation(graph, relation) for relation in group]
                self.aggregation[first.name] = ConstantAggregation(graph, group, h) if first.frozen else h[0]

    def forward(self) -> Adapted:
        """Pass all messages, starting from the nodes of the graph."""
        x = {"positive": self.x_positive, "negative": self.x_negative}
        visual_bias = None
        for group in self.groups:
            for relation, message in zip(group, self.messages(group, x)):
                if not relation.weight_key:  # Eq. 5
                    visual_bias = message
                    continue
                weight = self.metapath[relation.name]
                nodes = x[relation.target]
                if not self.training:
                    weight = self.metapath_at_test.get(relation.name, weight)
                if isinstance(weight, Tensor):  # learned (Eq. 2 and 4)
                    x[relation.target] = nodes + weight * message
                else:  # in one pass over memory
                    x[relation.target] = nodes.add(message, alpha=weight)
        return Adapted(x["positive"], visual_bias)

    def messages(self, group: tuple[RelationType, ...], x: Mapping[str, Tensor]) -> list[Tensor]:
        """Messages `tanh(H W + B)` of a group of relations (Eq. 1, 3 and 5), each `[K, d]`."""
        relation = group[0]
        biases = [self.bias[r.name] for r in group if r.name in self.bias]
        if relation.target not in self.weight:
            return [torch.tanh(bias) for bias in biases]
        h = self.aggregation[relation.name](x.get(relation.source))
        products = (h @ self.weight[relation.target]).chunk(len(group))
        if not biases:
            return [torch.tanh(product) for product in products]
        return [torch.tanh(product + bias) for product, bias in zip(products, biases)]

    def extra_repr(self) -> str:
        """List the relations with their meta-path weights."""
        weights = {name: f", weight {float(weight):.4g}" for name, weight in self.metapath.items()}
        return "\n".join(f"{r.source} -> {r.target}{weights.get(r.name, '')}" for r in self.relations)


class ConstantAggregation(nn.Module):
    """Precomputed aggregation `H` of m relations with frozen source nodes, stacked to `[m K, d]`."""

    h: Tensor

    def __init__(self, graph: HeteroGraph, group: tuple[RelationType, ...], aggregations: list[Aggregation]) -> None:
        super().__init__()
        h = [of(graph.x_dict[relation.source]) for of, relation in zip(aggregations, group)]
        self.register_buffer("h", torch.cat(h), persistent=False)

    def forward(self, _: Tensor | None) -> Tensor:
        """Return `H`, which no node changes."""
        return self.h
