"""A few-shot run from the bank of a data set of ImageNet's size: process start to the first step, and its peak memory.

The bank is a sparse file: of the training features, only the rows that the run draws were ever written. The same run
starts from a bank that holds nothing but those rows. `import torch` alone stands beside them, as no run is faster.
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from .first_step import IMPORT_TORCH
from .report import Report
from .timing import ROOT, in_turn, process, python, ratio

SMALL = {"images": 200, "num_classes": 10, "width": 16, "tested": 30, "repeats": 1}
SECONDS_BAR, RATIO_BAR = 2.0, 1.2
MEMORY_BAR = 1.5e9  # bytes
SHOTS = 16
LARGE, DRAWN, TORCH = "the large bank", "a bank of the drawn rows alone", "import torch"


def run(
    images: int = 1_280_000, num_classes: int = 1000, width: int = 1024, tested: int = 50_000, repeats: int = 3
) -> Report:
    with tempfile.TemporaryDirectory() as name:
        large, drawn = Path(name) / "large.safetensors", Path(name) / "drawn.safetensors"
        write_banks(large, drawn, images, num_classes, width, tested)
        size = large.stat().st_size
        peaks: dict[str, list[float]] = {LARGE: [], DRAWN: []}
        seconds = in_turn(
            {
                TORCH: partial(python, *IMPORT_TORCH),
                LARGE: to_first_step(large, Path(name) / "out", peaks[LARGE]),
                DRAWN: to_first_step(drawn, Path(name) / "out", peaks[DRAWN]),
            },
            repeats,
        )
    report = Report(
        f"A run of {SHOTS} shots from a bank of {images} x {width} ({size / 1e9:.2g} GB), process start to first step",
        ["what", "seconds", "peak MB"],
        [[what, statistics.median(s), max(peaks.get(what, [0.0])) / 1e6] for what, s in seconds.items()],
    )
    beyond = statistics.median(a - b for a, b in zip(seconds[LARGE], seconds[TORCH]))
    report.at_most("seconds to the first step, beyond import torch", beyond, SECONDS_BAR)
    report.at_most("the large bank over the drawn rows alone", ratio(seconds[LARGE], seconds[DRAWN]), RATIO_BAR)
    report.at_most("peak memory, bytes", max(peaks[LARGE]), MEMORY_BAR)
    return report


def write_banks(large: Path, drawn: Path, images: int, num_classes: int, width: int, tested: int) -> None:
    """Writes a sparse bank of `images` training images, and one of those alone that the protocol draws with seed 1."""
    from trainers.hegraph.datasets.splits import select_few_shot
    from trainers.hegraph.features.bank import FeatureBank
    from trainers.hegraph.features.tensor_file import file_header

    from .tasks import random_bank, unit_features

    labels = torch.arange(images) % num_classes
    rows = select_few_shot(labels.tolist(), [], SHOTS, random.Random(1)).train
    bank = random_bank(num_classes, width, shots=1, test=tested)
    features = unit_features(1, len(rows), width)
    small = {**bank.__dict__, "train_features": features, "train_labels": labels[rows]}
    FeatureBank(**small).save(drawn)
    tensors = {
        "train_labels": labels,
        "test_labels": bank.test_labels,
        "test_features": bank.test_features,
        "text_positive": bank.text_positive,
        "text_negative": bank.text_negative,
    }
    metadata = {"dataset": "Random", "backbone": "none", "logit_scale": "100.0"}
    metadata["classnames"] = json.dumps(list(bank.classnames))
    types = {name: ("I64" if name.endswith("labels") else "F32", t.shape) for name, t in tensors.items()}
    header, layout = file_header(types | {"train_features": ("F32", (images, width))}, metadata)
    with large.open("wb") as file:
        file.write(header)
        file.truncate(max(stored.start + stored.size for stored in layout.values()))
        for name, tensor in tensors.items():
            file.seek(layout[name].start)
            file.write(tensor.numpy())
        for row, feature in zip(rows, features[0]):
            file.seek(layout["train_features"].start + row * 4 * width)
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
