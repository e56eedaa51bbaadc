"""Caltech101."""

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase

from .oxford_pets import load


@DATASET_REGISTRY.register()
class Caltech101(DatasetBase):
    def __init__(self, cfg):
        super().__init__(*load(cfg, "caltech-101", "101_ObjectCategories", "split_zhou_Caltech101.json"))
