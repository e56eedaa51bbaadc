"""Lower limit of the time of a step: its multiply-adds at the speed of a matrix product of similar size."""

from collections.abc import Callable

from torch import Tensor

from .tasks import unit_features


def graph_multiply_adds(num_classes: int, width: int) -> int:
    """Count the multiply-adds of a forward and backward pass of the graph, without elementwise operations."""
    square = num_classes * width * width
    messages = 6 * square + 6 * square + square  # six messages, six gradients of W, one gradient of an input
    # Each step aggregates the updated negative nodes. The other five relations are aggregated before the first step
    aggregation = 2 * min(num_classes, 2 * width) * num_classes * width  # forward and backward
    return messages + aggregation


def multiply_adds(num_classes: int, width: int, cached: int, batch: int) -> int:
    """Count the multiply-adds of a whole training step.

    Args:
        num_classes: Number of classes K.
        width: Feature width d.
        cached: Number of cached images N.
        batch: Number of images in the batch B.
    """
    text = 2 * batch * num_classes * width
    cache = batch * cached * width + 2 * batch * num_classes * width  # f F', then f s' and the gradient of s
    return graph_multiply_adds(num_classes, width) + text + cache


def product_for(num_classes: int, width: int, count: int) -> tuple[Callable[[], Tensor], float]:
    """Return a matrix product of the size of those in a step, for timing beside the step.

    Args:
        num_classes: Number of classes K.
        width: Feature width d.
        count: Number of multiply-adds of the step.

    Returns:
        Function that computes the product, and the factor from its seconds to those of `count` multiply-adds.
    """
    rows, matrix = unit_features(4 * num_classes, width), unit_features(width, width)
    return lambda: rows @ matrix, count / rows.numel() / width
