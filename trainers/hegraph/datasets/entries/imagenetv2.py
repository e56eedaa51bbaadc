"""ImageNetV2: new test images of ImageNet's 1,000 classes (the part "matched frequency")."""

from __future__ import annotations

from ..entry import DatasetEntry, Sizes
from ..fetch.sources import IMAGENET_CLASS_NAMES, Source, promptkd_mirror, same
from ..imagenet import IMAGENET_V2_IMAGES, read_all_class_ids, read_imagenet_v2

ENTRY = DatasetEntry(
    name="ImageNetV2",
    aliases=("imagenet_v2_matched_frequency",),
    train_on="ImageNet",
    folder="imagenetv2",
    images=IMAGENET_V2_IMAGES,
    read=read_imagenet_v2,
    sizes=Sizes(train=0, val=0, test=10000, classes=1000),
    class_ids=read_all_class_ids,
    templates=("a photo of a {}.",),
    negative_templates=("a photo of no {}.",),
    descriptions="imagenet",
    sources=(
        IMAGENET_CLASS_NAMES,
        Source(
            # The creators' own copy, in place of their bucket; size and checksum: its commit page. A plain tar, despite
            # its name
            "imagenetv2-matched-frequency.tar.gz",
            ("https://huggingface.co/datasets/vaishaal/ImageNetV2/resolve/"
             "d626240be2538720e83103a0e1178d24aca8b12c/imagenetv2-matched-frequency.tar.gz",),
            1264079360, "sha256:f0c37fdf925916b19ea1323cd9a2208cdb6959ba2c32eef2a7fc393835c9ca7c",
            same(IMAGENET_V2_IMAGES),
            otherwise=promptkd_mirror("imagenetv2.zip", IMAGENET_V2_IMAGES, "classnames.txt"),
        ),
    ),
)  # fmt: skip
