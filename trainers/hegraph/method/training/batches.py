"""Training batches from a feature bank, or from images that are encoded in each epoch.

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

from ...utils.signals import stop_if_interrupted

if TYPE_CHECKING:  # open_clip takes seconds to import
    from ...features.backbones.base import Backbone
    from ...features.images import ImageViews

STREAM = 2**55  # distance between the seeds of two streams, far larger than the seeds within one
PRODUCTS_BYTES = 2**28  # limit of precomputed products: 256 MB is 16 shots of 101 classes in ten views


class Batch(NamedTuple):
    """Training images of one step.

    Attributes:
        features: Unit-norm features, shape `[B, d]`.
        labels: Classes, shape `[B]`.
        positions: Positions of the images in the cache, shape `[B]`.
        products: Products of the features with the cache keys, shape `[B, N]`; None if they are not precomputed.
    """

    features: Tensor
    labels: Tensor
    positions: Tensor
    products: Tensor | None = None


class TrainingData(ABC):
    """Source of batches, which depend on the epoch alone, so that training can resume at any epoch."""

    labels: Tensor
    batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.labels) / self.batch_size)

    @abstractmethod
    def epoch(self, number: int) -> Iterator[Batch]:
        """Batches of an epoch, counted from 0, with each image once."""


@dataclass(frozen=True)
class BankBatches(TrainingData):
    """Batches from a feature bank. Each epoch samples one view of each image, in a new order.

    Attributes:
        features: Features of all views, shape `[V, N, d]`.
        batch_size: Number of images of a batch. The last batch of an epoch may be smaller.
        products: Result of `products_with_cache`; None if products are not precomputed.
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
        rows = views * num_images + torch.arange(num_images)  # of the sampled views, in `[V N, d]`
        order = order.to(self.features.device)
        rows = rows.to(self.features.device)
        features = self.features.flatten(0, 1)
        products = None if self.products is None else self.products.flatten(0, 1)
        for positions in order.split(self.batch_size):
            stop_if_interrupted()
            batch_rows = rows[positions]
            # on a CPU, index_select takes a third of the time of [...]
            batch_products = None if products is None else products.index_select(0, batch_rows)
            yield Batch(features.index_select(0, batch_rows), self.labels[positions], positions, batch_products)


@dataclass(frozen=True)
class OnlineBatches(TrainingData):
    """Batches of training images that are augmented and encoded in each epoch, as in the paper."""

    images: ImageViews
    backbone: Backbone
    labels: Tensor
    batch_size: int
    seed: int

    def epoch(self, number: int) -> Iterator[Batch]:
        # A view is seeded by its position, so epoch n takes the n-th view of each image
        images = replace(self.images, views=number + 1, seed=self.seed)
        order = torch.randperm(len(self.labels), generator=epoch_generator(self.seed, number))
        pixel_batches = images.batches((number * len(self.labels) + order).tolist(), self.batch_size)
        for positions, pixels in zip(order.split(self.batch_size), pixel_batches):
            positions = positions.to(self.labels.device)
            features = self.backbone.encode_images(pixels).to(self.labels.device)
            yield Batch(features, self.labels[positions], positions)


def products_with_cache(features: Tensor, keys: Tensor) -> Tensor | None:
    """Products of all training queries `[V, N, d]` with all cache keys `[N, d]`, shape `[V, N, N]`.

    Training steps then need no product with the cache. None if the result would exceed `PRODUCTS_BYTES`.
    """
    return features @ keys.t() if products_bytes(len(features), len(keys)) else None


def products_bytes(views: int, num_images: int) -> int:
    """Bytes of the result of `products_with_cache`; 0 if that is None."""
    size = 4 * views * num_images**2
    return size if size <= PRODUCTS_BYTES else 0


def epoch_generator(seed: int, epoch: int, stream: int = 0) -> torch.Generator:
    """Random generator of one seed, epoch and stream, so that a resumed training needs no stored state."""
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch + stream * STREAM)
