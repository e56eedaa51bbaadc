"""Food101: 101 dishes. CoOp does not use the official split but draws all three parts."""

from __future__ import annotations

from functools import partial

from ..entry import DatasetEntry, Sizes
from ..fetch.sources import Source, coop_split, promptkd_mirror, same
from ..layouts import split_class_folders

ENTRY = DatasetEntry(
    name="Food101",
    aliases=("food",),
    folder="food-101",
    images="images",
    split_file="split_zhou_Food101.json",
    read=partial(split_class_folders, images="images"),
    sizes=Sizes(train=50500, val=20200, test=30300, classes=101),
    templates=("a photo of {}, a type of food.",),
    negative_templates=("a photo of no {}, a type of food.",),
    descriptions="food101",
    sources=(
        coop_split("Food101", "1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl"),
        Source(
            # torchvision, which has http; public download logs show that https serves the same 4996278331 bytes
            "food-101.tar.gz", ("https://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",), 4996278331,
            "md5:85eeb15f3717b99a5da872d97d918f87", same("images", "meta"),
            otherwise=promptkd_mirror("food101.zip", "images", "meta", "split_zhou_Food101.json"),
        ),
    ),
)  # fmt: skip
