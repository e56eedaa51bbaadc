"""Training batches: from a bank of features, or from images encoded anew in every epoch.

Shapes: B batch, N training images, V views, d feature width.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..utils.errors import stop_if_interrupted

if TYPE_CHECKING:  # open_clip takes seconds to import
    from ..backbones.clip import Backbone
    from ..features.images import ImageViews

STREAM = 2**55  # between the seeds of two streams; those of one stream are far closer
PRODUCTS_BYTES = 2**28  # most bytes of kept products: 256 MB is 16 shots of 101 classes in ten views


class Batch(NamedTuple):
    """The training images of one step.

    Attributes:
        features: Shape `[B, d]`.
        labels: Shape `[B]`.
        positions: Positions of the images in the cache, shape `[B]`.
        products: Products of the features with the cached ones, shape `[B, N]`; None where they are not kept.
    """

    features: Tensor
    labels: Tensor
    positions: Tensor
    products: Tensor | None = None


class TrainingData(ABC):
    """A source of batches. The batches of an epoch depend on its number alone, so training can resume at any epoch."""

    labels: Tensor
    batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.labels) / self.batch_size)

    @abstractmethod
    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of an epoch, counted from 0; every image is in one of them."""


@dataclass(frozen=True)
class BankBatches(TrainingData):
    """Batches from a bank: each epoch draws one view of every image, in a new order.

    Attributes:
        features: Shape `[V, N, d]`.
        batch_size: The last batch of an epoch may be smaller; no image is dropped.
        products: From `products_with_cache`, for a method that needs them in every step; None where they are not kept.
    """

    features: Tensor
    labels: Tensor
    batch_size: int
    seed: int
    products: Tensor | None = None

    def epoch(self, number: int) -> Iterator[Batch]:
        num_views, num_images, _ = self.features.shape
        generator = epoch_generator(self.seed, number)
        order = torch.randperm(num_images, generator=generator)
        views = torch.randint(num_views, (num_images,), generator=generator)
        rows = views * num_images + torch.arange(num_images)  # of the drawn views, in `[V N, d]`
        order, rows = order.to(self.features.device), rows.to(self.features.device)
        features = self.features.flatten(0, 1)
        products = None if self.products is None else self.products.flatten(0, 1)
        for positions in order.split(self.batch_size):
            stop_if_interrupted()
            drawn = rows[positions]
            # index_select gathers rows in a third of the time that [...] takes on a CPU
            matched = None if products is None else products.index_select(0, drawn)
            yield Batch(features.index_select(0, drawn), self.labels[positions], positions, matched)


@dataclass(frozen=True)
class OnlineBatches(TrainingData):
    """Batches of training images that are encoded with new augmentation in every epoch, as in the paper."""

    images: ImageViews
    backbone: Backbone
    labels: Tensor
    batch_size: int
    seed: int

    def epoch(self, number: int) -> Iterator[Batch]:
        # A view is seeded by its position, so epoch n takes the n-th view of each image
        images = replace(self.images, views=number + 1, seed=self.seed)
        order = torch.randperm(len(self.labels), generator=epoch_generator(self.seed, number))
        read = images.batches((number * len(self.labels) + order).tolist(), self.batch_size)
        for positions, pixels in zip(order.split(self.batch_size), read):
            positions = positions.to(self.labels.device)
            features = self.backbone.encode_images(pixels).to(self.labels.device)
            yield Batch(features, self.labels[positions], positions)


def products_with_cache(features: Tensor, keys: Tensor) -> Tensor | None:
    """The product of every training query `[V, N, d]` with every cached feature `[N, d]`, so that no step computes it:
    `[V, N, N]`, or None if that is beyond `PRODUCTS_BYTES`."""
    return features @ keys.t() if products_bytes(len(features), len(keys)) else None


def products_bytes(views: int, num_images: int) -> int:
    """Bytes of the products that `products_with_cache` keeps; 0 if it keeps none."""
    size = 4 * views * num_images**2
    return size if size <= PRODUCTS_BYTES else 0


def epoch_generator(seed: int, epoch: int, stream: int = 0) -> torch.Generator:
    """A generator of its own for every seed, epoch and stream, so that resuming needs no stored state."""
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch + stream * STREAM)
