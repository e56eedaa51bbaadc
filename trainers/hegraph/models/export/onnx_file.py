"""Export of a model to ONNX: trace, add metadata, compare with torch, and write the file if the logits agree.

torch's TorchScript exporter (`dynamo=False`) traces the graph. It exports all models of this package with torch 2.4 to
2.15. The newer exporter ignores names, opset and dynamic axes in torch 2.4, is slower, and needs onnxscript.

Shapes: B images, K classes, N cached images, d feature width, H x W the input resolution of the backbone.
"""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...method.cache import affinities
from ...utils.errors import UserError, first_line
from ...utils.files import atomic_path
from ..saved import Preprocessing, SavedModel
from .comparison import add_features_output, compare

if TYPE_CHECKING:
    from onnx import ModelProto

    from ...features.backbones.base import Backbone

OPSET = 17
LOGITS, PROBABILITIES = "logits", "probabilities"
TOLERANCE = 1e-4  # largest difference of the logits from torch's, relative to the largest logit
COVERAGES = (0.8, 0.9, 0.95, 0.99)  # of prediction sets in the metadata
TOLERANCE_HALF = 1e-2  # the same for weights stored as float16
SAMPLE_ROWS, SAMPLE_IMAGES = 8, 3  # sampled features near class weights and near keys; sampled images


class Head(nn.Module):
    """Folded classifier with its probabilities, optionally behind an image tower.

    The result equals `FoldedClassifier.logits`. The cache is computed at once, so that a batch needs `B * N` floats.
    With several labels per image, probabilities are sigmoids of the logits.
    `tower` is an `Encoder` in float32.
    """

    weights: Tensor
    bias: Tensor | None
    keys: Tensor | None
    labels: Tensor
    key_weights: Tensor | None

    def __init__(self, model: SavedModel, tower: Any = None) -> None:
        super().__init__()
        classifier = model.classifier
        keys = classifier.keys if classifier.keys is not None and len(classifier.keys) else None
        self.tower = tower
        self.temperature = model.temperature
        self.multilabel = model.thresholds is not None
        self.alpha = classifier.alpha
        self.beta = classifier.beta
        self.register_buffer("weights", classifier.weights.t().contiguous())  # [d, K]
        self.register_buffer("bias", classifier.bias)
        self.register_buffer("keys", None if keys is None else keys.t().contiguous())  # [d, N]
        self.register_buffer("labels", None if keys is None else classifier.labels)
        self.register_buffer("key_weights", None if keys is None else classifier.key_weights)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and probabilities, each `[B, K]`.

        `inputs` are unit-norm features `[B, d]` or, with a tower, normalised images `[B, 3, H, W]`.
        """
        features = inputs if self.tower is None else F.normalize(self.tower.encode_image(inputs), dim=-1)
        logits = features @ self.weights
        if self.bias is not None:
            logits = logits + self.bias
        if self.keys is not None:
            weighted = affinities(features @ self.keys, self.beta)  # [B, N]
            if self.key_weights is not None:
                weighted = weighted * self.key_weights
            sums = torch.zeros_like(logits).scatter_add(1, self.labels.expand_as(weighted), weighted)
            logits = logits + self.alpha * sums
        if self.multilabel:
            return logits, logits.sigmoid()
        return logits, (logits / self.temperature).softmax(dim=1)


def trace(head: Head, inputs: Tensor, name: str) -> ModelProto:
    """Trace a head into an ONNX graph with a dynamic batch size.

    Args:
        head: The module.
        inputs: Example batch of two rows or more.
        name: Name of the input.

    Raises:
        UserError: If an operation of the tower has no form in ONNX, or the weights are too large for a file.
    """
    import onnx

    file = io.BytesIO()
    try:
        with exporting(), torch.no_grad():
            outputs = [LOGITS, PROBABILITIES]
            graph: dict[str, Any] = {"input_names": [name], "output_names": outputs, "opset_version": OPSET}
            axes = {key: {0: "batch"} for key in (name, *outputs)}
            target: Any = file  # the TorchScript exporter takes a file as well as a path
            torch.onnx.export(head.eval(), (inputs,), target, dynamo=False, dynamic_axes=axes, **graph)
    except (RuntimeError, TypeError, ValueError) as error:  # errors of the exporter are RuntimeErrors
        raise UserError(f"the model has no form in ONNX: {first_line(error)}; --part head may have one") from error
    return onnx.load_model_from_string(file.getvalue())


@contextmanager
def exporting() -> Iterator[None]:
    """Context without fused attention, which ONNX lacks, and without the exporter's messages for developers.

    The exporter enables its log at each call, and prints the whole graph to standard output if it fails.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    enable_log = getattr(torch._C, "_jit_set_onnx_log_enabled", None)  # private; a later torch may lack it
    torch.backends.mha.set_fastpath_enabled(False)
    if enable_log is not None:
        torch._C._jit_set_onnx_log_enabled = lambda enabled: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if enable_log is not None:
            torch._C._jit_set_onnx_log_enabled = enable_log
        torch.backends.mha.set_fastpath_enabled(fused)


def halve(graph: ModelProto) -> None:
    """Store the weights of a graph as float16, each followed by a cast to float32.

    The graph still computes in float32. A ViT converted to float16 crashes the optimiser of onnxruntime 1.32 on a CPU,
    and float16 has a resolution of 0.06 at logits of 100.
    """
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for weight in graph.graph.initializer:
        if weight.data_type == TensorProto.FLOAT:
            name = weight.name
            stored = f"{name}.float16"
            with np.errstate(over="ignore"):  # `compare_with_torch` finds infinite values
                weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), stored))
            casts.append(helper.make_node("Cast", [stored], [name], name=f"{name}.cast", to=TensorProto.FLOAT))
    nodes = [*casts, *graph.graph.node]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)


def halved(model: SavedModel, graph: ModelProto, inputs: Tensor) -> ModelProto:
    """Copy a graph with float16 weights.

    Args:
        model: The model.
        graph: Its graph.
        inputs: Features `[B, d]`, or pixels `[B, 3, H, W]`, for which the features of both graphs are compared.

    Raises:
        UserError: If a cosine is too small (`compare`).
    """
    from onnx import ModelProto

    smaller = ModelProto()
    smaller.CopyFrom(graph)
    halve(smaller)
    if inputs.ndim == 4:
        for each in (graph, smaller):
            add_features_output(each)
        compare(model, graph, smaller, inputs.numpy(), "float16")
        del smaller.graph.output[-1]
    return smaller


def require_packages() -> None:
    """Raise UserError if onnx or onnxruntime is not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        message = f"export needs the package {error.name}: pip install 'onnx>=1.16' 'onnxruntime>=1.19'"
        raise UserError(message) from error


def write_onnx(model: SavedModel, backbone: Backbone | None, path: Path, half: bool = False) -> tuple[float, float]:
    """Write a model as an ONNX file; an existing file is replaced.

    Args:
        model: The model.
        backbone: Its backbone on the CPU in float32, for input of pixels; None for input of features.
        path: File to write.
        half: Whether to store weights as float16. The file computes in float32 in any case.

    Returns:
        Largest difference of the logits from torch, relative to the largest logit, and of the probabilities.

    Raises:
        UserError: If the file cannot be written, the model has no form in ONNX or is too large for a file, or the
            logits differ from torch by more than the tolerance.
    """
    name, inputs = sample_inputs(model, backbone)
    head = Head(model, None if backbone is None else backbone.model)
    with atomic_path(path) as temporary:
        graph = trace(head, inputs, name)
        if half:
            graph = halved(model, graph, inputs)
        for key, value in describe_model(model, name, inputs.shape[1:]).items():
            graph.metadata_props.add(key=key, value=json.dumps(value))
        temporary.write_bytes(graph.SerializeToString())
        return compare_with_torch(temporary, model, backbone, inputs, TOLERANCE_HALF if half else TOLERANCE)


def describe_model(model: SavedModel, input_name: str, shape: Sequence[int]) -> dict[str, Any]:
    """Metadata of an ONNX file, as plain values."""
    outputs = ["batch", model.classifier.num_classes]
    return {
        "inputs": {input_name: ["batch", *shape]}, "outputs": {LOGITS: outputs, PROBABILITIES: outputs},
        "classes": model.classnames, "class_ids": model.class_ids,
        "tau": model.logit_scale, "temperature": model.temperature,
        "thresholds": describe_thresholds(model),
        "known": None if model.known is None else model.known.model_dump(),
        "sets": describe_sets(model),
        "preprocessing": None if model.preprocessing is None else describe_preprocessing(model.preprocessing),
        "backbone": model.backbone.title, "method": model.method, "variant": model.variant,
        "trained_on": {"dataset": model.trained_on.dataset, "shots": model.trained_on.shots},
    }  # fmt: skip


def describe_thresholds(model: SavedModel) -> list[float] | None:
    """Least probability with which each label is predicted; None for one label per image."""
    return None if model.thresholds is None else model.thresholds.sigmoid().tolist()


def describe_sets(model: SavedModel) -> dict[str, float | list[float]] | None:
    """Thresholds of prediction sets by coverage, for those of `COVERAGES` that the held-out images support.

    A class is in the set if its output probability is at least the threshold. Where some classes have far
    fewer images than others, a threshold is a list, with that of each class. None without held-out images, or for sets
    of zero-shot CLIP, whose probabilities the file does not compute.
    """
    sets = model.sets
    if sets is None or sets.of_zero_shot:
        return None
    thresholds: dict[str, float | list[float]] = {}
    for coverage in COVERAGES:
        with suppress(UserError):
            by_class = sets.thresholds(coverage, len(model.classnames))
            thresholds[f"{coverage:g}"] = sets.threshold(coverage) if sets.few is None else by_class.tolist()
    return thresholds


def describe_preprocessing(preprocessing: Preprocessing) -> dict[str, Any]:
    """Preprocessing of test images as plain values.

    Returns:
        The fields of `Preprocessing`, and "resize": "shortest" (the shorter edge becomes `H`, which equals `W`, and the
        longer edge is rounded down), "squash" (both edges become `size`) or "other" (see `transform`), such as a larger
        image than the crop; "interpolation": Pillow's name in lower case, None for "other"; "crop": "center", whose
        offsets are rounded as by Python's `round`, or "floor", whose offsets are rounded down.
    """
    transform = preprocessing.transform
    found = re.search(r"\bResize\(size=(\d+|\(\d+, \d+\)),.*?interpolation=(\w+)", transform)
    resize = "other"
    interpolation = None
    if found is not None:
        sides = [int(side) for side in re.findall(r"\d+", found[1])]
        if sides == list(preprocessing.size):
            resize = "squash"
        elif sides * 2 == list(preprocessing.size):
            resize = "shortest"
        interpolation = None if resize == "other" else found[2].lower()
    crop = "floor" if "FloorCenterCrop(" in transform else "center"
    fields = preprocessing.model_dump()
    return fields | {"resize": resize, "interpolation": interpolation, "crop": crop}


def sample_inputs(model: SavedModel, backbone: Backbone | None) -> tuple[str, Tensor]:
    """Name and an example batch of the input.

    With a backbone the batch is noise images `[B, 3, H, W]`, else unit-norm features `[B, d]` near class weights and
    cache keys.
    """
    generator = torch.Generator().manual_seed(0)
    if backbone is not None:
        return "pixel_values", torch.randn(SAMPLE_IMAGES, 3, *backbone.input_size, generator=generator)
    matrices = (model.classifier.weights, model.classifier.keys)
    rows = [matrix for matrix in matrices if matrix is not None and len(matrix)]
    centres = torch.cat([F.normalize(matrix[torch.arange(SAMPLE_ROWS) % len(matrix)], dim=1) for matrix in rows])
    noise = torch.randn(centres.shape, generator=generator)
    return "features", F.normalize(centres + 0.5 * F.normalize(noise, dim=1), dim=1)


def compare_with_torch(
    path: Path, model: SavedModel, backbone: Backbone | None, inputs: Tensor, tolerance: float
) -> tuple[float, float]:
    """Check an ONNX file, and compare it with torch on a batch of inputs and on a batch of one.

    Args:
        path: The ONNX file.
        model: The model.
        backbone: Its backbone, for pixels; None for features.
        inputs: Features `[B, d]`, or pixels `[B, 3, H, W]`.
        tolerance: Largest difference of the logits, relative to the largest logit.

    Returns:
        Largest difference of the logits from torch, relative to the largest logit, and of the probabilities.

    Raises:
        UserError: If the file is not valid, or its logits differ by more than the tolerance or are not finite.
    """
    import onnx
    import onnxruntime

    batches = (inputs, inputs[:1])
    try:
        onnx.checker.check_model(str(path), full_check=True)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        outputs = [session.run(None, {name: batch.numpy()}) for batch in batches]
    except Exception as error:  # the two packages have no common base class of exceptions
        raise UserError(f"onnxruntime cannot run the file, which is not written: {first_line(error)}") from error
    logits = torch.cat([torch.from_numpy(batch_logits) for batch_logits, _ in outputs])
    probabilities = torch.cat([torch.from_numpy(batch_probabilities) for _, batch_probabilities in outputs])
    features = torch.cat([rows if backbone is None else backbone.encode_images(rows) for rows in batches])
    expected = model.classifier.logits(features)
    difference = float((logits - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
    if not difference <= tolerance:  # also true for NaN
        differs = f"the logits of the ONNX file differ from torch by {difference:.1e} of their scale"
        raise UserError(f"{differs}, more than {tolerance:g}; the file is not written")
    return difference, float((probabilities - model.probabilities(features)).abs().max())
