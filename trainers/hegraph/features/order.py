"""The order in which views are encoded: image by image, so that each image is decoded once for all its views.

A row is a place in this order, and a position addresses a view (see `ImageViews`). The rows are encoded in batches, and
batches in steps, which are small enough to be written every few seconds. Neither changes a feature: an encoder gives
equal features, bit for bit, for a number of rows from `Backbone.least_rows` on, wherever an image stands. Fewer rows
take other routines of the processor, so the last, incomplete batch always has the last positions.

Shapes: V views, N images, R = V N rows, H x W the backbone's input resolution.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .images import ImageViews
from .options import EncodingOptions

if TYPE_CHECKING:
    from .backbones.base import Backbone


def encoding_order(images: ImageViews, batch_size: int) -> Tensor:
    """Return the position of each row, int64 of shape `[R]`.

    The rows of complete batches are sorted by image, then by view. The R mod `batch_size` last rows are the last
    positions.
    """
    by_image = torch.arange(len(images)).view(images.views, -1).t().flatten()
    last = _last_batch(images, batch_size)
    return torch.cat([by_image[by_image < last], torch.arange(last, len(images))])


def _last_batch(images: ImageViews, batch_size: int) -> int:
    """Return the first row, and the first position, of the last, incomplete batch."""
    return len(images) - len(images) % batch_size


def encoding_steps(backbone: Backbone, num_rows: int, batch_size: int) -> list[range]:
    """Split the rows into steps, each of which the backbone encodes in one call."""
    steps = []
    for start in range(0, num_rows, batch_size):
        size = min(batch_size, num_rows - start)
        bounds = [start, *range(start + backbone.step_rows, start + size, backbone.step_rows), start + size]
        if not backbone.splits(size):
            bounds = [start, start + size]
        elif len(bounds) > 2 and bounds[-1] - bounds[-2] < backbone.least_rows:
            del bounds[-2]  # the last step takes the remainder
        steps += [range(*pair) for pair in pairwise(bounds)]
    return steps


def pixels_of_steps(
    images: ImageViews, order: Tensor, steps: Sequence[range], options: EncodingOptions
) -> Iterator[tuple[range, Tensor]]:
    """Read the views of steps, and decode each image once.

    Args:
        images: The views.
        order: Position of each row, from `encoding_order`.
        steps: Steps from `encoding_steps`, in order.
        options: Batch size and number of threads.

    Returns:
        Each step with its pixels `[len(step), 3, H, W]`.

    Raises:
        UserError: On an unreadable image.
    """
    if not steps:
        return
    last = _last_batch(images, options.batch_size)
    positions = torch.cat([order[step.start : step.stop] for step in steps])
    number = positions % len(images.items)
    view = positions // len(images.items)
    by_image = positions[torch.argsort(number * images.views + view)].tolist()
    last_views: dict[int, Tensor] = {}  # by position; they are read with the other views of their images
    collected: list[Tensor] = []
    remaining = iter(steps)
    step = next(remaining)
    images_ahead = math.ceil(options.batch_size / images.views)
    for position, view_pixels in images.stream(by_image, images_ahead, options.num_workers):
        if position >= last:
            last_views[position] = view_pixels
            continue
        collected.append(view_pixels)
        if len(collected) == len(step):
            yield step, images.finish(torch.stack(collected))
            collected = []
            step = next(remaining, range(0))
    while step:
        yield step, images.finish(torch.stack([last_views[row] for row in step]))
        step = next(remaining, range(0))
