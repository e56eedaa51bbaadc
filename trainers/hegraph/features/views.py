"""Images as the backbone takes them, with augmented views that do not depend on the order of reading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.utils.data
from torch import Tensor

from ..backbones.clip import Backbone, Transform
from ..datasets import Dataset, Item
from .options import EncodingOptions


@dataclass(frozen=True)
class ImageViews(torch.utils.data.Dataset):
    """Images addressed by position: position `view * len(items) + i` is one view of item `i`.

    A random transform is seeded by the position, so a view depends neither on the order of reading nor on the batch
    size nor on the number of workers.

    Attributes:
        dataset: Where the images are.
        items: The images.
        transform: From an image to `[3, H, W]`; it may draw from torch's generator.
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

    def __getitem__(self, position: int) -> tuple[int, Tensor]:
        """The position and the image there, `[3, H, W]`; raises UserError if it cannot be read."""
        item = self.items[position % len(self.items)]
        image = self.dataset.read(item.path)
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's global generator
            torch.manual_seed(self.seed * 1_000_003 + position)
            return position, self.transform(image)


def training_augmentation(backbone: Backbone, options: EncodingOptions) -> Transform:
    """The random transform of training images."""
    return backbone.training_transform(options.transforms, options.crop_scale, options.interpolation)
