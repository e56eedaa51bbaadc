"""What a data set is: class names in label order, three lists of items, and how to open one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from .splits import Item


@dataclass(frozen=True)
class Dataset:
    """A labelled image data set with its full splits.

    Attributes:
        name: As in `DATASET.NAME`.
        classnames: The K class names in label order.
        train: The pool from which few-shot training images are drawn.
        val: The pool for validation; may be empty.
        test: The test images.
        open: Takes an item's path, returns the image.
    """

    name: str
    classnames: Sequence[str]
    train: list[Item]
    val: list[Item]
    test: list[Item]
    open: Callable[[str], Image.Image]
