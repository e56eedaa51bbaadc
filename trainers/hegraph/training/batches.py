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

if TYPE_CHECKING:  # open_clip takes seconds to import
    from ..backbones.clip import Backbone
    from ..features.views import ImageViews

PRODUCTS_BYTES = 2**28  # 256 MB: 16 shots of 101 classes in ten views


class Batch(NamedTuple):
    """Training images.

    Attributes:
        features: Shape `[B, d]`.
        labels: Shape `[B]`.
        positions: In the cache, shape `[B]`.
        products: With the cached features, shape `[B, N]`, where they are kept; else None.
    """

    features: Tensor
    labels: Tensor
    positions: Tensor
    products: Tensor | None = None


class TrainingData(ABC):
    """A source of batches. Those of an epoch depend on its number and nothing else, so any can be resumed."""

    labels: Tensor
    batch_size: int

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
        labels: Shape `[N]`.
        batch_size: The last batch of an epoch may be smaller; no image is dropped.
        seed: Of the order and the views.
        products: From `products_with_cache`, for a method that asks for them in every step; None: not kept.
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
        order, views = order.to(self.features.device), views.to(self.features.device)
        for positions in order.split(self.batch_size):
            drawn = views[positions], positions
            products = None if self.products is None else self.products[drawn]
            yield Batch(self.features[drawn], self.labels[positions], positions, products)


@dataclass(frozen=True)
class OnlineBatches(TrainingData):
    """Batches encoded by the backbone, with new augmentation in every epoch, as in the paper.

    Attributes:
        images: The training images with their random transform.
        backbone: The frozen CLIP.
        labels: Shape `[N]`.
        batch_size: As in `BankBatches`.
        seed: Of the order and the augmentation.
    """

    images: ImageViews
    backbone: Backbone
    labels: Tensor
    batch_size: int
    seed: int

    def epoch(self, number: int) -> Iterator[Batch]:
        # Every epoch is a further view of each image: views are seeded by their position
        images = replace(self.images, views=number + 1, seed=self.seed)
        order = torch.randperm(len(self.labels), generator=epoch_generator(self.seed, number))
        for positions in order.split(self.batch_size):
            pixels = [images[number * len(self.labels) + i][1] for i in positions.tolist()]
            positions = positions.to(self.labels.device)
            features = self.backbone.encode_images(torch.stack(pixels)).to(self.labels.device)
            yield Batch(features, self.labels[positions], positions)


def products_with_cache(features: Tensor, keys: Tensor) -> Tensor | None:
    """Every training query with every cached feature, so that no step multiplies them again.

    Args:
        features: Shape `[V, N, d]`.
        keys: Shape `[N, d]`.

    Returns:
        Shape `[V, N, N]`; None if that is beyond `PRODUCTS_BYTES`.
    """
    return features @ keys.t() if products_bytes(len(features), len(keys)) else None


def products_bytes(views: int, num_images: int) -> int:
    """Of the products that are kept; 0 if they are not."""
    size = 4 * views * num_images**2
    return size if size <= PRODUCTS_BYTES else 0


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """A generator of its own for every seed and epoch, so that resuming needs no stored state."""
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)
