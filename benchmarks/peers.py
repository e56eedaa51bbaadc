"""Training and testing on banks of real features, against our Tip-Adapter-F: whole processes.

The banks are those of $HEGRAPH_SHARED/data.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from .report import Report
from .timing import ROOT, process

SMALL = {"shots": 1, "seeds": 1, "names": ("oxford_pets",)}
METHODS = ("TipAdapterF", "HeGraphAdapter")


def run(shots: int = 16, seeds: int = 3, names: tuple[str, ...] = ()) -> Report:
    data = Path(os.environ["HEGRAPH_SHARED"]) / "data"
    banks = [data / f"{name}.safetensors" for name in names] or sorted(data.glob("*.safetensors"))
    report = Report(
        f"{seeds} seeds of {shots} shots, whole processes, seconds", ["bank", *METHODS, "HeGraphAdapter / TipAdapterF"]
    )
    totals = dict.fromkeys(METHODS, 0.0)
    for bank in banks:
        seconds = dict.fromkeys(METHODS, 0.0)
        for seed in range(1, seeds + 1):
            for method in METHODS:
                seconds[method] += run_once(method, bank, shots, seed)
        for method in METHODS:
            totals[method] += seconds[method]
        report.rows.append([bank.stem, *seconds.values(), seconds[METHODS[1]] / seconds[METHODS[0]]])
    report.rows.append(["all", *totals.values(), totals[METHODS[1]] / totals[METHODS[0]]])
    report.at_most("all banks", totals[METHODS[1]] / totals[METHODS[0]], 1.0)
    return report


def run_once(method: str, bank: Path, shots: int, seed: int) -> float:
    """Seconds of one run that is started as `scripts/hegraph/features.sh` does."""
    config = ROOT / "configs" / "trainers" / "HeGraphAdapter" / "vit_b32.yaml"
    arguments = ["--trainer", method, "--features", str(bank), "--shots", str(shots), "--seed", str(seed)]
    with tempfile.TemporaryDirectory() as folder:
        return process("trainers.hegraph", *arguments, "--config-file", str(config), "--output-dir", f"{folder}/out")[0]
