"""ImageNetSketch: sketches of ImageNet's 1,000 classes, for testing only."""

from __future__ import annotations

from functools import partial

from ..entry import DatasetEntry, Sizes
from ..fetch.sources import IMAGENET_CLASS_NAMES, Member, Source, promptkd_mirror
from ..imagenet import read_class_ids, read_test_folders

ENTRY = DatasetEntry(
    name="ImageNetSketch",
    train_on="ImageNet",
    folder="imagenet-sketch",
    images="images",
    read=partial(read_test_folders, images="images"),
    sizes=Sizes(train=0, val=0, test=50889, classes=1000),
    class_ids=partial(read_class_ids, images="images"),
    templates=("a photo of a {}.",),
    negative_templates=("a photo of no {}.",),
    descriptions="imagenet",
    sources=(
        IMAGENET_CLASS_NAMES,
        Source(
            # The copy of one of the creators, then the link of github.com/HaohanWang/ImageNet-Sketch
            "ImageNet-Sketch.zip",
            ("https://huggingface.co/datasets/songweig/imagenet_sketch/resolve/main/data/ImageNet-Sketch.zip",
             "gdrive:1Mj0i5HBthqH1p_yeXzsg22gZduvgoNeA"),
            unpack=(Member("sketch", "images"),),
            otherwise=promptkd_mirror(
                "imagenet-sketch.zip", "images", "classnames.txt",
                checksum="sha256:8f93bc6064cf9d984a64b46925b7f53ab573224ca1c38a404d767b3565e3863f",
            ),
        ),
    ),
)  # fmt: skip
