"""Whole processes of training, calibration and test on real features, against Tip-Adapter-F and TaskRes.

The banks are those of $HEGRAPH_SHARED/banks.
"""

import os
import tempfile
from pathlib import Path

from .report import Report
from .timing import ROOT, process

SMALL = {"shots": 1, "seeds": 1, "names": ("oxford_pets",)}
METHODS = ("TipAdapterF", "TaskRes", "HeGraphAdapter")


def run(shots: int = 16, seeds: int = 3, names: tuple[str, ...] = ()) -> Report:
    folder = Path(os.environ["HEGRAPH_SHARED"]) / "banks"
    banks = [folder / f"{name}.safetensors" for name in names] or sorted(folder.glob("*.safetensors"))
    columns = ["bank", *METHODS, "HeGraphAdapter / TipAdapterF", "HeGraphAdapter / TaskRes"]
    report = Report(f"{seeds} seeds of {shots} shots, whole processes, seconds", columns)
    totals = dict.fromkeys(METHODS, 0.0)
    for bank in banks:
        seconds = dict.fromkeys(METHODS, 0.0)
        for seed in range(1, seeds + 1):
            for method in METHODS:
                seconds[method] += run_once(method, bank, shots, seed)
        for method in METHODS:
            totals[method] += seconds[method]
        report.rows.append([bank.stem, *seconds.values(), *ratios(seconds)])
    report.rows.append(["all", *totals.values(), *ratios(totals)])
    report.at_most("all banks", ratios(totals)[0], 2.0)
    return report


def ratios(seconds: dict[str, float]) -> list[float]:
    """Ratios of HeGraphAdapter to each other method."""
    return [seconds["HeGraphAdapter"] / seconds[method] for method in METHODS if method != "HeGraphAdapter"]


def run_once(method: str, bank: Path, shots: int, seed: int) -> float:
    """Time one run with the arguments of `scripts/hegraph/features.sh`; returns seconds."""
    config = ROOT / "configs" / "trainers" / "HeGraphAdapter" / "vit_b32.yaml"
    arguments = ["--trainer", method, "--features", str(bank), "--shots", str(shots), "--seed", str(seed)]
    with tempfile.TemporaryDirectory() as folder:
        return process("trainers.hegraph", *arguments, "--config-file", str(config), "--output-dir", f"{folder}/out")[0]
