"""The data manager."""

from __future__ import annotations

import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms.functional import pil_to_tensor
from yacs.config import CfgNode

from .datasets import DATASET_REGISTRY, Datum


class DataManager:
    """A data set of the registry and its loaders."""

    def __init__(self, cfg: CfgNode) -> None:
        self.dataset = DATASET_REGISTRY.build(cfg.DATASET.NAME, cfg)
        self.num_classes, self.lab2cname = self.dataset.num_classes, self.dataset.lab2cname
        train, test = cfg.DATALOADER.TRAIN_X.BATCH_SIZE, cfg.DATALOADER.TEST.BATCH_SIZE
        self.train_loader_x = DataLoader(self.dataset.train_x, train, shuffle=True, collate_fn=batch)
        self.val_loader = DataLoader(self.dataset.val, test, collate_fn=batch) if self.dataset.val else None
        self.test_loader = DataLoader(self.dataset.test, test, collate_fn=batch)


def batch(items: list[Datum]) -> dict:
    """Batch of a data loader from items."""
    images = torch.stack([pil_to_tensor(Image.open(item.impath).convert("RGB")) for item in items])
    return {"img": images, "label": torch.tensor([item.label for item in items])}
