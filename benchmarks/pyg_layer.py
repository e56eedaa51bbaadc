"""Message of one relation as a layer of PyG for any bipartite graph, the reference of `method/layers.py`."""

import torch
from torch import Tensor
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import scatter


class RelationConv(MessagePassing):
    r"""Message of one relation, as an operator over edges.

    .. math::
        m_i = \tanh \left( \frac{x_i W}{\deg_i + 1} + \sum_{j \in \mathcal{N}(i)}
        \frac{r_{ij}}{\sqrt{(\deg_i + 1)(\deg_j + 1)}} \, x_j W + b_i \right)

    where the degree of a node is the sum of its absolute edge weights, of incoming edges for a target and of
    outgoing edges for a source.

    Args:
        self_loop: Whether the message has the self term `x_i W / (deg_i + 1)`.

    Shapes:
        - input: source nodes `[K_s, d]`, target nodes `[K_t, d]`, edge_index `[2, E]`,
          edge_weight `[E]`, weight `[d, d]`, bias `[K_t, d]` or None
        - output: `[K_t, d]`
    """

    def __init__(self, self_loop: bool = True) -> None:
        super().__init__(aggr="add")
        self.self_loop = self_loop

    def forward(
        self,
        x: tuple[Tensor, Tensor],
        edge_index: Tensor,
        edge_weight: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
    ) -> Tensor:
        x_source, x_target = x
        source, target = edge_index
        magnitude = edge_weight.abs()
        source_degree = scatter(magnitude, source, dim_size=x_source.size(0), reduce="sum") + 1
        target_degree = scatter(magnitude, target, dim_size=x_target.size(0), reduce="sum") + 1
        norm = edge_weight / (target_degree[target] * source_degree[source]).sqrt()  # [E]

        # propagate_type: (x: OptPairTensor, norm: Tensor)
        out = self.propagate(edge_index, x=(x_source @ weight, x_target @ weight), norm=norm)
        if self.self_loop:
            out = out + x_target @ weight / target_degree.unsqueeze(-1)
        if bias is not None:
            out = out + bias
        return torch.tanh(out)

    def message(self, x_j: Tensor, norm: Tensor) -> Tensor:
        return norm.unsqueeze(-1) * x_j
