"""Handler of a Hugging Face inference endpoint; `package.py` writes the file that imports it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL.Image import Image

from ..datasets.decoding import DecodedImage
from ..datasets.images import MAX_PIXELS, reading_upload, to_rgb
from ..utils.devices import choose_device
from ..utils.errors import UserError
from ..utils.reading import Size, validate
from .images import ImageModel

if TYPE_CHECKING:
    from ..features.backbones.base import Backbone

DEFAULT_TOP = 5  # classes of an image


class EndpointHandler:
    """Handler of an inference endpoint, with the answers of the task "image-classification".

    Args:
        path: Model folder.
    """

    def __init__(self, path: str = "") -> None:
        self.model = ImageModel.load(Path(path), choose_device("", "device"))

    def __call__(self, data: dict[str, Any]) -> list[Any]:
        """Classify images.

        Args:
            data: "inputs" is an image, or a list of images: PIL images, bytes of image files, or base64. "parameters"
                may have "top_k", the number of classes of an image (default: 5), as a number or as text.

        Returns:
            For each image, a list of dicts with "label" and "score", the most probable one first; for a single image,
            its list.

        Raises:
            UserError: If the request has another form, or an input is not an image. No path and no address is opened.
        """
        inputs, top = read_request(data)
        images = [open_input(each, self.model.backbone) for each in (inputs if isinstance(inputs, list) else [inputs])]
        names = self.model.model.classnames
        values, labels = self.model.probabilities(images).sort(dim=1, descending=True, stable=True)
        rows = zip(values[:, :top].tolist(), labels[:, :top].tolist())
        answers = [rank(names, *row) for row in rows]
        return answers if isinstance(inputs, list) else answers[0]


def rank(names: Sequence[str], scores: Sequence[float], labels: Sequence[int]) -> list[dict[str, Any]]:
    """Answer for an image: its classes with their scores, in the order of the labels."""
    return [{"label": names[label], "score": score} for score, label in zip(scores, labels)]


def read_request(data: Any) -> tuple[Any, int]:
    """Read the inputs and the number of classes of a request; UserError if it has another form."""
    if not isinstance(data, Mapping):
        raise UserError(f'expected a mapping with "inputs", got {type(data).__name__}', "endpoint.request")
    parameters = data.get("parameters")
    if parameters is None:
        parameters = {}
    if not isinstance(parameters, Mapping):
        problem = f'expected a mapping such as {{"top_k": 5}} as "parameters", got {type(parameters).__name__}'
        raise UserError(problem, "endpoint.request")
    top = parameters.get("top_k", DEFAULT_TOP)
    if isinstance(top, str) and top.strip().isdecimal():
        top = int(top)
    return data.get("inputs"), validate(Size, top, "top_k")


def open_input(value: Any, backbone: Backbone) -> Image | DecodedImage:
    """Open an input of an endpoint for a backbone: a PIL image, the bytes of a file, or base64.

    Raises:
        UserError: If it is something else, or unreadable.
    """
    if isinstance(value, Image):
        return to_rgb(value)
    if isinstance(value, str):
        value = decode_base64(value)
    if isinstance(value, (bytearray, memoryview)):
        value = bytes(value)
    if not isinstance(value, bytes):
        raise UserError(f"expected an image, bytes or base64, got {type(value).__name__}", "endpoint.type")
    with reading_upload(value):
        return backbone.preprocess.decoded(value, MAX_PIXELS)


def decode_base64(text: str) -> bytes:
    """Decode base64, also behind the prefix of a data URL; UserError for other text, such as a path or an address."""
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode("".join(encoded.split()), validate=True)  # many encoders break lines
    except ValueError as error:  # binascii's error is one
        raise UserError(f"expected an image in base64, got {text[:20]!r}", "endpoint.base64") from error
