"""The data manager."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms.functional import pil_to_tensor
from yacs.config import CfgNode

from .datasets import DATASET_REGISTRY, Datum


class DataManager:
    """A data set of the registry and its loaders."""

    num_source_domains = 0

    def __init__(self, cfg: CfgNode, custom_tfm_train: object = None, custom_tfm_test: object = None) -> None:
        self.dataset = DATASET_REGISTRY.build(cfg.DATASET.NAME, cfg)
        self.num_classes, self.lab2cname = self.dataset.num_classes, self.dataset.lab2cname
        size = cfg.DATALOADER.TEST.BATCH_SIZE
        of_train, of_test = partial(batch, custom_tfm_train or plain), partial(batch, custom_tfm_test or plain)
        data = self.dataset
        self.train_loader_x = DataLoader(data.train_x, cfg.DATALOADER.TRAIN_X.BATCH_SIZE, True, collate_fn=of_train)
        self.val_loader = DataLoader(data.val, size, collate_fn=of_test) if data.val else None
        self.test_loader = DataLoader(data.test, size, collate_fn=of_test)


def plain(image: Image.Image) -> torch.Tensor:
    """Pixels of an image."""
    return pil_to_tensor(image)


def batch(transform: Callable, items: list[Datum]) -> dict:
    """Batch of a data loader from items."""
    images = torch.stack([transform(Image.open(item.impath).convert("RGB")) for item in items])
    return {"img": images, "label": torch.tensor([item.label for item in items])}
