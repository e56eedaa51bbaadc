"""Message passing along the relations of the graph. Eq. 1-6 of HeGraphAdapter.

A message is `m_i = tanh( h_i W + b_i )` with `h_i = x_i / (deg_i + 1) + sum_j A_ij x_j`. There is one `W` for each type
of node that receives, and one `b` for each relation. Where the source nodes never change, `h` is worked out once, and
relations that share a `W` are stacked, so that they take one product. `conv.py` has the same over edges, one relation
at a time, and the tests hold the two equal.

Shapes: K classes, d feature width, m relations of a stack.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .graph import Adjacency, HeteroGraph
from .options import ModelOptions
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
        visual_bias: What moves the cached images of each class, `B`, shape `[K, d]`; None without a cache.
    """

    positive: Tensor
    visual_bias: Tensor | None


class HeteroMessagePassing(nn.Module):
    """Passes messages along the relations, step by step: to negative text, positive text, then visual nodes.

    A relation of weight 0 is left out. Without `text_weights`, a message to a text node is `tanh(b)`.

    Attributes:
        relations: Those in use, in the order of their steps.
        weight: `W` of each type of node that receives, shape `[d, d]`.
        bias: `b` of each relation, by its name, shape `[K, d]`.
        metapath: Weight of each relation that updates nodes, by its name: a number, or a parameter if it is learned.
    """

    x_positive: Tensor
    x_negative: Tensor

    def __init__(self, graph: HeteroGraph, options: ModelOptions) -> None:
        super().__init__()
        weights = options.variant_metapath
        used = relations_in_use(weights, options.has_cache, options.text_weights)
        self.relations = tuple(sorted(used, key=lambda relation: relation.step))
        self.register_buffer("x_positive", graph.x_dict["positive"], persistent=False)
        self.register_buffer("x_negative", graph.x_dict["negative"], persistent=False)

        receivers = {r.target for r in self.relations if options.text_weights or not r.weight_key}
        num_classes, d = graph.num_classes, graph.width
        self.weight = nn.ParameterDict({t: nn.Parameter(torch.empty(d, d)) for t in NODE_TYPES if t in receivers})
        for weight in self.weight.values():
            WEIGHT_INITS[options.weight_init](weight)
        biased = self.relations if options.bias else ()
        self.bias = nn.ParameterDict({r.name: nn.Parameter(torch.zeros(num_classes, d)) for r in biased})

        weighted = [r for r in self.relations if r.weight_key]
        self.metapath: Mapping[str, float] | nn.ParameterDict = {r.name: weights[r.weight_key] for r in weighted}
        self.metapath_at_test: dict[str, float] = {}
        if options.learn_metapath:
            learned = {name: nn.Parameter(torch.tensor(float(weight))) for name, weight in self.metapath.items()}
            self.metapath = nn.ParameterDict(learned)
        elif options.text_weights:  # a bias alone is no message to weigh less
            keys = {r.name: f"{r.weight_key}_TEST" for r in weighted}
            self.metapath_at_test = {name: weights[key] for name, key in keys.items() if key in weights}

        def alike(relation: RelationType) -> tuple[str, str]:
            """Neighbours that are alike are stacked; a relation whose `h` changes stays alone."""
            return relation.target, relation.name if reads_updated_nodes(relation) else ""

        self.stacks = [tuple(stack) for _, stack in groupby(self.relations, alike)]
        self.live = nn.ModuleDict()  # the edges of relations whose `h` changes
        for number, stack in enumerate(self.stacks):
            if stack[0].target in self.weight:
                self._prepare(number, stack, graph)

    def _prepare(self, number: int, stack: Sequence[RelationType], graph: HeteroGraph) -> None:
        """Works out the `h` of a stack, `[m K, d]`, or the edges that it takes in every step."""
        fixed = []
        for relation in stack:
            adjacency = Adjacency(graph.edges(relation))
            if reads_updated_nodes(relation):
                self.live[relation.name] = adjacency
                return
            aggregated = adjacency(graph.x_dict[relation.source])
            fixed.append(aggregated + adjacency.own if relation.self_term else aggregated)
        self.register_buffer(f"fixed_{number}", torch.cat(fixed), persistent=False)

    def forward(self) -> Adapted:
        """Passes all messages, starting from the nodes of the graph."""
        x, visual_bias = {"positive": self.x_positive, "negative": self.x_negative}, None
        for number, stack in enumerate(self.stacks):
            for relation, message in zip(stack, self._messages(number, stack, x)):
                if relation.weight_key:  # Eq. 2 and 4
                    x[relation.target] = self._add(x[relation.target], message, relation)
                else:  # Eq. 5
                    visual_bias = message
        return Adapted(x["positive"], visual_bias)

    def _messages(self, number: int, stack: Sequence[RelationType], x: Mapping[str, Tensor]) -> Sequence[Tensor]:
        """The messages of a stack (Eq. 1, 3 and 5), each `[K, d]`."""
        biases = [self.bias[r.name] for r in stack if r.name in self.bias]
        target, name = stack[0].target, stack[0].name
        if target not in self.weight:
            return [torch.tanh(bias) for bias in biases]
        if name in self.live:
            adjacency = self.live[name]
            h = adjacency(x[stack[0].source]).add_(adjacency.own)
        else:
            h = getattr(self, f"fixed_{number}")
        if not biases:
            return torch.tanh(h @ self.weight[target]).chunk(len(stack))
        return _Messages.apply(h, self.weight[target], *biases)

    def _add(self, nodes: Tensor, message: Tensor, relation: RelationType) -> Tensor:
        """Nodes plus the message times its meta-path weight, `[K, d]`."""
        weight = self.metapath[relation.name]
        if not self.training:
            weight = self.metapath_at_test.get(relation.name, weight)
        if isinstance(weight, Tensor):
            return nodes + weight * message
        return nodes.add(message, alpha=weight)  # in one pass over memory

    def parameters_by_role(self) -> dict[str, list[nn.Parameter]]:
        """Every parameter once: "weights" and "biases" (with the meta-path weights) of the relations that update nodes,
        and all that belongs to the "visual" relation."""
        moves_cache = {name for r in self.relations if not r.weight_key for name in (r.target, r.name)}
        named = [*self.weight.items(), *self.bias.items()]
        return {
            "weights": [weight for name, weight in self.weight.items() if name not in moves_cache],
            "biases": [bias for name, bias in self.bias.items() if name not in moves_cache]
            + [weight for weight in self.metapath.values() if isinstance(weight, nn.Parameter)],
            "visual": [parameter for name, parameter in named if name in moves_cache],
        }


class _Messages(torch.autograd.Function):
    """`tanh(h W + b)` of a stack, one `b` for each relation; in place, which saves passes over memory."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, *biases: Tensor) -> tuple[Tensor, ...]:
        stacked = h @ weight  # [m K, d]
        messages = stacked.chunk(len(biases))
        for message, bias in zip(messages, biases):
            message.add_(bias)
        stacked.tanh_()
        ctx.save_for_backward(h, weight, stacked)
        return messages

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        h, weight, stacked = ctx.saved_tensors
        grad = torch.empty_like(stacked)  # of h W, and so of the biases
        of_biases = grad.chunk(len(grads))
        for given, message, out in zip(grads, stacked.chunk(len(grads)), of_biases):
            torch.ops.aten.tanh_backward.grad_input(given, message, grad_input=out)
        of_h = grad @ weight.t() if ctx.needs_input_grad[0] else None
        return of_h, h.t() @ grad, *of_biases
