"""Writes an ONNX file, says in it what it is, and puts it in place only if it gives what torch gives.

Shapes: B images, K classes, d feature width, H x W the input resolution of the backbone.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.saved import Preprocessing, SavedModel
from ..utils.errors import UserError, first_line
from ..utils.files import atomic_path
from .graph import LOGITS, PROBABILITIES, Full, Head, halve, trace

if TYPE_CHECKING:
    from ..backbones.clip import Backbone

FEATURES, PIXELS = "features", "pixel_values"
TOLERANCE = 1e-4  # largest difference of the logits from torch's, relative to the largest logit
TOLERANCE_HALF = 1e-2  # the same where weights are stored as float16
NEAR, IMAGES = 8, 3  # samples: features near so many weights, and near so many keys; images


class Exported(NamedTuple):
    """An ONNX file that has been written: its only input, without the batch, and its size in bytes.

    Attributes:
        logits, probabilities: Largest differences from torch's; that of logits is relative to the largest logit.
    """

    input_name: str
    shape: tuple[int, ...]
    size: int
    logits: float
    probabilities: float


def require_packages() -> None:
    """Raises UserError if the packages that write and run ONNX files are not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        message = f"export needs the package {error.name}: pip install 'onnx>=1.16' 'onnxruntime>=1.19'"
        raise UserError(message) from error


def write_onnx(model: SavedModel, backbone: Backbone | None, path: Path, half: bool = False) -> Exported:
    """Writes a model as an ONNX file, whole or not at all; an older file in its place is replaced.

    Args:
        model, path: What is written, and where.
        backbone: Its backbone, on the CPU and in float32, for pixels to probabilities; None for the head alone,
            features to probabilities.
        half: Whether weights are stored as float16. The file computes in float32 in any case.

    Raises:
        UserError: If the file cannot be written, the model has no form in ONNX or is too large for a file, or the
            file's logits differ from torch's by more than the tolerance.
    """
    head = Head(model.classifier, model.temperature)
    with atomic_path(path) as temporary:
        if backbone is None:
            name, inputs = FEATURES, sample_features(model)
            graph = trace(head, inputs, name)
        else:
            name, inputs = PIXELS, sample_pixels(backbone)
            graph = trace(Full(backbone.model, head), inputs, name)
        graph = halve(graph) if half else graph
        shape = tuple(inputs.shape[1:])
        for key, value in describe_model(model, name, shape).items():
            graph.metadata_props.add(key=key, value=json.dumps(value))
        temporary.write_bytes(graph.SerializeToString())
        differences = compare(temporary, model, backbone, inputs, TOLERANCE_HALF if half else TOLERANCE)
        return Exported(name, shape, temporary.stat().st_size, *differences)


def describe_model(model: SavedModel, input_name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """What an ONNX file with this input says about itself, in plain values."""
    outputs = ["batch", model.classifier.num_classes]
    return {
        "inputs": {input_name: ["batch", *shape]},
        "outputs": {LOGITS: outputs, PROBABILITIES: outputs},
        "classes": model.classnames,
        "class_ids": model.class_ids,
        "tau": model.logit_scale,
        "temperature": model.temperature,
        "known": None if model.known is None else model.known.model_dump(),
        "preprocessing": None if model.preprocessing is None else describe_preprocessing(model.preprocessing),
        "backbone": model.backbone.title,
        "method": model.method,
        "variant": model.variant,
        "trained_on": {"dataset": model.trained_on.dataset, "shots": model.trained_on.shots},
    }


def describe_preprocessing(preprocessing: Preprocessing) -> dict[str, Any]:
    """The test transform in plain values: the fields of `Preprocessing`, and

    - `resize`: "shortest" (the shorter edge becomes `H`, which equals `W`, and the longer one is rounded down),
      "squash" (both edges become `size`), or "other" (only `transform` says what);
    - `interpolation`: a name of Pillow's in lower case; None if it is not known;
    - `crop`: "center".
    """
    transform = preprocessing.transform
    resize = re.search(r"\bResize\(size=(\(?)\d+.*?interpolation=(\w+)", transform)
    interpolation = resize or re.search(r"interpolation=InterpolationMode\.()(\w+)", transform)
    return {
        **preprocessing.model_dump(),
        "resize": "other" if resize is None else "squash" if resize[1] else "shortest",
        "interpolation": interpolation[2].lower() if interpolation else None,
        "crop": "center",
    }


def sample_features(model: SavedModel) -> Tensor:
    """Unit-norm features near some class weights and, where there is a cache, near some keys, `[B, d]`."""
    classifier = model.classifier
    rows = [rows for rows in (classifier.weights, classifier.keys) if rows is not None and len(rows)]
    centres = torch.cat([F.normalize(found[torch.arange(NEAR) % len(found)], dim=1) for found in rows])
    noise = torch.randn(centres.shape, generator=torch.Generator().manual_seed(0))
    return F.normalize(centres + 0.5 * F.normalize(noise, dim=1), dim=1)


def sample_pixels(backbone: Backbone) -> Tensor:
    """Images of noise as the backbone takes them, `[B, 3, H, W]`."""
    return torch.randn(IMAGES, 3, *backbone.input_size, generator=torch.Generator().manual_seed(0))


def compare(
    path: Path, model: SavedModel, backbone: Backbone | None, inputs: Tensor, tolerance: float
) -> tuple[float, float]:
    """Checks an ONNX file and compares it with torch on a batch of inputs, and on a batch of one.

    Args:
        path, model: The file and the trained model.
        backbone, inputs: None and features `[B, d]`, or what encodes the pixels `[B, 3, H, W]`.
        tolerance: The largest difference of the logits that is allowed, relative to the largest logit.

    Returns:
        The largest differences of logits and probabilities, as of `Exported`.

    Raises:
        UserError: If the file is not valid, or the logits differ by more than the tolerance or are not finite.
    """
    import onnx
    import onnxruntime

    batches = (inputs, inputs[:1])
    try:
        onnx.checker.check_model(str(path), full_check=True)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        found = [session.run(None, {name: batch.numpy()}) for batch in batches]
    except Exception as error:  # the exceptions of the two packages have no base class but this in common
        raise UserError(f"onnxruntime refuses the file, which is not written: {first_line(error)}") from error
    logits, probabilities = (torch.cat([torch.from_numpy(part) for part in parts]) for parts in zip(*found))
    features = torch.cat([rows if backbone is None else backbone.encode_images(rows) for rows in batches])
    expected = model.classifier.logits(features)
    difference = float((logits - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
    if not difference <= tolerance:  # written so that NaN is refused
        raise UserError(
            f"the logits of the ONNX file would differ from torch's by {difference:.1e} of their scale, more than the "
            f"{tolerance:g} that are allowed; the file is not written"
        )
    return difference, float((probabilities - model.probabilities(features)).abs().max())
