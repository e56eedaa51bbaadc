"""Loaders of features in the form of Dassl's loaders of images: batches `{"img": ..., "label": ..., "index": ...}`.

"img" has unit-norm features `[B, d]`, "label" the classes `[B]`, "index" the positions of the images in the data set.
"""

import math
from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from torch import Tensor

from ..method.training.batches import Batch, TrainingData


class TrainLoader:
    """Training features of an epoch, which `set_epoch` chooses: order and views depend on the epoch alone.

    Args:
        data: Source of the batches.
    """

    def __init__(self, data: TrainingData) -> None:
        self.data = data
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.data.steps_per_epoch

    def __iter__(self) -> Iterator[dict]:
        for batch in self.data.epoch(self.epoch):
            yield {
                "img": batch.features,
                "label": batch.labels,
                "index": batch.positions,
                "products": batch.products,
                "domain": torch.zeros_like(batch.labels),
            }


def to_batch(batch: dict) -> Batch:
    """Return a batch of `TrainLoader` as the training of this package takes it."""
    return Batch(batch["img"], batch["label"], batch["index"], batch["products"])


class TestLoader:
    """Features of val or test images in their order, encoded when they are first needed.

    Args:
        encode: Function that returns the features `[M, d]`.
        labels: Classes of the images, `[M]`.
        batch_size: Number of images per batch.
    """

    __test__ = False  # no test of pytest

    def __init__(self, encode: Callable[[], Tensor], labels: Tensor, batch_size: int) -> None:
        self.encode = encode
        self.labels = labels
        self.batch_size = batch_size

    @cached_property
    def features(self) -> Tensor:
        """Features of all images, `[M, d]`."""
        return self.encode()

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self.batch_size)

    def __iter__(self) -> Iterator[dict]:
        for positions in torch.arange(len(self.labels)).split(self.batch_size):
            labels = self.labels[positions]
            yield {
                "img": self.features[positions],
                "label": labels,
                "index": positions,
                "domain": torch.zeros_like(labels),
            }
