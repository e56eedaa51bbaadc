"""Caltech101: 100 kinds of objects. It has no official split."""

from __future__ import annotations

from functools import partial

from ..entry import DatasetEntry, Sizes
from ..fetch.sources import Source, coop_split, promptkd_mirror, same
from ..layouts import split_class_folders

IMAGES = "101_ObjectCategories"

ENTRY = DatasetEntry(
    name="Caltech101",
    aliases=("caltech",),
    folder="caltech-101",
    images=IMAGES,
    split_file="split_zhou_Caltech101.json",
    read=partial(
        split_class_folders,
        images=IMAGES,
        ignored=("BACKGROUND_Google", "Faces_easy"),
        names={"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"},
    ),
    sizes=Sizes(train=4128, val=1649, test=2465, classes=100),
    templates=("a photo of a {}.",),
    negative_templates=("a photo of no {}.",),
    descriptions="caltech101",
    sources=(
        coop_split(
            "Caltech101", "1hyarUivQE36mY6jSomru6Fjd-JzwcCzN", 809184,
            "52ce83205ff8ff8a1a18119aad6376120ae35c36e783a984bc560cbf10e73fa5",
        ),
        Source(
            "caltech-101.zip",  # torchvision
            ("https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",),
            checksum="md5:3138e1922a9193bfa496528edbbc45d0",
            unpack=same(IMAGES),
            inner="101_ObjectCategories.tar.gz",
            otherwise=promptkd_mirror(
                "caltech-101.zip", IMAGES, "split_zhou_Caltech101.json",
                checksum="sha256:ef7dced0802c60cf962273331dafb6b247059f22569edc87c3190d39f29c6f1c",
            ),
        ),
    ),
)  # fmt: skip
