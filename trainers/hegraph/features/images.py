"""Images as a backbone takes them. There is one way to read them: threads decode the next batches, in order, while the
backbone encodes; memory is constant, see `utils/threads.py`.

Shapes: B images of a batch, H x W the backbone's input resolution.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..datasets import Dataset, Item
from ..datasets.images import ImageOrPath, open_any, reason
from ..utils.errors import UserError
from ..utils.threads import MAX_THREADS, cores, in_batches

if TYPE_CHECKING:
    from ..backbones.clip import Transform


class View(NamedTuple):
    """An image of a data set, and the seed of its random transform."""

    dataset: Dataset
    path: str
    seed: int


ImageLike: TypeAlias = "ImageOrPath | View"


class ImageReader:
    """Reads images by a transform.

    Threads, one for each core where the number is 0, decode images and resize them to bytes. What is left, to floats
    and their normalisation, is done for the whole batch: the same numbers in less time, and a quarter of the memory
    while images wait.
    """

    def __init__(self, transform: Transform, threads: int = 0) -> None:
        from ..backbones.clip import in_two_steps  # open_clip takes seconds to import

        self.steps, self.finish = in_two_steps(transform)
        self.threads = threads or min(cores(), MAX_THREADS)

    def batches(
        self, images: Iterable[ImageLike], batch_size: int
    ) -> Iterator[tuple[list[ImageLike], Tensor, list[str]]]:
        """Batches of B = `batch_size` images in order, the last of which may be smaller; images are taken as needed.

        Each is what was asked for, the backbone's input `[number that could be read, 3, H, W]`, and of each image why
        it could not be read, "" for one that could.
        """
        for batch, results in in_batches(self.read, images, batch_size, self.threads):
            read = [result for result in results if not isinstance(result, str)]
            pixels = self.finish(torch.stack(read)) if read else torch.empty(0)
            yield batch, pixels, [result if isinstance(result, str) else "" for result in results]

    def read(self, image: ImageLike) -> Tensor | str:
        """One image, as the first steps of `in_two_steps` give it; else why it is unreadable.

        No exception passes: on damaged bytes, Pillow raises whatever they lead to.
        """
        from ..backbones.clip import draw_steps

        try:
            pixels: Any  # an image, until the last step makes a tensor of it
            steps = self.steps
            if isinstance(image, View):
                pixels = image.dataset.read(image.path)
                steps = draw_steps(steps, pixels, image.seed)
            else:
                pixels = open_any(image)
            for step in steps:
                pixels = step(pixels)
            return pixels
        except Exception as error:
            return reason(error)


@dataclass(frozen=True)
class ImageViews:
    """Images addressed by position: position `view * len(items) + i` is one view of item `i`.

    A random transform is seeded by the position, so a view depends neither on the order of reading nor on the batch
    size nor on the number of threads.

    Attributes:
        dataset: Where the images are.
        items: The images.
        transform: From an image to `[3, H, W]`; its crop and its flip may be random.
        views: How many views there are of each image.
        seed: Of the random transform.
    """

    dataset: Dataset
    items: Sequence[Item]
    transform: Transform
    views: int = 1
    seed: int = 0

    def __len__(self) -> int:
        return self.views * len(self.items)

    def batches(self, positions: Iterable[int], batch_size: int, threads: int = 0) -> Iterator[Tensor]:
        """The images at some positions in batches `[B, 3, H, W]`; UserError names one that cannot be read."""
        views = (
            View(self.dataset, self.items[position % len(self.items)].path, self.seed * 1_000_003 + position)
            for position in positions
        )
        for _, pixels, problems in ImageReader(self.transform, threads).batches(views, batch_size):
            if problem := next(filter(None, problems), ""):
                raise UserError(problem)
            yield pixels
