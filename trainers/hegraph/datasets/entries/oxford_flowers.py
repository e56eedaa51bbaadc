"""OxfordFlowers: 102 kinds of flowers. CoOp does not use the official split but draws all three parts."""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path

from ...utils.files import read_json
from ...utils.schema import Name, check
from ..entry import DatasetEntry, Sizes
from ..fetch.sources import CROSS_MODAL_SPLITS, VGG, Source, coop_split, promptkd_mirror, same
from ..layouts import read_mat, split_classes
from ..splits import Pools


def read(folder: Path, rng: random.Random) -> Pools:
    """Reads the labels of image 1, 2, ... from a Matlab file."""
    by_label: dict[int, list[str]] = defaultdict(list)
    for number, label in enumerate(read_mat(folder / "imagelabels.mat", "labels")[0], start=1):
        by_label[int(label)].append(f"jpg/image_{number:05d}.jpg")
    names = check(dict[str, Name], read_json(folder / "cat_to_name.json"), f"{folder / 'cat_to_name.json'}")
    return split_classes(((label - 1, names[str(label)], paths) for label, paths in by_label.items()), rng)


ENTRY = DatasetEntry(
    name="OxfordFlowers",
    aliases=("flowers", "flowers102", "oxford_flowers102"),
    folder="oxford_flowers",
    images="jpg",
    split_file="split_zhou_OxfordFlowers.json",
    read=read,
    sizes=Sizes(train=4093, val=1633, test=2463, classes=102),
    templates=("a photo of a {}, a type of flower.",),
    negative_templates=("a photo of no {}, a type of flower.",),
    descriptions="oxford_flowers",
    sources=(
        coop_split(
            "OxfordFlowers", "1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT", 771139,
            "2f50c42fc1a17ca13c271cb4269b1347bdb43d2be672e34f74a4e4cbfbcca794",
        ),
        Source(
            "102flowers.tgz", (f"{VGG}/flowers/102/102flowers.tgz",), 344862509,
            "md5:52808999861908f626f3c1f4e79d11fa", same("jpg"),
            otherwise=promptkd_mirror(
                "oxford_flowers.zip", "jpg", "imagelabels.mat", "cat_to_name.json", "split_zhou_OxfordFlowers.json"
            ),
        ),
        Source(
            "imagelabels.mat", (f"{VGG}/flowers/102/imagelabels.mat",), 502,
            "md5:e0620be6f572b9609742df49c70aed4d",
        ),
        Source(
            "cat_to_name.json",
            (f"{CROSS_MODAL_SPLITS}/cat_to_name.json", "gdrive:1AkcxCXeK_RCGCEC_GvmWxjcjaNhu-at0"), 2212,
            "sha256:0469f1ad7fe0072d98155c49aa58649d998edbbe3326229003aa5f7228525236",
        ),
    ),
)  # fmt: skip
