"""Training step, against its multiply-adds alone and against a layer of PyG."""

import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from trainers.hegraph.method.cache import Logits, adapter_loss, cache_affinities, cache_logits, text_logits
from trainers.hegraph.method.graph import HeteroGraph, build_graph, class_prototypes
from trainers.hegraph.method.model import HeGraphModel
from trainers.hegraph.method.relations import RelationType
from trainers.hegraph.method.training.batches import Batch

from .floor import multiply_adds, product_for
from .pyg_layer import RelationConv
from .report import Report
from .tasks import layer_of_the_paper, random_bank, start_training
from .timing import alternate, ratio

SMALL = {"num_classes": 10, "width": 16, "repeats": 1}


def run(num_classes: int = 1000, width: int = 1024, shots: int = 16, repeats: int = 25, pyg_repeats: int = 1) -> Report:
    bank = random_bank(num_classes, width, shots)
    training = start_training(bank, layer_of_the_paper())
    batch = next(training.data.epoch(1))
    count = multiply_adds(num_classes, width, len(bank.train_labels), len(batch.features))
    product, scale = product_for(num_classes, width, count)
    seconds = alternate({"step": lambda: training.step(batch), "product": product}, repeats)
    floor = [scale * s for s in seconds["product"]]
    over = ratio(seconds["step"], floor)
    graph = build_graph(
        bank.text_positive, bank.text_negative, class_prototypes(bank.cache_keys(), bank.train_labels, bank.classnames)
    )
    step = pyg_step(training.model, graph, batch)
    slow = alternate({"step": lambda: training.step(batch), "pyg": step}, pyg_repeats)
    against = ratio(slow["pyg"], slow["step"])

    report = Report(
        f"Training step: K = {num_classes}, d = {width}, {shots} shots, batch {len(batch.features)}",
        ["implementation", "ms", "ratio"],
        [
            ["ours", 1000 * statistics.median(seconds["step"]), 1.0],
            [f"floor: {count / 1e9:.1f} G multiply-adds", 1000 * statistics.median(floor), over],
            ["layer of PyG", 1000 * statistics.median(slow["pyg"]), against],
        ],
    )
    report.at_most("step over its floor", over, 1.25)
    report.at_least("PyG reference over step", against, 20.0)
    return report


def pyg_step(model: HeGraphModel, graph: HeteroGraph, batch: Batch) -> Callable[[], None]:
    """Return a function that trains the model by one step with the layer of `pyg_layer.py` and autograd."""
    data, layer = graph.to_hetero_data(), model.layers
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    convs = {True: RelationConv(), False: RelationConv(self_loop=False)}

    def send(relation: RelationType, x_source: Tensor | None = None) -> Tensor:
        edges, x_source = data[relation.edge_type], data[relation.source].x if x_source is None else x_source
        nodes, conv = (x_source, data[relation.target].x), convs[relation.self_term]
        weight, bias = layer.weight[relation.target], layer.bias[relation.name]
        return conv(nodes, edges.edge_index, edges.edge_weight, weight, bias)

    def step() -> None:
        negative, positive = data["negative"].x, data["positive"].x
        for relation in layer.relations:
            if relation.target == "negative":
                negative = negative + layer.metapath[relation.name] * send(relation)
        for relation in layer.relations:
            if relation.target == "positive":
                x_source = None if relation.frozen else negative
                positive = positive + layer.metapath[relation.name] * send(relation, x_source)
        [visual_relation] = [relation for relation in layer.relations if relation.target == "visual"]
        keys = model.cache_keys + send(visual_relation)[model.cache_labels]
        affinities = cache_affinities(batch.features, keys, model.options.beta_c)
        affinities = affinities.scatter(1, batch.positions.unsqueeze(1), 0.0)
        visual = cache_logits(affinities, model.cache_labels, model.num_classes)
        logits = Logits(text_logits(batch.features, positive, model.logit_scale), visual)
        loss = adapter_loss(logits, batch.labels, 1.0, 100.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step
