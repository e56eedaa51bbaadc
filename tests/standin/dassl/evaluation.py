"""Accuracy on test."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor
from yacs.config import CfgNode


class Classification:
    """Collects predictions, then scores them; percent."""

    def __init__(self, cfg: CfgNode, lab2cname: dict[int, str]) -> None:
        self.cfg, self.lab2cname = cfg, lab2cname

    def reset(self) -> None:
        self.predicted: list[int] = []
        self.true: list[int] = []

    def process(self, logits: Tensor, labels: Tensor) -> None:
        self.predicted += logits.max(1)[1].tolist()
        self.true += labels.tolist()

    def evaluate(self) -> dict[str, float]:
        right = [p == t for p, t in zip(self.predicted, self.true)]
        accuracy = 100.0 * sum(right) / len(right)
        sys.stdout.write(f"* total: {len(right)}\n* accuracy: {accuracy:.1f}%\n")
        if self.cfg.TEST.PER_CLASS_RESULT:
            for label, name in sorted(self.lab2cname.items()):
                of_class = [r for r, t in zip(right, self.true) if t == label]
                sys.stdout.write(f"* class: {label} ({name})\tacc: {100.0 * sum(of_class) / len(of_class):.1f}%\n")
        if self.cfg.TEST.COMPUTE_CMAT:
            torch.save(torch.tensor([self.predicted, self.true]), Path(self.cfg.OUTPUT_DIR) / "cmat.pt")
        return {"accuracy": accuracy}
