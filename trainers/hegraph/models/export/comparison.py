"""Comparison of a smaller file, in int8 or with weights in float16, with float32: by the features of images.

Equal classes alone do not show that a smaller file is sound: test accuracy may fall by points while they stay equal.

Shapes: M images, K classes, d feature width, H x W the input resolution of the backbone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...utils.errors import UserError, first_line
from ..saved import SavedModel

if TYPE_CHECKING:
    from onnx import ModelProto

LEAST_COSINE = 0.99  # smallest cosine between the features of an image in the two formats
BATCH = 16  # images
WEIGHTS, KEYS = "weights", "keys"  # tensors of `onnx_file.Head`
ADVICE = {"int8": "calibrate on more images of your data, or use --fp16", "float16": "leave out --fp16"}


class Comparison(NamedTuple):
    """Comparison of a smaller file with float32.

    Attributes:
        images: Number of images, M.
        cosine: Smallest cosine between the features of an image.
        agreement: Fraction of images with the same predicted class, or the same predicted labels.
    """

    images: int
    cosine: float
    agreement: float


def classifier_product(graph: ModelProto) -> Any:
    """Find the node that multiplies features by class weights."""
    [product] = [node for node in graph.graph.node if node.op_type == "MatMul" and node.input[1] == WEIGHTS]
    return product


def add_features_output(graph: ModelProto) -> None:
    """Make the unit-norm features `[B, d]` the last output of a graph."""
    from onnx import TensorProto, helper

    features = classifier_product(graph).input[0]
    graph.graph.output.append(helper.make_tensor_value_info(features, TensorProto.FLOAT, None))


def compare(
    model: SavedModel, graph: ModelProto, smaller: ModelProto, pixels: np.ndarray, number_format: str
) -> Comparison:
    """Compare two graphs, whose last outputs are features, on images `[M, 3, H, W]`.

    Args:
        model: The model.
        graph: Its graph in float32.
        smaller: Its graph in another number format.
        pixels: The images.
        number_format: Name of the format.

    Raises:
        UserError: If a cosine is below `LEAST_COSINE`, or features are not finite.
    """
    logits, _, features = run(graph, pixels)
    other_logits, _, other_features = run(smaller, pixels)
    norms = np.linalg.norm(features, axis=1) * np.linalg.norm(other_features, axis=1)
    cosines = (features * other_features).sum(axis=1) / np.maximum(norms, 1e-12)
    smallest = float(cosines.min())
    if not smallest >= LEAST_COSINE:  # also true for NaN
        expected = f"expected cosines of at least {LEAST_COSINE} between features in {number_format} and in float32"
        raise UserError(f"{expected}, got {smallest:.4f}; the file is not written; {ADVICE[number_format]}")
    if model.thresholds is None:
        agree = logits.argmax(axis=1) == other_logits.argmax(axis=1)
    else:
        thresholds = model.thresholds.numpy()
        agree = ((logits >= thresholds) == (other_logits >= thresholds)).all(axis=1)
    return Comparison(len(pixels), smallest, float(agree.mean()))


def run(graph: ModelProto, pixels: np.ndarray) -> Sequence[np.ndarray]:
    """Outputs of a graph for images `[M, 3, H, W]`; UserError if onnxruntime cannot run it."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        batches = [session.run(None, {name: pixels[i : i + BATCH]}) for i in range(0, len(pixels), BATCH)]
    except Exception as error:  # onnxruntime raises exceptions of many types
        raise UserError(f"onnxruntime cannot run the file, which is not written: {first_line(error)}") from error
    return [np.concatenate(parts) for parts in zip(*batches)]
