"""Images to the input of a backbone, in batches and in order; threads decode the next batches meanwhile.

Memory is constant: see `utils/threads.py`.

Shapes: B images of a batch, H x W the backbone's input resolution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms as T

from ..datasets.images import open_image, reason, to_rgb
from ..utils.threads import MAX_THREADS, cores, in_batches

ImageLike: TypeAlias = "Image.Image | Path | str"  # an image, or the path of one


class Pixels(NamedTuple):
    """A batch of images.

    Attributes:
        images: What was asked for, B of them.
        pixels: The input of the backbone, shape `[number that could be read, 3, H, W]`.
        problems: Of each of the B images why it could not be read; "" for one that could.
    """

    images: Sequence[ImageLike]
    pixels: Tensor
    problems: Sequence[str]


class Reader:
    """Reads images as a backbone takes them.

    Threads decode images and resize them to bytes. What is left, to floats and their normalisation, is done for the
    whole batch: the same numbers in less time, and a quarter of the memory while images wait.

    Args:
        transform: The backbone's test transform.
        size: `(H, W)`.
        on_cpu: Whether the backbone runs on the CPU too, and needs the other half of its cores.
    """

    def __init__(self, transform: T.Compose, size: tuple[int, int], on_cpu: bool = True) -> None:
        self.size = size
        self.threads = min(max(cores() // 2 if on_cpu else cores(), 1), MAX_THREADS)
        steps = list(transform.transforms)
        self.normalize: Callable[[Tensor], Tensor] | None = None
        if len(steps) > 1 and isinstance(steps[-2], T.ToTensor) and isinstance(steps[-1], T.Normalize):
            self.normalize = steps[-1]
            steps = steps[:-2]
        self.steps = steps

    def batches(self, images: Iterable[ImageLike], batch_size: int) -> Iterator[Pixels]:
        """Batches of `batch_size` images in order, the last of which may be smaller.

        Args:
            images: Taken as they are needed.
            batch_size: B.
        """
        for batch, results in in_batches(self.read, images, batch_size, self.threads):
            yield self._collect(batch, results)

    def read(self, image: ImageLike) -> np.ndarray | Tensor | str:
        """One image, as bytes `[H, W, 3]` or, of an unusual transform, as it comes from it; else why it is unreadable.

        No exception passes: on damaged bytes, Pillow raises whatever they lead to.
        """
        try:
            # an image until a step makes a tensor of it
            pixels: Any = to_rgb(image) if isinstance(image, Image.Image) else open_image(image)
            for step in self.steps:
                if not (isinstance(step, T.CenterCrop) and pixels.size == self.size[::-1]):  # it would copy all of it
                    pixels = step(pixels)
            return np.asarray(pixels) if self.normalize else pixels
        except Exception as error:
            return reason(error)

    def _collect(self, images: Sequence[ImageLike], results: Sequence[np.ndarray | Tensor | str]) -> Pixels:
        problems = [result if isinstance(result, str) else "" for result in results]
        read: list[Any] = [result for result in results if not isinstance(result, str)]
        if not read:
            return Pixels(images, torch.zeros(0, 3, *self.size), problems)
        if self.normalize is None:
            return Pixels(images, torch.stack(read), problems)
        pixels = torch.from_numpy(np.stack(read)).permute(0, 3, 1, 2)
        pixels = self.normalize(pixels.contiguous().float().div(255))  # as ToTensor and Normalize do of one image
        return Pixels(images, pixels, problems)
