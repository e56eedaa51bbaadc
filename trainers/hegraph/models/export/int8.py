"""Static int8 quantisation of an exported model, which is written only if its features stay close to float32.

The matrix products and convolutions of the image tower compute in int8, with a scale for each output channel of the
weights and the range of the activations on calibration images. The classifier stays in float32, since it is small.

Shapes: M images, K classes, d feature width, H x W the input resolution of the backbone.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from ...features.images import ImageReader
from ...utils.errors import UserError, first_line
from ...utils.files import atomic_path
from ..saved import SavedModel
from .comparison import BATCH, KEYS, WEIGHTS, Comparison, add_features_output, compare
from .onnx_file import TOLERANCE, Head, compare_with_torch, describe_model, sample_inputs, trace

if TYPE_CHECKING:
    from onnx import ModelProto

    from ...features.backbones.base import Backbone

logger = logging.getLogger(__name__)

LEAST_IMAGES = 64  # on which features are compared
MOST_IMAGES = 256  # calibration images that are read, evenly spaced among all
QUANTIZED = ("MatMul", "Gemm", "Conv")


def write_int8(model: SavedModel, backbone: Backbone, path: Path, images: Iterable[str]) -> Comparison:
    """Write a model as an ONNX file that computes in int8; an existing file is replaced.

    Every second image calibrates, and all are compared.

    Args:
        model: The model.
        backbone: Its backbone on the CPU in float32.
        path: File to write.
        images: Paths of the calibration images, of which at most `MOST_IMAGES` are read.

    Raises:
        UserError: If fewer than `LEAST_IMAGES` images are readable, a cosine is too small (`compare`), the file cannot
            be written, or the model has no form in ONNX.
    """
    pixels = read_pixels(backbone, images)
    name, inputs = sample_inputs(model, backbone)
    graph = trace(Head(model, backbone.model), inputs, name)
    with atomic_path(path) as temporary:
        temporary.write_bytes(graph.SerializeToString())
        compare_with_torch(temporary, model, backbone, inputs, TOLERANCE)
        add_features_output(graph)
        quantized = quantize(graph, pixels[::2])
        comparison = compare(model, graph, quantized, pixels, "int8")
        del quantized.graph.output[-1]  # the features
        del quantized.metadata_props[:]  # of onnxruntime
        for key, value in describe_model(model, name, inputs.shape[1:]).items():
            quantized.metadata_props.add(key=key, value=json.dumps(value))
        temporary.write_bytes(quantized.SerializeToString())
    return comparison


def read_pixels(backbone: Backbone, images: Iterable[str]) -> np.ndarray:
    """Read calibration images as `[M, 3, H, W]`, evenly spaced among all; a warning names the first unreadable one.

    Raises:
        UserError: If fewer than `LEAST_IMAGES` are readable.
    """
    paths = list(images)
    step = max(math.ceil(len(paths) / MOST_IMAGES), 1)
    parts = []
    unreadable = []
    for batch, pixels, problems in ImageReader(backbone.preprocess).batches(paths[::step], BATCH):
        unreadable += [f"{image} {problem}" for image, problem in zip(batch, problems) if problem]
        if len(pixels):
            parts.append(pixels.numpy())
    if unreadable:
        logger.warning("%d calibration images are skipped, such as %s", len(unreadable), unreadable[0])
    count = sum(map(len, parts))
    if count < LEAST_IMAGES:
        raise UserError(f"--calibrate: expected at least {LEAST_IMAGES} readable images, got {count}; add images")
    return np.concatenate(parts)


def quantize(graph: ModelProto, pixels: np.ndarray) -> ModelProto:
    """Quantise the image tower of a graph, with ranges of activations from images `[M, 3, H, W]`.

    Raises:
        UserError: If onnxruntime cannot quantise it.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Batches(CalibrationDataReader):
        """Batches of the calibration images."""

        def __init__(self) -> None:
            name = graph.graph.input[0].name
            self.batches = iter([{name: pixels[i : i + BATCH]} for i in range(0, len(pixels), BATCH)])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    with TemporaryDirectory() as folder:
        source = Path(folder) / "float32.onnx"
        target = Path(folder) / "int8.onnx"
        source.write_bytes(graph.SerializeToString())
        try:
            quantize_static(
                str(source),
                str(target),
                Batches(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTIZED),
                per_channel=True,
                nodes_to_exclude=float_nodes(graph),
            )
        except Exception as error:  # onnxruntime raises exceptions of many types
            raise UserError(f"onnxruntime cannot quantise the model: {first_line(error)}; leave out --int8") from error
        return onnx.load(str(target))


def float_nodes(graph: ModelProto) -> list[str]:
    """Names of products that stay in float32: those of the classifier, and of two activations, as in attention."""
    weights = {tensor.name for tensor in graph.graph.initializer} - {WEIGHTS, KEYS}
    products = [node for node in graph.graph.node if node.op_type in QUANTIZED]
    return [node.name for node in products if node.input[1] not in weights]
