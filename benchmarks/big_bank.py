"""Start of a few-shot run from a feature bank of the size of ImageNet: seconds until the first step, and peak memory.

The bank is a sparse file. Only the training features that the run samples are written. The table also has the time of
`import torch` with an optimizer, a lower limit.
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
from .timing import ROOT, alternate, process, python

SMALL = {"images": 200, "num_classes": 10, "width": 16, "tested": 30, "repeats": 1}
MEMORY_BAR = 1.5e9  # bytes
SHOTS = 16
SPARSE = "train_features"
LARGE, TORCH = "run until its first step", "import torch and create an optimizer"


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
        seconds = alternate(functions, repeats)
    report = Report(
        f"A run of {SHOTS} shots from a bank of {images} x {width} ({size / 1e9:.2g} GB), process start to first step",
        ["process", "seconds", "peak MB"],
        [[name, statistics.median(s), max(peaks) / 1e6 if name == LARGE else 0] for name, s in seconds.items()],
    )
    report.at_most("peak memory, bytes", max(peaks), MEMORY_BAR)
    return report


def write_bank(large: Path, images: int, num_classes: int, width: int, tested: int) -> None:
    """Write a sparse bank with the features of those training images that the protocol samples with seed 1."""
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
    for name, shape in ({name: tensor.shape for name, tensor in tensors.items()} | {SPARSE: (images, width)}).items():
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
            file.seek(start + places[SPARSE] + row * 4 * width)
            file.write(feature.numpy())


def to_first_step(bank: Path, output: Path, peaks: list[float]) -> Callable[[], None]:
    """Return a function that starts a run on a bank and ends it after its first step.

    Args:
        bank: File of the feature bank.
        output: Output folder of the run.
        peaks: List to which the function appends the peak memory of the process in bytes.
    """
    config = ROOT / "configs" / "trainers" / "HeGraphAdapter" / "rn50.yaml"
    arguments = ["--features", str(bank), "--shots", str(SHOTS), "--seed", "1", "--config-file", str(config)]

    def start() -> None:
        _, written = process("benchmarks.first_step", *arguments, "--output-dir", str(output))
        peaks.append(float(written))

    return start
