"""The data manager."""

from __future__ import annotations

from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import pil_to_tensor
from yacs.config import CfgNode

from .datasets import DATASET_REGISTRY, Datum


class Images(Dataset):
    """What loaders hand out."""

    def __init__(self, items: list[Datum]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict:
        item = self.items[index]
        return {"img": pil_to_tensor(Image.open(item.impath).convert("RGB")), "label": item.label}


class DataManager:
    """A data set of the registry and its loaders."""

    def __init__(self, cfg: CfgNode) -> None:
        self.dataset = DATASET_REGISTRY.build(cfg.DATASET.NAME, cfg)
        self.num_classes, self.lab2cname = self.dataset.num_classes, self.dataset.lab2cname
        self.num_source_domains = 0
        train, test = cfg.DATALOADER.TRAIN_X.BATCH_SIZE, cfg.DATALOADER.TEST.BATCH_SIZE
        self.train_loader_x = DataLoader(Images(self.dataset.train_x), batch_size=train, shuffle=True)
        self.train_loader_u = None
        self.val_loader = DataLoader(Images(self.dataset.val), batch_size=test) if self.dataset.val else None
        self.test_loader = DataLoader(Images(self.dataset.test), batch_size=test)
