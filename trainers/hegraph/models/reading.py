"""Images to the input of a backbone, in batches and in order; threads decode the next batches meanwhile.

Memory is constant: no more than `AHEAD` batches are decoded before they are taken.

Shapes: B images of a batch, H x W the backbone's input resolution.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision import transforms as T

from ..datasets.folder import to_rgb

ImageLike: TypeAlias = "Image.Image | Path | str"  # an image, or the path of one

AHEAD = 2  # batches
CHUNK = 8  # images that a thread reads before it reports: handing over takes as long as reading a very small image
MAX_THREADS = 16


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
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.threads = min(max(cores // 2 if on_cpu else cores, 1), MAX_THREADS)
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
        remaining = iter(images)
        waiting: deque[tuple[list[ImageLike], list[Future]]] = deque()
        pool = ThreadPoolExecutor(self.threads)
        try:
            while True:
                while len(waiting) <= AHEAD and (batch := list(islice(remaining, batch_size))):
                    chunks = [batch[start : start + CHUNK] for start in range(0, len(batch), CHUNK)]
                    waiting.append((batch, [pool.submit(self._read_all, chunk) for chunk in chunks]))
                if not waiting:
                    return
                batch, reads = waiting.popleft()
                yield self._collect(batch, [result for read in reads for result in read.result()])
        finally:
            pool.shutdown(cancel_futures=True)

    def read(self, image: ImageLike) -> np.ndarray | Tensor | str:
        """One image, as bytes `[H, W, 3]` or, of an unusual transform, as it comes from it; else why it is unreadable.

        No exception passes: on damaged bytes, Pillow raises whatever they lead to.
        """
        try:
            pixels: Any = self._open(image)  # an image until a step makes a tensor of it
            for step in self.steps:
                if not (isinstance(step, T.CenterCrop) and pixels.size == self.size[::-1]):  # it would copy all of it
                    pixels = step(pixels)
            return np.asarray(pixels) if self.normalize else pixels
        except Exception as error:
            return _reason(error)

    def _read_all(self, images: Sequence[ImageLike]) -> list[np.ndarray | Tensor | str]:
        return [self.read(image) for image in images]

    def _open(self, image: ImageLike) -> Image.Image:
        if isinstance(image, Image.Image):
            self._check_sides(image)
            return to_rgb(image)
        if not stat.S_ISREG(os.stat(image).st_mode):  # opening a pipe would wait for ever
            raise ValueError("is a folder" if os.path.isdir(image) else "is no regular file")
        with Image.open(image) as file:
            self._check_sides(file)
            return to_rgb(file)

    def _check_sides(self, image: Image.Image) -> None:
        """Refuses a strip that would take gigabytes once its short side is the backbone's."""
        pixels = max(self.size) ** 2 * max(image.size) / max(min(image.size), 1)
        if Image.MAX_IMAGE_PIXELS and pixels > Image.MAX_IMAGE_PIXELS:
            raise ValueError(f"its sides differ too much ({image.width} x {image.height} pixels)")

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


def _reason(error: Exception) -> str:
    """Why an image cannot be read, in one line."""
    if isinstance(error, UnidentifiedImageError):
        return "is no image, or of a format that Pillow does not read"
    if isinstance(error, MemoryError):
        return "is too large for the memory"
    text = (getattr(error, "strerror", None) or str(error)).strip()
    return text.splitlines()[0] if text else type(error).__name__
