"""Small hand-made records."""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.fixture(scope="session")
def run() -> Callable[..., dict]:
    """Function of seed, accuracy and other keys: the record of a run; `config` adds to its configuration."""

    def make(seed: int = 1, accuracy: float = 80.0, config: dict | None = None, **changes) -> dict:
        config = {"DATASET.SUBSAMPLE_CLASSES": "all", "TRAINER.X.ALPHA": 0.1, "TRAINER.X.BETA": 1.0} | (config or {})
        record = {
            "dataset": "Toy", "trainer": "HeGraphAdapter", "variant": "full", "backbone": "mini/mini", "shots": 4,
            "seed": seed, "accuracy": accuracy, "accuracy_text": accuracy - 1, "accuracy_zero_shot": 50.0,
            "macro_f1": 79.0, "num_test": 123, "selected_on": "last_step", "selected": {}, "run_id": f"{seed}",
            "config": config, "versions": {"torch": "2.13", "numpy": "2.4"}, "targets": {},
        } | changes  # fmt: skip
        if changes.get("variant") == "":  # another method has no text classifier
            record["accuracy_text"] = None
        return record | {"config_hash": str((sorted(config.items()), record["trainer"], record["variant"]))}

    return make


@pytest.fixture(scope="session")
def cells() -> Callable[..., dict]:
    """Function of a table: {labels: {head of a column: text}}, as a reader sees it without bold."""
    return lambda table: {
        labels: dict(zip(table.columns.values(), shown[len(labels) :]))
        for labels, shown in zip(table.labels, table.shown(str))
    }
