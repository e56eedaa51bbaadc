"""Message passing along the relations of the graph. Eq. 1-6 of HeGraphAdapter.

A message is `m_i = tanh( h_i W + b_i )` with `h_i = x_i / (deg_i + 1) + sum_j A_ij x_j`. There is one `W` for each type
of node that receives, and one `b` for each relation. Where the source nodes are frozen, `h` is worked out once.
Relations that stand beside each other in the table and share a `W` are a stack, which takes one product.

`benchmarks/pyg_layer.py` has the same over edges, one relation at a time, and the tests hold the two equal.

Shapes: K classes, d feature width, m relations of a stack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .graph import Aggregation, HeteroGraph
from .options import ModelOptions
from .relations import NODE_TYPES, RelationType

WEIGHT_INITS: dict[str, Any] = {"identity": nn.init.eye_, "xavier": nn.init.xavier_uniform_, "zero": nn.init.zeros_}


class Adapted(NamedTuple):
    """What message passing changes.

    Attributes:
        positive: Updated positive text nodes `X_p'`, shape `[K, d]`.
        visual_bias: What moves the cached images of each class, `B`, shape `[K, d]`; None without a cache.
    """

    positive: Tensor
    visual_bias: Tensor | None


class HeteroMessagePassing(nn.Module):
    """Passes messages along the relations in use: to negative text, positive text, then visual nodes.

    Without `text_weights`, a message to a text node is `tanh(b)`.

    Attributes:
        weight: `W` of each type of node that receives, shape `[d, d]`.
        bias: `b` of each relation, by its name, shape `[K, d]`.
        metapath: Weight of each relation that updates nodes, by its name: a number, or a parameter if it is learned.
        live: What aggregates anew in every step, by the name of the relation, where source nodes are not frozen.
    """

    x_positive: Tensor
    x_negative: Tensor

    def __init__(self, graph: HeteroGraph, options: ModelOptions) -> None:
        super().__init__()
        self.relations = options.relations
        self.register_buffer("x_positive", graph.x_dict["positive"], persistent=False)
        self.register_buffer("x_negative", graph.x_dict["negative"], persistent=False)

        receivers = {r.target for r in self.relations if options.text_weights or not r.weight_key}
        d = graph.width
        self.weight = nn.ParameterDict({t: nn.Parameter(torch.empty(d, d)) for t in NODE_TYPES if t in receivers})
        for weight in self.weight.values():
            WEIGHT_INITS[options.weight_init](weight)
        biased = self.relations if options.bias else ()
        self.bias = nn.ParameterDict({r.name: nn.Parameter(torch.zeros(graph.num_classes, d)) for r in biased})

        weights, weighted = options.variant_metapath, [r for r in self.relations if r.weight_key]
        self.metapath: Mapping[str, float] | nn.ParameterDict = {r.name: weights[r.weight_key] for r in weighted}
        self.metapath_at_test: dict[str, float] = {}
        if options.learn_metapath:
            learned = {name: nn.Parameter(torch.tensor(float(weight))) for name, weight in self.metapath.items()}
            self.metapath = nn.ParameterDict(learned)
        elif options.text_weights:  # a bias alone is no message to weigh less
            self.metapath_at_test = {r.name: weights[r.key_at_test] for r in weighted if r.key_at_test in weights}

        self.stacks = [tuple(stack) for _, stack in groupby(self.relations, lambda r: (r.target, r.frozen))]
        self.live = nn.ModuleDict()
        for number, stack in enumerate(self.stacks):
            if stack[0].target in self.weight:
                h = [Aggregation(graph, relation) for relation in stack]
                if stack[0].frozen:
                    fixed = torch.cat([of(graph.x_dict[relation.source]) for of, relation in zip(h, stack)])
                    self.register_buffer(f"fixed_{number}", fixed, persistent=False)  # [m K, d]
                else:
                    self.live[stack[0].name] = h[0]

    def forward(self) -> Adapted:
        """Passes all messages, starting from the nodes of the graph."""
        x, visual_bias = {"positive": self.x_positive, "negative": self.x_negative}, None
        for number, stack in enumerate(self.stacks):
            for relation, message in zip(stack, self._messages(number, stack, x)):
                if not relation.weight_key:  # Eq. 5
                    visual_bias = message
                    continue
                weight, nodes = self.metapath[relation.name], x[relation.target]
                if not self.training:
                    weight = self.metapath_at_test.get(relation.name, weight)
                learned = isinstance(weight, Tensor)  # else the sum of Eq. 2 or 4 takes one pass over memory
                x[relation.target] = nodes + weight * message if learned else nodes.add(message, alpha=weight)
        return Adapted(x["positive"], visual_bias)

    def _messages(self, number: int, stack: Sequence[RelationType], x: Mapping[str, Tensor]) -> Sequence[Tensor]:
        """The messages of a stack (Eq. 1, 3 and 5), each `[K, d]`."""
        biases, relation = [self.bias[r.name] for r in stack if r.name in self.bias], stack[0]
        if relation.target not in self.weight:
            return [torch.tanh(bias) for bias in biases]
        h = getattr(self, f"fixed_{number}") if relation.frozen else self.live[relation.name](x[relation.source])
        return _Messages.apply(h, self.weight[relation.target], len(stack), *biases)


class _Messages(torch.autograd.Function):
    """`tanh(h W + b)` of a stack, one `b` for each of its `m` relations or none; in place, which saves passes over
    memory."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, m: int, *biases: Tensor) -> tuple[Tensor, ...]:
        stacked = h @ weight  # [m K, d]
        messages = stacked.chunk(m)
        for message, bias in zip(messages, biases):
            message.add_(bias)
        stacked.tanh_()
        ctx.save_for_backward(h, weight, stacked)
        ctx.biased = bool(biases)
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
        return of_h, h.t() @ grad, None, *(of_biases if ctx.biased else ())
