"""Transforms from an image to the input of a backbone, and the scale at which they need the image.

A transform resizes once, by `T.Resize` or by a random crop. The image may be decoded at a reduced scale if the part
to resize has at least `OVERSAMPLING` times the sides of the input (`datasets/decoding.py`). Boxes of crops are sampled
at the full size, so that a view shows the same part of the image at every scale.

Shapes: B images, H x W the model's input resolution.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms as T
from torchvision.transforms.functional import crop, hflip, resized_crop

from ...datasets.decoding import FULL, DecodedImage, LazyImage
from ...datasets.images import ImageOrPath, ImageSource, reason
from ...utils.errors import UserError
from ...utils.text import shown

OVERSAMPLING = 2  # sides of the reduced part, as multiples of the sides of the encoder's input
LEAST_SIDE = 400  # pixels of the shorter side of a reduced image, so that a small encoder does not change small photos

_SAMPLING = Lock()  # guards torch's global generator, which torchvision samples from

Transform = Callable[[Image.Image], Tensor]


class Preprocess(T.Compose):
    """Transform of a model, from an image of any mode to `[3, H, W]`.

    The image is first converted to RGB, turned upright, and blended with white where it is transparent.

    Args:
        steps: Steps of the transform.
        decode: Decoding of image files, one of `DECODINGS`.
    """

    def __init__(self, steps: Sequence[Callable], decode: str = FULL) -> None:
        super().__init__(steps)
        self.decode = decode

    def __call__(self, image: ImageOrPath | DecodedImage) -> Tensor:
        """Transform a path, a PIL image, or an image of `decoded`.

        Raises:
            UserError: If it is something else, or cannot be read.
        """
        if isinstance(image, DecodedImage):
            return apply(self.transforms, image)
        if not isinstance(image, (Image.Image, os.PathLike, str)):
            raise UserError(f"image: expected a path or a PIL image, got {shown(image)}")
        try:
            opened = self.decoded(image)
        except Exception as error:  # Pillow raises any type on damaged bytes
            raise UserError(f"cannot read {image}: {reason(error)}") from error
        return apply(self.transforms, opened)

    def decoded(self, source: ImageSource, max_pixels: float = math.inf) -> DecodedImage:
        """Decode an image at the scale that the transform needs; errors as in `open_image`."""
        return decoded_for(self.transforms, LazyImage.read(source, self.decode, max_pixels))

    def __repr__(self) -> str:
        return repr(T.Compose(self.transforms))  # keys of cached features and model folders contain this text


def decoding_of(transform: Transform) -> str:
    """Decoding of image files for a transform; "full" for one that is no `Preprocess`."""
    return transform.decode if isinstance(transform, Preprocess) else FULL


@dataclass(frozen=True)
class Crop:
    """Part of an image, resized.

    Attributes:
        top, left, height, width: Box in pixels of the full size.
        size: Height and width of the result.
        interpolation: Interpolation of the resizing.
    """

    top: int
    left: int
    height: int
    width: int
    size: Sequence[int]
    interpolation: T.InterpolationMode

    @classmethod
    def whole(cls, step: T.Resize, size: tuple[int, int]) -> Crop:
        """The whole image of a size (width, height), resized as by a step."""
        width, height = size
        target = step.size if isinstance(step.size, Sequence) else [step.size]
        if len(target) == 1:
            shorter = min(size)
            target = [target[0] * height // shorter, target[0] * width // shorter]
        return cls(0, 0, height, width, target, step.interpolation)

    def __call__(self, image: Image.Image) -> Image.Image:
        """Crop an image of full size."""
        return resized_crop(image, self.top, self.left, self.height, self.width, [*self.size], self.interpolation)

    def of_reduced(self, image: Image.Image, factor: int) -> Image.Image:
        """Crop an image whose sides are divided by a factor. Edges of the box may lie inside a pixel."""
        left = self.left / factor
        top = self.top / factor
        right = left + self.width / factor
        bottom = top + self.height / factor
        outer = (math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom))
        box = (left - outer[0], top - outer[1], right - outer[0], bottom - outer[1])
        height, width = self.size
        return image.crop(outer).resize((width, height), Image.Resampling[self.interpolation.name], box)

    @property
    def ratio(self) -> float:
        """Smaller ratio of a side of the box and the side of the result."""
        return min(self.height / self.size[0], self.width / self.size[1])


def channels(values: Any, what: str) -> Sequence[float]:
    """Values of the three colours, as a configuration has them: a list of three numbers, or one number for all.

    Raises:
        UserError: If `values` are something else; `what` is the start of the message.
    """
    listed = values if isinstance(values, Sequence) else (values,) * 3
    if len(listed) != 3 or not all(isinstance(value, (int, float)) for value in listed):
        raise UserError(f"{what}: expected a number, or one for each of three colours, got {shown(values)}")
    return listed


class FloorCenterCrop(T.CenterCrop):
    """Center crop as in transformers: if an odd number of pixels is cut, the larger part is on the right or bottom.

    torchvision rounds half of that number to an even one. A smaller image is padded with black.
    """

    def forward(self, image: Image.Image) -> Image.Image:
        """Crop an image."""
        height, width = self.size
        top = int((image.height - height) / 2)  # rounds to 0, also for negative numbers
        left = int((image.width - width) / 2)
        return crop(image, top, left, height, width)


def resizing(steps: Sequence[Callable], size: tuple[int, int]) -> tuple[int, Crop] | None:
    """Find the step that resizes an image of a size (width, height).

    Returns:
        Position of the step, and its crop; None if steps before it or the step itself need the image at full size.
    """
    for position, step in enumerate(steps):
        if isinstance(step, Crop):
            return position, step
        if isinstance(step, T.Resize) and step.max_size is None:
            return position, Crop.whole(step, size)
        if step is not hflip:
            return None
    return None


def decoded_for(steps: Sequence[Callable], image: LazyImage) -> DecodedImage:
    """Decode an image at the smallest scale that suffices for steps."""
    found = resizing(steps, image.size)
    if found is None:
        return image.decoded(1)
    return image.decoded(min(found[1].ratio / OVERSAMPLING, min(image.size) / LEAST_SIDE))


def apply(steps: Sequence[Callable], image: DecodedImage) -> Tensor:
    """Apply the steps of a transform, the last of which returns a tensor, to an image of `decoded_for`."""
    found = resizing(steps, image.size) if image.factor > 1 else None
    result: Any = image.pixels
    for position, step in enumerate(steps):
        if found is not None and position == found[0]:
            result = found[1].of_reduced(result, image.factor)
        else:
            result = step(result)
    return result


def split_transform(transform: Transform) -> tuple[Sequence[Callable], Callable[[Tensor], Tensor]]:
    """Split a transform so that waiting images take a quarter of the memory.

    Returns:
        Steps from an image to bytes `[H, W, 3]`, and a function from a batch of bytes to floats `[B, 3, H, W]`. A
        transform without CLIP's last two steps is returned whole, with the identity.
    """
    steps = transform.transforms if isinstance(transform, T.Compose) else [transform]
    if len(steps) < 2 or not (isinstance(steps[-2], T.ToTensor) and isinstance(steps[-1], T.Normalize)):
        return steps, lambda batch: batch
    normalize = T.Normalize(steps[-1].mean, steps[-1].std, inplace=True)

    def finish(batch: Tensor) -> Tensor:
        return normalize(batch.permute(0, 3, 1, 2).contiguous().float().div_(255))

    return [*steps[:-2], np.array, torch.from_numpy], finish


def sample_steps(steps: Sequence[Callable], size: tuple[int, int], seed: int) -> list[Callable]:
    """Replace the random steps of a transform by fixed ones for an image of a size (width, height), from a seed."""
    sampled: list[Callable] = []
    shape = torch.empty((1, size[1], size[0]), device="meta")  # torchvision reads the size of a crop's image from it
    with _SAMPLING, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for step in steps:
            if isinstance(step, T.RandomResizedCrop):
                top, left, height, width = step.get_params(shape, [*step.scale], [*step.ratio])
                sampled.append(Crop(top, left, height, width, step.size, step.interpolation))
            elif not isinstance(step, T.RandomHorizontalFlip):
                sampled.append(step)
            elif torch.rand(1) < step.p:
                sampled.append(hflip)
    return sampled
