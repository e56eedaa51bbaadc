"""Extraction of a feature bank from image files, against the encoder alone on images in memory.

The encoder has random weights, which are as fast as trained ones.
"""

import statistics
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from trainers.hegraph.config_files import load_cfg
from trainers.hegraph.datasets.base import Dataset
from trainers.hegraph.datasets.images import open_below
from trainers.hegraph.datasets.splits import Item
from trainers.hegraph.features.backbones.open_clip_models import as_backbone, create_model
from trainers.hegraph.features.extract import encode_images
from trainers.hegraph.features.images import ImageViews

from .report import Report
from .timing import alternate, ratio

SMALL = {"model": "ViT-S-32", "images": 2, "batch": 2, "repeats": 1}
BAR = 0.95
SIZE = (500, 375)  # pixels of a typical photograph in ImageNet


def run(model: str = "ViT-B-32", images: int = 128, batch: int = 64, repeats: int = 3) -> Report:
    built = create_model(model)
    built[0].eval()
    backbone = as_backbone(model, built, {"model": model})
    options = load_cfg(opts=["DATALOADER.TEST.BATCH_SIZE", batch]).encoding
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        items = [write_image(root, number) for number in range(images)]
        dataset = Dataset("Random", ["noise"], items, [], [], partial(open_below, root, as_stored=True), root)
        views = ImageViews(dataset, items, built[1])
        pixels = list(views.batches(range(images), batch))
        runs = iter(range(repeats + 1))
        seconds = alternate(
            {
                "encoder alone": lambda: [backbone.encode_images(part) for part in pixels],
                "extraction": lambda: encode_images(backbone, views, options, root / f"bank{next(runs)}", "train"),
            },
            repeats,
        )
    share = ratio(seconds["encoder alone"], seconds["extraction"])
    report = Report(
        f"{images} JPEG files of {SIZE[0]} x {SIZE[1]}, {model}, batches of {batch}, {torch.get_num_threads()} threads",
        ["program", "images/s"],
        [[name, images / statistics.median(s)] for name, s in seconds.items()],
    )
    report.at_least("extraction over encoder alone", share, BAR)
    return report


def write_image(root: Path, number: int) -> Item:
    """Write a JPEG file of smooth noise, which takes as long to decode as a photograph of its size."""
    noise = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    name = f"{number}.jpg"
    Image.fromarray(noise).resize(SIZE, Image.Resampling.BICUBIC).save(root / name, quality=90)
    return Item(name, 0, "noise")
