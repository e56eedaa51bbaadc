"""Training at the size of ImageNet with the command line, against the time in the paper on its GPU.

The features are random, which are as fast as real ones. The time per epoch in the paper includes the encoding of the
images. This training starts from a feature bank, which is encoded once for all seeds, shots and settings.
"""

import tempfile
from pathlib import Path

from .report import Report
from .tasks import random_bank
from .timing import ROOT, process

PAPER_SECONDS = 33.95  # per epoch, on an RTX 3090: Table 5
SMALL = {"num_classes": 10, "width": 32, "epochs": 2}


def run(num_classes: int = 1000, width: int = 1024, shots: int = 16, views: int = 10, epochs: int = 30) -> Report:
    report = Report(
        f"{epochs} epochs, {num_classes} classes, {shots} shots, {views} views, d = {width}, whole process",
        ["training", "seconds"],
    )
    with tempfile.TemporaryDirectory() as folder:
        bank = Path(folder) / "bank.safetensors"
        random_bank(num_classes, width, shots, views).save(bank)
        config = ROOT / "configs" / "trainers" / "HeGraphAdapter" / "rn50.yaml"
        options = ["OPTIM.MAX_EPOCH", str(epochs), "TRAINER.HEGRAPHADAPTER.MIN_STEPS", "0"]
        arguments = ["--features", str(bank), "--config-file", str(config), "--shots", str(shots), "--seed", "1"]
        seconds, _ = process("trainers.hegraph", *arguments, "--output-dir", f"{folder}/out", *options)
    report.rows = [["ours", seconds], ["paper, with encoding (quoted)", epochs * PAPER_SECONDS]]
    report.at_most("seconds", seconds, epochs * PAPER_SECONDS)
    return report
