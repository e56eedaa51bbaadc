"""Batches of images in the input format of a backbone.

Threads decode the next batches, in order and in constant memory (see `utils/threads.py`), while the backbone encodes.

Shapes: B images of a batch, H x W the backbone's input resolution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..datasets.base import Dataset
from ..datasets.images import ImageOrPath, open_any, reason
from ..datasets.splits import Item
from ..utils.threads import MAX_THREADS, cores, in_batches

if TYPE_CHECKING:
    from .backbones.clip import Transform


class ImageReader:
    """Reader of images that applies a transform in threads.

    Threads decode and resize images to bytes. Conversion to floats and normalisation follow for the whole batch, which
    gives equal numbers in less time and needs a quarter of the memory for waiting images.

    Args:
        transform: Function from an image to `[3, H, W]`.
        threads: Number of threads; 0 for one per core.
    """

    def __init__(self, transform: Transform, threads: int = 0) -> None:
        from .backbones.clip import split_transform  # open_clip takes seconds to import

        self.steps, self.finish = split_transform(transform)
        self.threads = threads or min(cores(), MAX_THREADS)

    def batches(
        self, images: Iterable[ImageOrPath], batch_size: int
    ) -> Iterator[tuple[list[ImageOrPath], Tensor, list[str]]]:
        """Read batches of B = `batch_size` images in order; the last batch may be smaller. `images` is consumed lazily.

        Returns:
            For each batch, its `images`; the pixels of all readable ones, shape `[at most B, 3, H, W]`; and for each
            image, the reason why it cannot be read, or "".
        """
        for batch, results in in_batches(self.read, images, batch_size, self.threads):
            readable = [result for result in results if not isinstance(result, str)]
            pixels = self.finish(torch.stack(readable)) if readable else torch.empty(0)
            yield batch, pixels, [result if isinstance(result, str) else "" for result in results]

    def read(self, image: ImageOrPath) -> Tensor | str:
        """Read an image and apply the first steps of `split_transform`.

        Returns:
            Bytes `[H, W, 3]`, or the reason why the image cannot be opened. Exceptions of the transform are raised.
        """
        try:
            pixels = open_any(image)
        except Exception as error:  # Pillow raises exceptions of many types on damaged bytes
            return reason(error)
        return apply(self.steps, pixels)


def apply(steps: Sequence[Callable], image: Any) -> Tensor:
    """Apply the steps of a transform, the last of which returns a tensor, to an image."""
    for step in steps:
        image = step(image)
    return image


@dataclass(frozen=True)
class ImageViews:
    """Views of images, addressed by position: `view * len(items) + i` is a view of item `i`.

    The position seeds the random transform, so a view is independent of reading order, batch size and number of
    threads.

    Attributes:
        dataset: Data set of the images.
        items: The images.
        transform: Function from an image to `[3, H, W]`; crop and flip may be random.
        views: Number of views of each image.
        seed: Seed of the random transform.
    """

    dataset: Dataset
    items: Sequence[Item]
    transform: Transform
    views: int = 1
    seed: int = 0

    def __len__(self) -> int:
        return self.views * len(self.items)

    def batches(self, positions: Iterable[int], batch_size: int, threads: int = 0) -> Iterator[Tensor]:
        """Read the views at `positions` in batches `[B, 3, H, W]`; UserError on an unreadable image."""
        batch: list[Tensor] = []
        for _, pixels in self.stream(positions, batch_size, threads):
            batch.append(pixels)
            if len(batch) == batch_size:
                yield self.finish(torch.stack(batch))
                batch = []
        if batch:
            yield self.finish(torch.stack(batch))

    def stream(self, positions: Iterable[int], ahead: int, threads: int = 0) -> Iterator[tuple[int, Tensor]]:
        """Read the views at `positions`, in order; an image is decoded once for consecutive positions.

        Args:
            positions: Positions of views, consumed as needed.
            ahead: Number of images of a batch that threads read ahead.
            threads: Number of threads; 0 for one per core.

        Returns:
            Each position with its pixels before the steps of `finish`.

        Raises:
            UserError: On an unreadable image.
        """
        groups = ([*group] for _, group in groupby(positions, lambda position: position % len(self.items)))
        for batch, results in in_batches(self._read, groups, ahead, threads or min(cores(), MAX_THREADS)):
            for group, pixels in zip(batch, results):
                yield from zip(group, pixels)

    def finish(self, pixels: Tensor) -> Tensor:
        """Apply the steps of the transform that take a whole batch, to `[B, 3, H, W]`."""
        return self._split[1](pixels)

    @cached_property
    def _split(self) -> tuple[Sequence[Callable], Callable[[Tensor], Tensor]]:
        from .backbones.clip import split_transform  # open_clip takes seconds to import

        return split_transform(self.transform)

    def _read(self, positions: Sequence[int]) -> list[Tensor]:
        """Read the views of one image at `positions`; UserError if it is unreadable."""
        from .backbones.clip import sample_steps

        image = self.dataset.read(self.items[positions[0] % len(self.items)].path)
        views = []
        for position in positions:
            steps = sample_steps(self._split[0], image, self.seed * 1_000_003 + position)
            views.append(apply(steps, image))
        return views
