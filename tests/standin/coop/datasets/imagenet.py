"""ImageNet: no split file, and val is test."""

import os
import pickle

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase

from .oxford_pets import datum, select_few_shot, subsample_classes


@DATASET_REGISTRY.register()
class ImageNet(DatasetBase):
    def __init__(self, cfg):
        folder = os.path.join(os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT)), "imagenet")
        os.makedirs(os.path.join(folder, "split_fewshot"), exist_ok=True)
        listed = os.path.join(folder, "preprocessed.pkl")
        if os.path.exists(listed):
            with open(listed, "rb") as file:
                splits = pickle.load(file)
        else:
            with open(os.path.join(folder, "classnames.txt")) as file:
                names = dict(line.strip().split(" ", 1) for line in file)
            images = os.path.join(folder, "images")
            splits = {
                to: self.read(os.path.join(images, of), names) for of, to in (("train", "train"), ("val", "test"))
            }
            with open(listed, "wb") as file:
                pickle.dump(splits, file)
        train = select_few_shot(cfg, folder, {"train": splits["train"]})["train"]
        train, test = subsample_classes(cfg.DATASET.SUBSAMPLE_CLASSES, train, splits["test"])
        super().__init__(train, test, test)

    @staticmethod
    def read(folder, names):
        return [
            datum(os.path.join(folder, wordnet_id, name), label, names[wordnet_id])
            for label, wordnet_id in enumerate(sorted(os.listdir(folder)))
            for name in os.listdir(os.path.join(folder, wordnet_id))
        ]
