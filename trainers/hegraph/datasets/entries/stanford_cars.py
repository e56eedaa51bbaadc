"""StanfordCars: 196 models of cars. The official lists give train and test; val is drawn from train."""

from __future__ import annotations

import random
from pathlib import Path

from ..entry import DatasetEntry, Sizes
from ..fetch.sources import PROMPTKD, Source, coop_split, same
from ..layouts import read_mat, split_trainval
from ..splits import Item, Pools


def read(folder: Path, rng: random.Random) -> Pools:
    """Reads Matlab annotations. The year, which is last in the official class name, is put first."""
    names = [str(name[0]) for name in read_mat(folder / "devkit" / "cars_meta.mat", "class_names")[0]]

    def read_annotations(images: str, file: Path) -> list[Item]:
        items = []
        for row in read_mat(file, "annotations")[0]:
            label = int(row["class"][0, 0]) - 1
            model, _, year = names[label].rpartition(" ")
            items.append(Item(f"{images}/{row['fname'][0]}", label, f"{year} {model}"))
        return items

    trainval = read_annotations("cars_train", folder / "devkit" / "cars_train_annos.mat")
    test = read_annotations("cars_test", folder / "cars_test_annos_withlabels.mat")
    train, val = split_trainval(trainval, rng)
    return {"train": train, "val": val, "test": test}


ENTRY = DatasetEntry(
    name="StanfordCars",
    aliases=("cars",),
    folder="stanford_cars",
    images="",
    split_file="split_zhou_StanfordCars.json",
    read=read,
    sizes=Sizes(train=6509, val=1635, test=8041, classes=196),
    templates=("a photo of a {}.",),
    negative_templates=("a photo of no {}.",),
    descriptions="stanford_cars",
    sources=(
        coop_split(
            "StanfordCars", "1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT", 1855652,
            "40acee7aa65c8e4727a32d90e884b7c3f8960b523422317e163f7af65432959d",
        ),
        # ai.stanford.edu is gone (CoOp issue 61), and Kaggle's copy has other file names (CaFo issue 4)
        Source(
            "mirror-stanford_cars.zip", (f"{PROMPTKD}/stanford_cars.zip",),
            unpack=same("cars_train", "cars_test"),
            otherwise=Source(
                # The data set viewer of huggingface.co/datasets/koorye/Stanford-Cars lists its files at this commit
                "mirror-stanford_cars.tar.gz",
                ("https://huggingface.co/datasets/koorye/Stanford-Cars/resolve/"
                 "c118b6daafe56eaba931ae584a3ae67ad0c711d8/stanford_cars.tar.gz",),
                unpack=same("cars_train", "cars_test"),
                # linzhiqiu in cross_modal_adaptation issue 14; its inner layout was not seen
                otherwise=Source(
                    "mirror-stanford_cars-drive", ("gdrive:150nwNkg7qXh28yabiqNAOfBMMll7ALlu",),
                    unpack=same("cars_train", "cars_test"),
                ),
            ),
        ),
        # pytorch/vision issue 7545; size and checksum: tfds, of the original
        Source(
            "car_devkit.tgz", ("https://github.com/pytorch/vision/files/11644847/car_devkit.tgz",), 330960,
            "sha256:b97deb463af7d58b6bfaa18b2a4de9829f0f79e8ce663dfa9261bf7810e9accd", same("devkit"),
        ),
        Source(
            "cars_test_annos_withlabels.mat",
            ("https://raw.githubusercontent.com/jhpohovey/StanfordCars-Dataset/main/stanford_cars/"
             "cars_test_annos_withlabels.mat",),
            185758, "sha256:790f75be8ea34eeded134cc559332baf23e30e91367e9ddca97d26ed9b895f05",
        ),
    ),
)  # fmt: skip
