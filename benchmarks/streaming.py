"""Peak memory of encoding images and writing their bank, for few and for many images: a process for each number.

The images are rendered when they are read, so no file is needed. The backbone is mini.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from .report import Report
from .timing import peak_memory, process

SMALL = {"few": 20, "many": 40}
BAR = 1.1
SIZE = 32  # pixels of a side
CLASSES = [str(label) for label in range(10)]


def run(few: int = 2_000, many: int = 200_000) -> Report:
    report = Report(
        "Encoding rendered images with mini and writing their bank, one view, the whole process",
        ["images", "peak MB", "images/s"],
    )
    peaks = []
    for images in (few, many):
        figures = json.loads(process("benchmarks.streaming", str(images))[1])
        peaks.append(figures["peak"])
        report.rows.append([images, figures["peak"] / 1e6, images / figures["seconds"]])
    report.at_most("peak memory, many images over few", peaks[1] / peaks[0], BAR)
    return report


def measure(images: int) -> dict[str, float]:
    """Encodes images in this process; returns the "peak" of its memory in bytes, and the "seconds" it took."""
    from trainers.hegraph.backbones.loading import load_backbone
    from trainers.hegraph.config_files import load_cfg
    from trainers.hegraph.datasets import Dataset, Item
    from trainers.hegraph.features.extract import encode_parts, write_bank

    items = [Item(str(number), number % 10, CLASSES[number % 10]) for number in range(images)]
    dataset = Dataset("Rendered", CLASSES, items, [], [], render)
    options = load_cfg(opts=["TRAINER.HEGRAPHADAPTER.FEATURES.VIEWS", 1]).encoding
    backbone = load_backbone("hegraph-mini")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        parts = encode_parts(dataset, backbone, options, 1, Path(folder))
        write_bank(Path(folder) / "bank.safetensors", parts, dataset, backbone)
    return {"peak": peak_memory(), "seconds": time.perf_counter() - started}


def render(path: str) -> Image.Image:
    """The image of a number: stripes and their colour are made of it."""
    number = int(path)
    stripes = np.add.outer(np.arange(SIZE) * (number % 7), np.arange(SIZE) * (number % 5)) * 16 % 256
    colour = [number * step % 256 for step in (37, 91, 151)]
    return Image.fromarray(((stripes[..., None] + colour) % 256).astype(np.uint8))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(int(sys.argv[1]))))
