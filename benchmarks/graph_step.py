"""Forward and backward pass of the graph, against an implementation that rebuilds the graph in every step.

That implementation is a usual graph convolution with dense matrices and autograd. For each relation it computes the
cosines, the degrees and the coefficients A, and then `A (x W)`.
"""

import statistics

import torch
from torch import Tensor

from trainers.hegraph.method.graph import HeteroGraph, build_graph
from trainers.hegraph.method.layers import Adapted, HeteroMessagePassing
from trainers.hegraph.method.options import ModelOptions
from trainers.hegraph.method.relations import RelationType

from .floor import graph_multiply_adds, product_for
from .report import Report
from .tasks import unit_features
from .timing import alternate, ratio

TARGETS = {(100, 512): 1.7, (1000, 1024): 1.1}
SMALL = {"sizes": ((5, 16), (20, 16)), "repeats": 1}


def run(sizes: tuple[tuple[int, int], ...] = tuple(TARGETS), repeats: int = 25) -> Report:
    columns = ["K", "d", "floor, ms", "ours, ms", "ours over the floor", "rebuilt every step, ms", "rebuilt over ours"]
    report = Report("Graph step, forward and backward", columns)
    for num_classes, width in sizes:
        seconds = measure(num_classes, width, repeats)
        times = [1000 * statistics.median(seconds[name]) for name in ("floor", "ours", "rebuilt")]
        over = ratio(seconds["ours"], seconds["floor"])
        floor, ours, slow = times
        row = [num_classes, width, floor, ours, over, slow, ratio(seconds["rebuilt"], seconds["ours"])]
        report.rows.append(row)
        if target := TARGETS.get((num_classes, width)):
            report.at_most(f"over the floor at K={num_classes}, d={width}", over, target)
    return report


def measure(num_classes: int, width: int, repeats: int) -> dict[str, list[float]]:
    """Time a forward and backward pass of the graph.

    Returns:
        Seconds of each repeat for "ours", for the "rebuilt" graph, for the matrix "product" timed beside them, and for
        the "floor", the multiply-adds of our step at the speed of that product.
    """
    nodes = [unit_features(num_classes, width, seed=seed) for seed in range(3)]
    layer = HeteroMessagePassing(build_graph(*nodes), ModelOptions())
    product, scale = product_for(num_classes, width, graph_multiply_adds(num_classes, width))

    def backward(adapted: Adapted) -> None:
        layer.zero_grad()
        (adapted.positive.sum() + adapted.visual_bias.sum()).backward()

    seconds = alternate(
        {
            "ours": lambda: backward(layer()),
            "rebuilt": lambda: backward(rebuilt(build_graph(*nodes), layer)),
            "product": product,
        },
        repeats,
    )
    return seconds | {"floor": [scale * s for s in seconds["product"]]}


def rebuilt(graph: HeteroGraph, layer: HeteroMessagePassing) -> Adapted:
    """Compute the output of the layer from the nodes, without precomputed aggregations."""
    updated = dict(graph.x_dict)
    for target in ("negative", "positive"):
        relations = [r for r in layer.relations if r.target == target]
        messages = [layer.metapath[r.name] * message(graph, layer, r, updated[r.source]) for r in relations]
        updated[target] = torch.stack([graph.x_dict[target], *messages]).sum(dim=0)
    visual = next(r for r in layer.relations if r.target == "visual")
    return Adapted(updated["positive"], message(graph, layer, visual, graph.x_dict["visual"]))


def message(graph: HeteroGraph, layer: HeteroMessagePassing, relation: RelationType, x_source: Tensor) -> Tensor:
    """Compute the message of one relation (Eq. 1), shape `[K, d]`."""
    weight, x_target = layer.weight[relation.target], graph.x_dict[relation.target]
    edges = x_target @ graph.x_dict[relation.source].t()
    edges = torch.where(torch.eye(len(edges)).bool(), relation.diagonal * edges, edges)
    target_degree = edges.abs().sum(dim=1, keepdim=True) + 1
    source_degree = edges.abs().sum(dim=0, keepdim=True) + 1
    out = (edges / (target_degree * source_degree).sqrt()) @ (x_source @ weight)
    if relation.self_term:
        out = out + (x_target @ weight) / target_degree
    return torch.tanh(out + layer.bias[relation.name])
