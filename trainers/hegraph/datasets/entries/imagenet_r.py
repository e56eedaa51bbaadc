"""ImageNetR: renditions (art, cartoons, ...) of 200 of ImageNet's classes, for testing only."""

from __future__ import annotations

from functools import partial

from ..entry import DatasetEntry, Sizes
from ..fetch.sources import IMAGENET_CLASS_NAMES, Source, promptkd_mirror, same
from ..imagenet import read_class_ids, read_test_folders

IMAGES = "imagenet-r"

ENTRY = DatasetEntry(
    name="ImageNetR",
    aliases=("imagenet_rendition",),
    train_on="ImageNet",
    folder="imagenet-rendition",
    images=IMAGES,
    read=partial(read_test_folders, images=IMAGES),
    sizes=Sizes(train=0, val=0, test=30000, classes=200),
    class_ids=partial(read_class_ids, images=IMAGES),
    templates=("a photo of a {}.",),
    negative_templates=("a photo of no {}.",),
    descriptions="imagenet",
    sources=(
        IMAGENET_CLASS_NAMES,
        Source(
            # Size and checksum: tfds
            "imagenet-r.tar", ("https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",), 2191079936,
            "sha256:18c6bf493b39a0d975d48e587437f562caab9c52ae6327dcfa9dd8eb54aa1b52", same(IMAGES),
            otherwise=promptkd_mirror("imagenet-rendition.zip", IMAGES, "classnames.txt"),
        ),
    ),
)  # fmt: skip
