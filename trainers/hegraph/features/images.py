"""Batches of images in the input format of a backbone.

Threads decode the next batches, in order and in constant memory (see `utils/threads.py`), while the backbone encodes.

Shapes: B images of a batch, H x W the backbone's input resolution.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..datasets.base import Dataset
from ..datasets.images import ImageOrPath, open_any, reason
from ..datasets.splits import Item
from ..utils.errors import UserError
from ..utils.threads import MAX_THREADS, cores, in_batches

if TYPE_CHECKING:
    from .backbones.clip import Transform


class View(NamedTuple):
    """An image of a data set, with the seed of its random transform."""

    dataset: Dataset
    path: str
    seed: int


ImageLike: TypeAlias = "ImageOrPath | View"


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
        self, images: Iterable[ImageLike], batch_size: int
    ) -> Iterator[tuple[list[ImageLike], Tensor, list[str]]]:
        """Read batches of B = `batch_size` images in order; the last batch may be smaller. `images` is consumed lazily.

        Returns:
            For each batch, its `images`; the pixels of all readable ones, shape `[at most B, 3, H, W]`; and for each
            image, the reason why it cannot be read, or "".
        """
        for batch, results in in_batches(self.read, images, batch_size, self.threads):
            readable = [result for result in results if not isinstance(result, str)]
            pixels = self.finish(torch.stack(readable)) if readable else torch.empty(0)
            yield batch, pixels, [result if isinstance(result, str) else "" for result in results]

    def read(self, image: ImageLike) -> Tensor | str:
        """Read an image and apply the first steps of `split_transform`; returns the reason if it is unreadable.

        No exception is raised, although Pillow raises exceptions of many types on damaged bytes.
        """
        from .backbones.clip import sample_steps

        try:
            pixels: Any  # an image, which the last step converts to a tensor
            steps = self.steps
            if isinstance(image, View):
                pixels = image.dataset.read(image.path)
                steps = sample_steps(steps, pixels, image.seed)
            else:
                pixels = open_any(image)
            for step in steps:
                pixels = step(pixels)
            return pixels
        except Exception as error:
            return reason(error)


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
        views = (
            View(self.dataset, self.items[position % len(self.items)].path, self.seed * 1_000_003 + position)
            for position in positions
        )
        for _, pixels, problems in ImageReader(self.transform, threads).batches(views, batch_size):
            if problem := next(filter(None, problems), ""):
                raise UserError(problem)
            yield pixels
