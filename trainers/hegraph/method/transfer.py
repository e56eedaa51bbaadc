"""The model on classes that it was not trained on (CoCoOp's protocol: cross-dataset, base to new).

The matrices `W` and learned meta-path weights transfer. A class-wise bias and a visual node belong to a class that was
seen in training, so the graph of the new classes has neither: only positive and negative text nodes exchange messages.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .graph import HeteroGraph
from .model import HeGraphModel, message_passing
from .relations import RELATIONS


@torch.no_grad()
def transfer_class_features(model: HeGraphModel, positive: Tensor, negative: Tensor) -> Tensor:
    """Refined positive text features of classes that were not trained on.

    Args:
        model: Trained on other classes.
        positive, negative: Text nodes of the new classes, each `[K, d]`.

    Returns:
        `X_p'`, shape `[K, d]`.
    """
    if model.layers is None:
        return positive
    graph = HeteroGraph({"positive": positive, "negative": negative})
    unseen = {relation.weight_key for relation in RELATIONS if relation.source == "visual"}
    metapath = {key: weight for key, weight in model.options.variant_metapath.items() if key not in unseen}
    layers = message_passing(graph, metapath, model.options, bias=False, visual=False).to(positive.device)
    trained = model.layers.state_dict()
    layers.load_state_dict({name: trained[name] for name in layers.state_dict()})
    return layers.eval()().positive
