"""Message passing along the relations of the graph. Eq. 1-6 of HeGraphAdapter.

`HeteroMessagePassing` holds the parameters and is what training uses: dense products, with everything that does not
change during training multiplied out once, and no `[K, K]` matrix where K > d. `conv.py` computes the same over edges,
one relation at a time, and the tests hold the two equal.

Shapes: K classes, d feature width, m relations that share one `W`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from .adjacency import Adjacency
from .graph import HeteroGraph
from .relations import RelationType, reads_updated_nodes, relations_in_use

# In place, which saves a pass over the message: no gradient needs what an activation was applied to
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh_,
    "relu": torch.relu_,
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
        visual_bias: One bias per class for its cached images, `B`, shape `[K, d]`; None without a cache classifier.
    """

    positive: Tensor
    visual_bias: Tensor | None


class Messages(nn.Module):
    """Messages that share one `W`. `forward` gives each relation with what its activation is applied to, `[K, d]`.

    Attributes:
        relations: Their relations, whose messages are passed in one step.
    """

    relations: tuple[RelationType, ...]


class FrozenMessages(Messages):
    """Messages whose source nodes never change, of relations that share one `W`.

    Since `(A x) W = A (x W)`, what `W` is applied to, `A x` plus the self term, is a constant. The constants of all the
    relations are stacked, so that they take one product.

    Args:
        relations: The m relations.
        inputs: What `W` is applied to for each of them, shape `[K, d]`.
    """

    inputs: Tensor

    def __init__(self, relations: Sequence[RelationType], inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.relations = tuple(relations)
        self.register_buffer("inputs", torch.cat(list(inputs)), persistent=False)  # [m K, d]

    def forward(self, weight: Tensor | None, x_dict: Mapping[str, Tensor]) -> Iterator[tuple[RelationType, Tensor]]:
        """Each relation with its product, shape `[K, d]`; `x_dict` is not read."""
        assert weight is not None
        products = self.inputs @ weight  # [m K, d] x [d, d]
        return zip(self.relations, products.chunk(len(self.relations)))


class LiveMessage(Messages):
    """The message of a relation whose source nodes an earlier step has updated; they are aggregated in every step.

    Args:
        relation: The relation.
        adjacency: Of its edges.
        self_terms: Of its target nodes, shape `[K, d]`.
    """

    self_terms: Tensor

    def __init__(self, relation: RelationType, adjacency: Adjacency, self_terms: Tensor) -> None:
        super().__init__()
        self.relations = (relation,)
        self.adjacency = adjacency
        self.register_buffer("self_terms", self_terms, persistent=False)

    def forward(self, weight: Tensor | None, x_dict: Mapping[str, Tensor]) -> Iterator[tuple[RelationType, Tensor]]:
        """The relation with its product, shape `[K, d]`.

        Args:
            weight: `W`, shape `[d, d]`.
            x_dict: Node type -> node features as they are now, shape `[K, d]`.
        """
        assert weight is not None
        [relation] = self.relations
        inputs = self.self_terms + self.adjacency(x_dict[relation.source])
        yield relation, inputs @ weight


class ConstantMessages(Messages):
    """Messages without a `W`, which read no node: all that a class receives is its bias.

    Args:
        relations: The relations of one step.
        shape: `[K, d]`.
    """

    zero: Tensor

    def __init__(self, relations: Sequence[RelationType], shape: tuple[int, int]) -> None:
        super().__init__()
        self.relations = tuple(relations)
        self.register_buffer("zero", torch.zeros(()).expand(shape), persistent=False)

    def forward(self, weight: Tensor | None, x_dict: Mapping[str, Tensor]) -> Iterator[tuple[RelationType, Tensor]]:
        """Each relation with zeros, shape `[K, d]`; neither argument is read."""
        return ((relation, self.zero) for relation in self.relations)


class HeteroMessagePassing(nn.Module):
    """Passes messages along the relations, step by step: to negative text, positive text, then visual nodes.

    Args:
        graph: The heterogeneous graph.
        metapath: Key of each meta-path weight -> its value, `beta_pn, beta_vn` (Eq. 2), `alpha_pp, alpha_vp,
            alpha_np` (Eq. 4). A relation with weight 0 is not computed. A key that ends in `_TEST` holds the weight in
            evaluation mode.
        activation: One of `ACTIVATIONS`.
        weight_per: "target": one `W` per target node type; "relation": one per relation.
        weight_init: How each `W` starts, one of `WEIGHT_INITS`.
        bias: Whether each message has a trainable bias per class, which starts at zero.
        learn_metapath: Whether the meta-path weights are trained.
        visual: Whether visual nodes are aggregated (Eq. 5-6).
        text_weights: Whether messages to text nodes have a `W`; without one, each is its bias alone.
    """

    def __init__(
        self,
        graph: HeteroGraph,
        metapath: Mapping[str, float],
        activation: str = "tanh",
        weight_per: str = "target",
        weight_init: str = "identity",
        bias: bool = True,
        learn_metapath: bool = False,
        visual: bool = True,
        text_weights: bool = True,
    ) -> None:
        super().__init__()
        self.text_weights = text_weights
        self.activation = ACTIVATIONS[activation]
        self.weight_per = weight_per
        self.weight_init = weight_init
        self.learn_metapath = learn_metapath
        self.relations = relations_in_use(metapath, visual, text_weights)
        self.node_types = tuple(name for name in graph.x_dict if name != "visual")
        for node_type in self.node_types:
            self.register_buffer(f"x_{node_type}", graph.x_dict[node_type], persistent=False)
        steps = sorted({r.step for r in self.relations})
        self.messages = nn.ModuleList(messages for step in steps for messages in self._messages(graph, step))
        matrices = {
            self.weight_name(r): torch.empty(graph.width, graph.width) for r in self.relations if self._reads(r)
        }
        self.weight = nn.ParameterDict({name: nn.Parameter(matrix) for name, matrix in matrices.items()})
        shape = (graph.num_classes, graph.width)
        self.bias = nn.ParameterDict({r.name: nn.Parameter(torch.empty(shape)) for r in self.relations if bias})
        weighted = [r for r in self.relations if r.weight_key]
        paths = {r.name: float(metapath[r.weight_key]) for r in weighted}
        self.metapath_at_test = {
            r.name: float(metapath[f"{r.weight_key}_TEST"])
            for r in weighted
            if text_weights and f"{r.weight_key}_TEST" in metapath  # a bias alone is no message to weigh less
        }
        self.metapath: Mapping[str, float] | nn.ParameterDict = paths
        if learn_metapath:
            self.metapath = nn.ParameterDict({n: nn.Parameter(torch.tensor(w)) for n, w in paths.items()})
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for weight in self.weight.values():
            WEIGHT_INITS[self.weight_init](weight)
        for bias in self.bias.values():
            nn.init.zeros_(bias)

    def parameters_by_role(self) -> dict[str, list[nn.Parameter]]:
        """Every parameter once: "weights" and "biases" (with the meta-path weights) of the relations that update nodes,
        and all that belongs to the "visual" relation."""
        visual = [r for r in self.relations if not r.weight_key]
        visual_weights, visual_biases = {self.weight_name(r) for r in visual}, {r.name for r in visual}
        paths: list[nn.Parameter] = list(self.metapath.values()) if isinstance(self.metapath, nn.ParameterDict) else []
        return {
            "weights": [weight for name, weight in self.weight.items() if name not in visual_weights],
            "biases": [bias for name, bias in self.bias.items() if name not in visual_biases] + paths,
            "visual": [weight for name, weight in self.weight.items() if name in visual_weights]
            + [bias for name, bias in self.bias.items() if name in visual_biases],
        }

    def forward(self) -> Adapted:
        """Passes all messages, starting from the graph's nodes."""
        x_dict = {node_type: getattr(self, f"x_{node_type}") for node_type in self.node_types}
        visual_bias = None
        for messages in cast(Sequence[Messages], self.messages):  # step by step
            first = messages.relations[0]
            weight = self.weight[self.weight_name(first)] if self._reads(first) else None
            for relation, product in messages(weight, x_dict):
                received = self._activate(relation, product)
                if relation.weight_key:
                    x_dict[relation.target] = self._receive(x_dict[relation.target], relation, received)
                else:
                    visual_bias = received
        return Adapted(x_dict["positive"], visual_bias)

    def weight_name(self, relation: RelationType) -> str:
        """The name of the `W` that the relation's messages are multiplied by."""
        return relation.target if self.weight_per == "target" else relation.name

    def _reads(self, relation: RelationType) -> bool:
        """Whether the messages of a relation read nodes, through a `W`."""
        return self.text_weights or not relation.weight_key

    def _messages(self, graph: HeteroGraph, step: int) -> list[Messages]:
        """The messages of a step: those of frozen nodes together where they share `W`, in the order of the table."""
        frozen: dict[str, list[tuple[RelationType, Tensor]]] = {}
        live: list[Messages] = []
        here = [r for r in self.relations if r.step == step]
        if constant := [r for r in here if not self._reads(r)]:
            return [ConstantMessages(constant, (graph.num_classes, graph.width))]
        for relation in here:
            edges = graph.relation(relation)
            if reads_updated_nodes(relation):
                live.append(LiveMessage(relation, edges.adjacency, edges.self_terms))
                continue
            inputs = edges.aggregated + edges.self_terms if relation.self_term else edges.aggregated
            frozen.setdefault(self.weight_name(relation), []).append((relation, inputs))
        return [*(FrozenMessages(*zip(*shared)) for shared in frozen.values()), *live]

    def _activate(self, relation: RelationType, product: Tensor) -> Tensor:
        """The message `act(product + b)`."""
        bias = self.bias.get(relation.name)
        return self.activation(product.clone() if bias is None else product + bias)

    def _receive(self, nodes: Tensor, relation: RelationType, received: Tensor) -> Tensor:
        """The nodes plus the weighted message, `[K, d]`; in one pass over memory where the weight is a number."""
        weight = self._path_weight(relation)
        if isinstance(weight, Tensor):
            return nodes + weight * received
        return nodes.add(received, alpha=weight)

    def _path_weight(self, relation: RelationType) -> Tensor | float:
        if not self.training and not self.learn_metapath and relation.name in self.metapath_at_test:
            return self.metapath_at_test[relation.name]
        return self.metapath[relation.name]
