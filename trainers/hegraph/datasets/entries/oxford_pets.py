"""OxfordPets: 37 breeds of cats and dogs. The official lists give train and test; val is drawn from train."""

from __future__ import annotations

import random
from pathlib import Path

from ..entry import DatasetEntry, Sizes
from ..fetch.sources import VGG, Source, coop_split, promptkd_mirror, same
from ..layouts import read_lines, split_trainval
from ..splits import Item, Pools


def read(folder: Path, rng: random.Random) -> Pools:
    """Reads lines `<breed>_<number> <class id> <species> <breed id>`; the class name is the breed in lower case."""

    def read_list(file: str) -> list[Item]:
        items = []
        for line in read_lines(folder / "annotations" / file):
            image, label, *_ = line.split(" ")
            items.append(Item(f"images/{image}.jpg", int(label) - 1, image.rpartition("_")[0].lower()))
        return items

    train, val = split_trainval(read_list("trainval.txt"), rng)
    return {"train": train, "val": val, "test": read_list("test.txt")}


ENTRY = DatasetEntry(
    name="OxfordPets",
    aliases=("pets", "oxford-iiit-pet"),
    folder="oxford_pets",
    images="images",
    split_file="split_zhou_OxfordPets.json",
    read=read,
    sizes=Sizes(train=2944, val=736, test=3669, classes=37),
    templates=("a photo of a {}, a type of pet.",),
    negative_templates=("a photo of no {}, a type of pet.",),
    descriptions="oxford_pets",
    sources=(
        coop_split(
            "OxfordPets", "1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs", 724217,
            "d7f3ffe65b3919f95132e51422894ae18686b83c331fd8c0adcdc3dc2de6301e",
        ),
        Source(
            "images.tar.gz", (f"{VGG}/pets/data/images.tar.gz",), 791918971,
            "md5:5c4f3ee8e5d25df40f4fd59a7f44e54c", same("images"),
            otherwise=promptkd_mirror("oxford_pets.zip", "images", "annotations", "split_zhou_OxfordPets.json"),
        ),
        Source(
            "annotations.tar.gz", (f"{VGG}/pets/data/annotations.tar.gz",), 19173078,
            "md5:95a8c909bbe2e81eed6a22bccdf3f68f", same("annotations"),
        ),
    ),
)  # fmt: skip
