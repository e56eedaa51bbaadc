"""The floor of a step: its multiply-adds alone, at the rate of a matrix product that is timed beside it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .tasks import unit_features


def graph_multiply_adds(num_classes: int, width: int) -> int:
    """Of the matrix products of one graph step, forward and backward; what is elementwise is not counted."""
    square = num_classes * width * width
    messages = 6 * square + 6 * square + square  # six messages, the gradients of W, that of one input
    aggregation = 2 * min(num_classes, 2 * width) * num_classes * width  # of the updated negative nodes, and back
    return messages + aggregation


def multiply_adds(num_classes: int, width: int, cached: int, batch: int) -> int:
    """The same of a whole training step."""
    text = 2 * batch * num_classes * width
    cache = batch * cached * width + 2 * batch * num_classes * width  # f . F, f . s, and the gradient of s
    return graph_multiply_adds(num_classes, width) + text + cache


def product_for(num_classes: int, width: int, count: int) -> tuple[Callable[[], Tensor], float]:
    """A matrix product of the size of those in a step.

    Returns:
        The product, and by what its seconds are multiplied to be those of `count` multiply-adds.
    """
    rows, matrix = unit_features(4 * num_classes, width), unit_features(width, width)
    return lambda: rows @ matrix, count / rows.numel() / width
