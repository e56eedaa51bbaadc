"""SUN397: 397 kinds of scenes. The official lists give train and test; val is drawn from train."""

from __future__ import annotations

import random
from pathlib import Path

from ..entry import DatasetEntry, Sizes
from ..fetch.sources import PROMPTKD, Source, coop_split, same
from ..layouts import read_lines, split_trainval
from ..splits import Item, Pools


def read(folder: Path, rng: random.Random) -> Pools:
    """Reads paths `/a/airplane_cabin/sun_x.jpg`. The class name of `/b/balcony/interior` is "interior balcony"."""
    classes = [line[1:] for line in read_lines(folder / "ClassName.txt")]
    labels = {name: label for label, name in enumerate(classes)}

    def read_list(file: str) -> list[Item]:
        items = []
        for line in read_lines(folder / file):
            path = line[1:]
            scene = path.rpartition("/")[0]
            items.append(Item(f"SUN397/{path}", labels[scene], " ".join(reversed(scene.split("/")[1:]))))
        return items

    trainval, test = read_list("Training_01.txt"), read_list("Testing_01.txt")
    train, val = split_trainval(trainval, rng)
    return {"train": train, "val": val, "test": test}


ENTRY = DatasetEntry(
    name="SUN397",
    aliases=("sun",),
    folder="sun397",
    images="SUN397",
    split_file="split_zhou_SUN397.json",
    read=read,
    sizes=Sizes(train=15880, val=3970, test=19850, classes=397),
    templates=("a photo of a {}.",),
    negative_templates=("a photo of no {}.",),
    descriptions="sun397",
    sources=(
        coop_split("SUN397", "1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq"),
        # vision.princeton.edu answers 404 (torchvision issue 9348), also for Partitions.zip with the official lists.
        # CoOp reads these only where the split file is missing.
        Source(
            "mirror-sun397.zip", (f"{PROMPTKD}/sun397.zip",), 39182693483,
            "sha256:ce6dee6685c9f1d592c8297e193dde885aa9c50d008fd998a38ccc57a3dda722", same("SUN397"),
        ),
    ),
)  # fmt: skip
