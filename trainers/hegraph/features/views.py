"""Images as the backbone takes them, with augmented views that do not depend on the order of reading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.utils.data
from PIL import Image
from torch import Tensor

from ..backbones.clip import Backbone, Transform
from ..datasets import Dataset, Item
from ..utils.errors import UserError
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
        image = open_image(self.dataset, item)
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's global generator
            torch.manual_seed(self.seed * 1_000_003 + position)
            return position, self.transform(image)


def open_image(dataset: Dataset, item: Item) -> Image.Image:
    """Opens the image of an item as RGB.

    Raises:
        UserError: If it cannot be read; the message names the file.
    """
    try:
        return dataset.open(item.path).convert("RGB")
    except MemoryError as error:
        raise UserError(
            f"cannot read the image {item.path} of {dataset.name}: it is too large for the memory"
        ) from error
    except Exception as error:  # on damaged bytes, Pillow raises whatever they lead to
        raise UserError(
            f"cannot read the image {item.path} of {dataset.name}: {error or type(error).__name__}"
        ) from error


def training_augmentation(backbone: Backbone, options: EncodingOptions) -> Transform:
    """The random transform of training images."""
    return backbone.training_transform(options.transforms, options.crop_scale, options.interpolation)
