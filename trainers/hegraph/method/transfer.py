"""HeGraphAdapter on classes that it was not trained on (CoCoOp's protocol: cross-dataset, base to new).

The `W` matrices transfer, and learned meta-path weights. A class-wise bias and a visual node belong to a class that was
seen in training, so the target's graph has neither: its positive and negative text nodes alone exchange messages.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .graph import HeteroGraph
from .model import HeGraphAdapter, message_passing, metapath_weights


@torch.no_grad()
def transfer_class_features(model: HeGraphAdapter, positive: Tensor, negative: Tensor) -> Tensor:
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
    metapath = {edge_type: w for edge_type, w in metapath_weights(model.options).items() if edge_type[0] != "visual"}
    layers = message_passing(graph, metapath, model.options, bias=False, visual=False).to(positive.device)
    trained = model.layers.state_dict()
    layers.load_state_dict({name: trained[name] for name in layers.state_dict()})
    return layers.eval()().positive
