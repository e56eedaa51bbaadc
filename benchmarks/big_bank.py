"""A few-shot run from the bank of a data set of ImageNet's size: process start to the first step, and its peak memory.

The bank is a sparse file: of the training features, only the rows that the run draws were ever written. The table also
has `import torch` with an optimizer, which no run is faster than.
"""

import json
import math
import random
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from .first_step import LEAST
from .report import Report
from .timing import ROOT, in_turn, process, python

SMALL = {"images": 200, "num_classes": 10, "width": 16, "tested": 30, "repeats": 1}
MEMORY_BAR = 1.5e9  # bytes
SHOTS = 16
DRAWN_FROM = "train_features"
LARGE, TORCH = "the bank", "import torch and make an optimizer"


def run(
    images: int = 1_280_000, num_classes: int = 1000, width: int = 1024, tested: int = 50_000, repeats: int = 3
) -> Report:
    peaks: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        bank = Path(name) / "large.safetensors"
        write_bank(bank, images, num_classes, width, tested)
        size = bank.stat().st_size
        functions: dict[str, Callable[[], object]] = {TORCH: partial(python, *LEAST)}
        functions[LARGE] = to_first_step(bank, Path(name) / "out", peaks)
        seconds = in_turn(functions, repeats)
    report = Report(
        f"A run of {SHOTS} shots from a bank of {images} x {width} ({size / 1e9:.2g} GB), process start to first step",
        ["what", "seconds", "peak MB"],
        [[what, statistics.median(s), max(peaks) / 1e6 if what == LARGE else 0] for what, s in seconds.items()],
    )
    report.at_most("peak memory, bytes", max(peaks), MEMORY_BAR)
    return report


def write_bank(large: Path, images: int, num_classes: int, width: int, tested: int) -> None:
    """Writes a sparse bank of `images` training images; of their features those that the protocol draws with seed 1."""
    from trainers.hegraph.datasets.splits import sample_few_shot

    from .tasks import random_bank, unit_features

    labels = torch.arange(images) % num_classes
    rows = sample_few_shot(labels.tolist(), [], SHOTS, random.Random(1)).train
    bank = random_bank(num_classes, width, shots=1, test=tested)
    tensors = {
        "train_labels": labels,
        "test_labels": bank.test_labels,
        "test_features": bank.test_features,
        "text_positive": bank.text_positive,
        "text_negative": bank.text_negative,
    }
    metadata = {"dataset": "Random", "backbone": "none", "logit_scale": "100.0"}
    metadata["classnames"] = json.dumps(list(bank.classnames))
    header: dict[str, dict] = {"__metadata__": metadata}
    places, end = {}, 0
    for name, shape in (
        {name: tensor.shape for name, tensor in tensors.items()} | {DRAWN_FROM: (images, width)}
    ).items():
        dtype, size = ("I64", 8) if name.endswith("labels") else ("F32", 4)
        places[name], end = end, end + size * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [places[name], end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with large.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()
        file.truncate(start + end)
        for name, tensor in tensors.items():
            file.seek(start + places[name])
            file.write(tensor.numpy())
        for row, feature in zip(rows, unit_features(1, len(rows), width)[0]):
            file.seek(start + places[DRAWN_FROM] + row * 4 * width)
            file.write(feature.numpy())


def to_first_step(bank: Path, output: Path, peaks: list[float]) -> Callable[[], None]:
    """A function that starts the command line on a bank and ends it after the first step.

    Args:
        bank: The bank.
        output: A folder for what the run writes.
        peaks: Takes the peak memory of each process in bytes.
    """
    config = ROOT / "configs" / "trainers" / "HeGraphAdapter" / "rn50.yaml"
    arguments = ["--features", str(bank), "--shots", str(SHOTS), "--seed", "1", "--config-file", str(config)]

    def start() -> None:
        _, written = process("benchmarks.first_step", *arguments, "--output-dir", str(output))
        peaks.append(float(written))

    return start
