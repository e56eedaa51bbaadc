"""Writes an ONNX file, and puts it in place only if it says the same as torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..models.saved import SavedModel
from ..utils.errors import UserError
from ..utils.files import atomic_path, check_output
from .comparison import TOLERANCE, TOLERANCE_HALF, Differences, compare, sample_features, sample_pixels
from .graph import LOGITS, PROBABILITIES, halve, trace
from .metadata import Shapes, describe_model
from .modules import Full, Head

if TYPE_CHECKING:
    from ..backbones.clip import Backbone

FEATURES, PIXELS = "features", "pixel_values"


class Exported(NamedTuple):
    """An ONNX file that has been written.

    Attributes:
        input_name: Name of its only input.
        shape: Of the input, without the batch.
        size: Of the file, in bytes.
        differences: From torch.
    """

    input_name: str
    shape: tuple[int, ...]
    size: int
    differences: Differences


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
        model: The trained model.
        backbone: Its backbone, on the CPU and in float32, for pixels to probabilities; None for the head alone,
            features to probabilities.
        path: The file.
        half: Whether weights are stored as float16. The file computes in float32 in any case.

    Raises:
        UserError: If a package is missing, the file cannot be written, the model has no form in ONNX or is too large
            for a file, or the file's logits differ from torch's by more than the tolerance.
    """
    require_packages()
    check_output(path)
    with atomic_path(path) as temporary:
        head = Head(model.classifier, model.temperature)
        if backbone is None:
            name, inputs = FEATURES, sample_features(model)
            graph = trace(head, inputs, name)
        else:
            name, inputs = PIXELS, sample_pixels(backbone)
            graph = trace(Full(backbone.model, head), inputs, name)
        graph = halve(graph) if half else graph
        shape = tuple(inputs.shape[1:])
        outputs: Shapes = {output: ["batch", model.classifier.num_classes] for output in (LOGITS, PROBABILITIES)}
        for key, value in describe_model(model, {name: ["batch", *shape]}, outputs).items():
            graph.metadata_props.add(key=key, value=value)
        temporary.write_bytes(graph.SerializeToString())
        differences = compare(temporary, model, backbone, inputs, TOLERANCE_HALF if half else TOLERANCE)
        return Exported(name, shape, temporary.stat().st_size, differences)
