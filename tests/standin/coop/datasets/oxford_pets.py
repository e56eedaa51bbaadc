"""Functions of all data set loaders of CoOp: split files, few-shot pickles, halves of the classes."""

import json
import math
import os
import pickle
import random

from dassl.data.datasets import DatasetBase, Datum


def datum(path, label, classname):
    return Datum(impath=path, label=label, classname=classname)


def read_split(path, images):
    with open(path) as file:
        split = json.load(file)
    rows = (split["train"], split["val"], split["test"])
    return [[datum(os.path.join(images, name), *of_class) for name, *of_class in items] for items in rows]


def save_split(splits, path, images):
    rows = [[[os.path.relpath(i.impath, images), i.label, i.classname] for i in items] for items in splits]
    with open(path, "w") as file:
        json.dump(dict(zip(("train", "val", "test"), rows)), file)


def read_and_split_data(images):
    """Half of each class is train, a fifth val, the rest test."""
    train, val, test = [], [], []
    for label, classname in enumerate(sorted(os.listdir(images))):
        folder = os.path.join(images, classname)
        names = os.listdir(folder)
        random.shuffle(names)
        items = [datum(os.path.join(folder, name), label, classname) for name in names]
        end_train, end_val = round(len(items) * 0.5), round(len(items) * 0.5) + round(len(items) * 0.2)
        train, val, test = train + items[:end_train], val + items[end_train:end_val], test + items[end_val:]
    return train, val, test


def select_few_shot(cfg, folder, splits):
    """Sample few-shot images, or read the pickle of earlier ones."""
    path = os.path.join(folder, "split_fewshot", f"shot_{cfg.DATASET.NUM_SHOTS}-seed_{cfg.SEED}.pkl")
    shots = cfg.DATASET.NUM_SHOTS
    if shots < 1:
        return splits
    if os.path.exists(path):
        with open(path, "rb") as file:
            return splits | pickle.load(file)
    most = {"train": shots, "val": min(shots, 4)}
    drawn = {name: DatasetBase.generate_fewshot_dataset(items, most[name]) for name, items in splits.items()}
    with open(path, "wb") as file:
        pickle.dump(drawn, file)
    return drawn


def subsample_classes(which, *splits):
    if which == "all":
        return splits
    labels = sorted({item.label for item in splits[0]})
    middle = math.ceil(len(labels) / 2)
    kept = {label: new for new, label in enumerate(labels[:middle] if which == "base" else labels[middle:])}
    return [[datum(i.impath, kept[i.label], i.classname) for i in items if i.label in kept] for items in splits]


def load(cfg, folder, images, split_file):
    """Train, val and test of a data set with a split file, which is written if it is missing."""
    folder = os.path.join(os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT)), folder)
    path, images = os.path.join(folder, split_file), os.path.join(folder, images)
    os.makedirs(os.path.join(folder, "split_fewshot"), exist_ok=True)
    if os.path.exists(path):
        train, val, test = read_split(path, images)
    else:
        train, val, test = read_and_split_data(images)
        save_split((train, val, test), path, images)
    drawn = select_few_shot(cfg, folder, {"train": train, "val": val})
    return subsample_classes(cfg.DATASET.SUBSAMPLE_CLASSES, drawn["train"], drawn["val"], test)
