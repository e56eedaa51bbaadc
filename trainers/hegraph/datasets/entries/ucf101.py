"""UCF101: middle frames of videos of 101 actions. The official lists give train and test; val is drawn from train."""

from __future__ import annotations

import random
import re
from pathlib import Path

from ..entry import DatasetEntry, Sizes
from ..fetch.sources import Source, coop_split, promptkd_mirror, same
from ..layouts import read_lines, split_trainval
from ..splits import Item, Pools

IMAGES = "UCF-101-midframes"


def read(folder: Path, rng: random.Random) -> Pools:
    """Reads the lists of videos. The action `ApplyEyeMakeup` has the folder and the class name `Apply_Eye_Makeup`."""
    lists = folder / "ucfTrainTestlist"
    labels = {}
    for line in read_lines(lists / "classInd.txt"):
        number, action = line.split(" ")
        labels[action] = int(number) - 1

    def read_list(file: str) -> list[Item]:
        items = []
        for line in read_lines(lists / file):
            action, video = line.split(" ")[0].split("/")
            name = "_".join(re.findall("[A-Z][^A-Z]*", action))
            items.append(Item(f"{IMAGES}/{name}/{video.replace('.avi', '.jpg')}", labels[action], name))
        return items

    trainval, test = read_list("trainlist01.txt"), read_list("testlist01.txt")
    train, val = split_trainval(trainval, rng)
    return {"train": train, "val": val, "test": test}


ENTRY = DatasetEntry(
    name="UCF101",
    aliases=("ucf",),
    folder="ucf101",
    images=IMAGES,
    split_file="split_zhou_UCF101.json",
    read=read,
    sizes=Sizes(train=7639, val=1898, test=3783, classes=101),
    templates=("a photo of a person doing {}.",),
    negative_templates=("a photo of a person not doing {}.",),
    descriptions="ucf101",
    sources=(
        coop_split(
            "UCF101", "1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y", 1557485,
            "d78cb834f7c5792ceaff2c5ee2d7c76a9e4086e48a3a6b01232989d29cbefdd8",
        ),
        Source(
            "UCF-101-midframes.zip", ("gdrive:10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O",),  # CoOp's DATASETS.md
            unpack=same(IMAGES),
            otherwise=promptkd_mirror("ucf101.zip", IMAGES, "split_zhou_UCF101.json"),
        ),
    ),
)  # fmt: skip
