"""The ONNX graph of a trained model, traced by torch's TorchScript exporter (`dynamo=False`).

It gives all our models in every torch from 2.4 to 2.13. In torch 2.4 the newer exporter ignores names, opset and
dynamic axes; in later ones it takes longer, and it always needs the package onnxscript.

Shapes: B images, K classes, N cached images, d feature width, H x W the input resolution of the backbone.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..method.cache import FoldedClassifier, affinities
from ..utils.errors import UserError, first_line

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 17
LARGEST_FILE = 2**31  # bytes: protobuf's limit
LOGITS, PROBABILITIES = "logits", "probabilities"


class Head(nn.Module):
    """A folded classifier and the temperature that its logits are divided by: features to logits and probabilities.

    It computes what `FoldedClassifier.logits` computes, with the cache in one piece: a batch needs `B * N` floats.
    """

    weights: Tensor
    bias: Tensor | None
    keys: Tensor | None
    labels: Tensor
    key_weights: Tensor | None

    def __init__(self, classifier: FoldedClassifier, temperature: float) -> None:
        super().__init__()
        keys = classifier.keys if classifier.keys is not None and len(classifier.keys) else None
        self.num_classes, self.temperature = classifier.num_classes, temperature
        self.alpha, self.beta = classifier.alpha, classifier.beta
        self.register_buffer("weights", classifier.weights.t().contiguous())  # [d, K]
        self.register_buffer("bias", classifier.bias)
        self.register_buffer("keys", None if keys is None else keys.t().contiguous())  # [d, N]
        self.register_buffer("labels", None if keys is None else classifier.labels)
        self.register_buffer("key_weights", None if keys is None else classifier.key_weights)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Unit-norm features `[B, d]` to logits and probabilities, each `[B, K]`."""
        logits = features @ self.weights
        if self.bias is not None:
            logits = logits + self.bias
        if self.keys is not None:
            logits = logits + self.alpha * self._cache_sums(features, self.keys)
        return logits, (logits / self.temperature).softmax(dim=1)

    def _cache_sums(self, features: Tensor, keys: Tensor) -> Tensor:
        """The affinities of each class, added up: `[B, K]`."""
        of_images = affinities(features @ keys, self.beta)  # [B, N]
        if self.key_weights is not None:
            of_images = of_images * self.key_weights
        batch = features.shape[0]  # not len(features), which tracing would turn into a constant
        return features.new_zeros(batch, self.num_classes).scatter_add(1, self.labels.expand(batch, -1), of_images)


class Full(nn.Module):
    """The image tower of an open_clip model in float32, and the head: pixels to logits and probabilities."""

    model: Any  # open_clip's model classes have no type in common
    head: Head

    def __init__(self, model: Any, head: Head) -> None:
        super().__init__()
        self.model, self.head = model, head

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images `[B, 3, H, W]` to logits and probabilities, each `[B, K]`."""
        return self.head(F.normalize(self.model.encode_image(pixels), dim=-1))


def trace(module: Head | Full, inputs: Tensor, name: str) -> ModelProto:
    """The ONNX graph of a module, whose batch is of any size; `inputs`, called `name`, are two rows or more.

    Raises:
        UserError: If an operation of the module has no form in ONNX, or its weights are too large for a file.
    """
    import onnx

    hint = "; --part head exports the classifier without it" if isinstance(module, Full) else ""
    tower = module.model.visual.parameters() if isinstance(module, Full) else ()
    if (size := sum(weight.numel() * weight.element_size() for weight in tower)) >= LARGEST_FILE:
        raise UserError(f"the image tower has {size / 1e9:.1f} GB, but an ONNX file can have 2 GB at most{hint}")
    file, batch = io.BytesIO(), {0: "batch"}
    try:
        with _tracing():
            torch.onnx.export(
                module.eval(),
                (inputs,),
                file,  # type: ignore[arg-type]  # the TorchScript exporter takes a file as well as a path
                dynamo=False,
                opset_version=OPSET,
                input_names=[name],
                output_names=[LOGITS, PROBABILITIES],
                dynamic_axes={name: batch, LOGITS: batch, PROBABILITIES: batch},
            )
    except (RuntimeError, TypeError, ValueError) as error:  # the exporter's own errors are RuntimeErrors
        raise UserError(f"the model has no form in ONNX: {first_line(error)}{hint}") from error
    return onnx.load_model_from_string(file.getvalue())


@contextmanager
def _tracing() -> Iterator[None]:
    """Without torch's fused attention, which ONNX does not have, and without warnings, which are for developers."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def halve(graph: ModelProto) -> ModelProto:
    """The graph with its weights stored as float16, each behind a cast to float32, in which the graph still computes.

    It does not compute in float16: what onnxruntime's own converter makes of a ViT in that way crashes the optimiser of
    onnxruntime 1.32 on a CPU, and logits reach 100, where neighbours in float16 are 0.06 apart.
    """
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for weight in graph.graph.initializer:
        if weight.data_type == TensorProto.FLOAT:
            name, stored = weight.name, f"{weight.name}.float16"
            with np.errstate(over="ignore"):  # what becomes infinite is found when the file is compared with torch
                weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), stored))
            casts.append(helper.make_node("Cast", [stored], [name], name=f"{name}.cast", to=TensorProto.FLOAT))
    nodes = [*casts, *graph.graph.node]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    return graph
