"""ImageNetA: natural images that ResNet-50 gets wrong, of 200 of ImageNet's classes, for testing only."""

from __future__ import annotations

from functools import partial

from ..entry import DatasetEntry, Sizes
from ..fetch.sources import IMAGENET_CLASS_NAMES, Source, promptkd_mirror, same
from ..imagenet import read_class_ids, read_test_folders

IMAGES = "imagenet-a"

ENTRY = DatasetEntry(
    name="ImageNetA",
    aliases=("imagenet_adversarial",),
    train_on="ImageNet",
    folder="imagenet-adversarial",
    images=IMAGES,
    read=partial(read_test_folders, images=IMAGES),
    sizes=Sizes(train=0, val=0, test=7500, classes=200),
    class_ids=partial(read_class_ids, images=IMAGES),
    templates=("a photo of a {}.",),
    negative_templates=("a photo of no {}.",),
    descriptions="imagenet",
    sources=(
        IMAGENET_CLASS_NAMES,
        Source(
            # Size and checksum: tfds
            "imagenet-a.tar", ("https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar",), 687552512,
            "sha256:3bb3632277e6ba6392ea64c02ddbf4dd2266c9caffd6bc09c9656d28f012589e", same(IMAGES),
            otherwise=promptkd_mirror(
                "imagenet-adversarial.zip", IMAGES, "classnames.txt",
                checksum="sha256:5c577c4cde2f2b1d999a1c26c9c7da31ea7fd4c47f7ad6bc4e6d71fcf646d099",
            ),
        ),
    ),
)  # fmt: skip
