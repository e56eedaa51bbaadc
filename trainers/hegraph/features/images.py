"""Batches of images in the input format of a backbone.

Threads decode the next batches, in order and in constant memory (see `utils/threads.py`), while the backbone encodes.

Shapes: B images of a batch, H x W the backbone's input resolution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..datasets.base import Dataset
from ..datasets.decoding import FULL, LazyImage
from ..datasets.images import ImageOrPath, reason
from ..datasets.splits import Item
from ..utils.threads import MAX_THREADS, cores, in_batches

if TYPE_CHECKING:
    from .backbones.transforms import Transform


class ImageReader:
    """Reader of images that applies a transform in threads.

    Threads decode and resize images to bytes. Conversion to floats and normalisation follow for the whole batch, which
    gives equal numbers in less time and needs a quarter of the memory for waiting images.

    Args:
        transform: Function from an image to `[3, H, W]`.
        threads: Number of threads; 0 for one per core.
    """

    def __init__(self, transform: Transform, threads: int = 0) -> None:
        from .backbones.transforms import Preprocess, decoding_of, split_transform  # torchvision is slow

        steps, self.finish = split_transform(transform)
        self.transform = Preprocess(steps, decoding_of(transform))
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
            decoded = self.transform.decoded(image)
        except Exception as error:  # Pillow raises exceptions of many types on damaged bytes
            return reason(error)
        return self.transform(decoded)


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
        from .backbones.transforms import split_transform  # torchvision takes a second to import

        return split_transform(self.transform)

    @property
    def decode(self) -> str:
        """Decoding of the images: "auto" if the transform has it, and `dataset` has files that may be reduced."""
        from .backbones.transforms import decoding_of

        return FULL if self.dataset.source is None else decoding_of(self.transform)

    def _read(self, positions: Sequence[int]) -> list[Tensor]:
        """Read the views of one image at `positions`; UserError if it is unreadable."""
        from .backbones.transforms import apply, decoded_for, sample_steps

        path = self.items[positions[0] % len(self.items)].path
        if self.decode == FULL:
            image = LazyImage.whole(self.dataset.read(path))
        else:
            image = self.dataset.read_lazily(path, self.decode)
        views = []
        for position in positions:
            steps = sample_steps(self._split[0], image.size, self.seed * 1_000_003 + position)
            with self.dataset.explaining(path):
                decoded = decoded_for(steps, image)
            views.append(apply(steps, decoded))
        return views
