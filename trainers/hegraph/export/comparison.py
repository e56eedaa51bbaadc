"""An ONNX file against torch.

Shapes: B images, K classes, d feature width, H x W the input resolution of the backbone.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.saved import SavedModel
from ..utils.errors import UserError, first_line

if TYPE_CHECKING:
    from ..backbones.clip import Backbone

TOLERANCE = 1e-4  # largest difference of the logits from torch's, relative to the largest logit
TOLERANCE_HALF = 1e-2  # the same where weights are stored as float16
NEAR, IMAGES = 8, 3  # samples: features near so many weights, and near so many keys; images


class Differences(NamedTuple):
    """How far an ONNX file is from torch.

    Attributes:
        logits: Largest difference of the logits, relative to the largest logit.
        probabilities: Largest difference of the probabilities.
    """

    logits: float
    probabilities: float


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


def compare(path: Path, model: SavedModel, backbone: Backbone | None, inputs: Tensor, tolerance: float) -> Differences:
    """Checks an ONNX file and compares it with torch on a batch of inputs, and on a batch of one.

    Args:
        path: The file.
        model: The trained model.
        backbone: What encodes the inputs if they are pixels; None if they are features.
        inputs: Features `[B, d]` or pixels `[B, 3, H, W]`.
        tolerance: The largest difference of the logits that is allowed, relative to the largest logit.

    Raises:
        UserError: If the file is not valid, or the logits differ by more than the tolerance or are not finite.
    """
    batches = (inputs, inputs[:1])
    logits, probabilities = (torch.cat(parts) for parts in zip(*_run(path, batches)))
    features = torch.cat([rows if backbone is None else backbone.encode_images(rows) for rows in batches])
    expected = model.classifier.logits(features)
    difference = float((logits - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
    if not difference <= tolerance:  # written so that NaN is refused
        raise UserError(
            f"the logits of the ONNX file would differ from torch's by {difference:.1e} of their scale, more than the "
            f"{tolerance:g} that are allowed; the file is not written"
        )
    return Differences(difference, float((probabilities - model.probabilities(features)).abs().max()))


def _run(path: Path, batches: tuple[Tensor, ...]) -> list[tuple[Tensor, Tensor]]:
    """Logits and probabilities of each batch by onnxruntime."""
    import onnx
    import onnxruntime

    try:
        onnx.checker.check_model(str(path), full_check=True)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        found = [session.run(None, {name: batch.numpy()}) for batch in batches]
    except Exception as error:  # the exceptions of the two packages have no base class but this in common
        raise UserError(f"onnxruntime refuses the file, which is not written: {first_line(error)}") from error
    return [(torch.from_numpy(logits), torch.from_numpy(probabilities)) for logits, probabilities in found]
