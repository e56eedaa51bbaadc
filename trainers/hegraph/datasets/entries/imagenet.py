"""ImageNet (ILSVRC 2012): 1,000 classes. As in CoOp, its official validation images are both val and test."""

from __future__ import annotations

from functools import partial

from ..entry import ByHand, DatasetEntry, Sizes
from ..fetch.sources import IMAGENET_CLASS_NAMES
from ..imagenet import read_class_ids, read_imagenet

ENTRY = DatasetEntry(
    name="ImageNet",
    aliases=("imagenet1k",),
    folder="imagenet",
    images="images",
    read=read_imagenet,
    sizes=Sizes(train=1281167, val=50000, test=50000, classes=1000),
    class_ids=partial(read_class_ids, images="images/train"),
    templates=("a photo of a {}.",),
    negative_templates=("a photo of no {}.",),
    descriptions="imagenet",
    sources=(IMAGENET_CLASS_NAMES,),
    by_hand=ByHand(
        "images",
        "ImageNet's images need a licence: register at https://image-net.org, download ILSVRC2012_img_train.tar and "
        "ILSVRC2012_img_val.tar, and unpack them to imagenet/images/train/<WordNet id>/ and imagenet/images/val/ below "
        "the data root (or link folders that you have there)",
    ),
)
