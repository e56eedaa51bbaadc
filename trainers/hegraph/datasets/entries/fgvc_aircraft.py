"""FGVCAircraft: 100 variants of aircraft, with an official split into train, val and test."""

from __future__ import annotations

import random
from pathlib import Path

from ..entry import DatasetEntry, Sizes
from ..fetch.sources import VGG, Member, Source, promptkd_mirror
from ..layouts import read_lines
from ..splits import SPLITS, Item, Pools

LISTS = ("variants.txt", "images_variant_train.txt", "images_variant_val.txt", "images_variant_test.txt")


def read(folder: Path, rng: random.Random) -> Pools:
    """Reads lines `<image> <variant>`. Nothing is drawn."""
    labels = {name: label for label, name in enumerate(read_lines(folder / "variants.txt"))}

    def read_list(split: str) -> list[Item]:
        items = []
        for line in read_lines(folder / f"images_variant_{split}.txt"):
            image, _, variant = line.partition(" ")
            items.append(Item(f"images/{image}.jpg", labels[variant], variant))
        return items

    return {split: read_list(split) for split in SPLITS}


ENTRY = DatasetEntry(
    name="FGVCAircraft",
    aliases=("fgvc", "aircraft"),
    folder="fgvc_aircraft",
    images="images",
    read=read,
    sizes=Sizes(train=3334, val=3333, test=3333, classes=100),
    templates=("a photo of a {}, a type of aircraft.",),
    negative_templates=("a photo of no {}, a type of aircraft.",),
    descriptions="fgvc_aircraft",
    sources=(
        Source(
            # torchvision, which has no checksum: many public repositories have this one, and two have the size (that
            # of tfds is of the uncompressed archive)
            "fgvc-aircraft-2013b.tar.gz", (f"{VGG}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",), 2753340328,
            "md5:d4acdd33327262359767eeaa97a4f732",
            (Member("data/images", "images"), *(Member(f"data/{name}", name) for name in LISTS)),
            otherwise=promptkd_mirror("fgvc_aircraft.zip", "images", *LISTS),
        ),
    ),
)  # fmt: skip
