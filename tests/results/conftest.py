"""Records of small made-up runs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trainers.hegraph.results.records import PREDICTIONS, ImageFiles, write_record, write_tensors_with_classes


@pytest.fixture(scope="session")
def run() -> Callable[..., dict]:
    """Function that makes the record of a run; `config` adds to its configuration."""

    def make(seed: int = 1, accuracy: float = 80.0, config: dict | None = None, **changes) -> dict:
        config = {"DATASET.SUBSAMPLE_CLASSES": "all", "TRAINER.X.ALPHA": 0.1, "TRAINER.X.BETA": 1.0} | (config or {})
        record = {
            "dataset": "Toy", "trainer": "HeGraphAdapter", "variant": "full", "backbone": "mini/mini", "shots": 4,
            "seed": seed, "accuracy": accuracy, "accuracy_text": accuracy - 1, "accuracy_zero_shot": 50.0,
            "macro_f1": 79.0, "num_test": 123, "selected_on": "last_step", "selected": {}, "run_id": f"{seed}",
            "config": config, "versions": {"torch": "2.13", "numpy": "2.4"}, "targets": {}, "device": "cpu",
            "threads": 2, "seconds": {"training": 6.0}, "epochs": 3, "num_parameters": 1000, "peak_memory_mb": 500.0,
        } | changes  # fmt: skip
        if changes.get("variant") == "":  # another method has no text classifier
            record["accuracy_text"] = None
        return record | {"config_hash": str((sorted(config.items()), record["trainer"], record["variant"]))}

    return make


@pytest.fixture(scope="session")
def calibrated(run) -> Callable[..., dict]:
    """Function that makes the record of a run with calibration scores and three bins."""

    def scores(ece: float, **changes: float) -> dict:
        bins = {key: [0.0] * 15 for key in ("confidence", "accuracy")} | {"count": [0] * 15}
        for index, count, confidence, accuracy in ((3, 9, 10.0, 0.0), (8, 30, 60.0, 50.0), (13, 10, 90.0, 100.0)):
            bins["count"][index], bins["confidence"][index], bins["accuracy"][index] = count, confidence, accuracy
        return {"accuracy": 80.0, "macro_f1": 79.0, "nll": 0.5, "brier": 0.3, "ece": ece, "bins": bins} | changes

    def make(seed: int = 1, before: float = 9.0, after: float = 2.0, temperature: float = 0.7, **changes) -> dict:
        parts = {"temperature": temperature, "zero_shot": scores(5.0, accuracy=50.0), "before": scores(before)}
        return run(seed, calibration=parts | {"after": scores(after, nll=0.4, brier=0.25)}, **changes)

    return make


@pytest.fixture
def finish(tmp_path, run):
    """Function that writes a run with predictions, one label for all test images, and a changed record."""

    def make(folder: str, predicted: list[int], label: int = 0, files: ImageFiles | None = None, **changes) -> Path:
        path = tmp_path / folder
        write_record(path, run() | changes)
        labels = torch.full((len(predicted),), label)
        tensors = {"predicted": torch.tensor(predicted), "labels": labels}
        write_tensors_with_classes(path / PREDICTIONS, ["a", "b"], files, **tensors)
        return path

    return make
