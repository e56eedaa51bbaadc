"""The least time that a step can take: its multiply-adds alone, at the speed of a matrix product of similar size."""

from collections.abc import Callable

from torch import Tensor

from .tasks import unit_features


def graph_multiply_adds(num_classes: int, width: int) -> int:
    """The multiply-adds of one graph step, forward and backward. Elementwise operations are not counted."""
    square = num_classes * width * width
    messages = 6 * square + 6 * square + square  # six messages, six gradients of W, one gradient of an input
    # The updated negative nodes are aggregated in every step; the five other relations were before the first
    aggregation = 2 * min(num_classes, 2 * width) * num_classes * width  # forward and backward
    return messages + aggregation


def multiply_adds(num_classes: int, width: int, cached: int, batch: int) -> int:
    """The multiply-adds of a whole training step.

    Args:
        num_classes: K.
        width: Feature width d.
        cached: Number of cached images N.
        batch: Number of images in the batch B.
    """
    text = 2 * batch * num_classes * width
    cache = batch * cached * width + 2 * batch * num_classes * width  # f F', then f s' and the gradient of s
    return graph_multiply_adds(num_classes, width) + text + cache


def product_for(num_classes: int, width: int, count: int) -> tuple[Callable[[], Tensor], float]:
    """A matrix product as large as those in a step, to be timed beside it.

    Args:
        num_classes: K.
        width: Feature width d.
        count: The multiply-adds of the step.

    Returns:
        A function that computes the product; the factor that turns its seconds into those of `count` multiply-adds.
    """
    rows, matrix = unit_features(4 * num_classes, width), unit_features(width, width)
    return lambda: rows @ matrix, count / rows.numel() / width
