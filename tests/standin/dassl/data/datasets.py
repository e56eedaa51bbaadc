"""Items, data sets and their registry."""

from __future__ import annotations

import logging
import operator
import os
import random
import warnings

logging.disable(logging.WARNING)

import pandas  # noqa: E402, F401 (Dassl has data sets that need them, and imports all)
from wilds import get_dataset  # noqa: E402, F401

from dassl.utils import Registry  # noqa: E402

DATASET_REGISTRY = Registry("data set")


class Datum:
    """One labelled image, which exists."""

    def __init__(self, impath: str = "", label: int = 0, classname: str = "") -> None:
        if not os.path.isfile(impath):
            warnings.warn(f'No file found at "{impath}"', stacklevel=2)
            raise AssertionError
        self._impath, self._label, self._classname = impath, label, classname

    impath = property(operator.attrgetter("_impath"))
    label = property(operator.attrgetter("_label"))
    classname = property(operator.attrgetter("_classname"))


class DatasetBase:
    """Items of train, val and test; the classes are those of train."""

    def __init__(self, train_x: list[Datum], val: list[Datum], test: list[Datum]) -> None:
        self.train_x, self.val, self.test = train_x, val, test
        self.lab2cname = {item.label: item.classname for item in train_x}
        self.classnames = [self.lab2cname[label] for label in sorted(self.lab2cname)]
        self.num_classes = max(self.lab2cname) + 1

    @staticmethod
    def generate_fewshot_dataset(items: list[Datum], num_shots: int) -> list[Datum]:
        by_label: dict[int, list[Datum]] = {}
        for item in items:
            by_label.setdefault(item.label, []).append(item)
        drawn = []
        for of_class in by_label.values():
            drawn += random.sample(of_class, num_shots) if len(of_class) >= num_shots else of_class
        return drawn
