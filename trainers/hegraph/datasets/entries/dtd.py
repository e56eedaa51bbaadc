"""DescribableTextures (DTD): 47 kinds of textures. CoOp does not use the official splits but draws all three parts."""

from __future__ import annotations

from functools import partial

from ..entry import DatasetEntry, Sizes
from ..fetch.sources import VGG, Source, coop_split, promptkd_mirror, same
from ..layouts import split_class_folders

ENTRY = DatasetEntry(
    name="DescribableTextures",
    aliases=("dtd", "textures"),
    folder="dtd",
    images="images",
    split_file="split_zhou_DescribableTextures.json",
    read=partial(split_class_folders, images="images"),
    sizes=Sizes(train=2820, val=1128, test=1692, classes=47),
    templates=("{} texture.",),
    negative_templates=("no {} texture.",),
    descriptions="dtd",
    sources=(
        coop_split(
            "DescribableTextures", "1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x", 563702,
            "f26ebeccd2b58e68d70f07a0dc39fe49bf7b69024bac34396b954dfd87969c38",
        ),
        Source(
            "dtd-r1.0.1.tar.gz", (f"{VGG}/dtd/download/dtd-r1.0.1.tar.gz",), 625239812,
            "md5:fff73e5086ae6bdbea199a49dfb8a4c1", same("images", "imdb", "labels"),
            otherwise=promptkd_mirror(
                "dtd.zip", "images", "imdb", "labels", "split_zhou_DescribableTextures.json", size=626071992,
                checksum="sha256:5ba4d3000e60f5541ba15a082033ca0696eee68125e9c28edff3dbe22f04313b",
            ),
        ),
    ),
)  # fmt: skip
