"""Seeds, folders and a log that takes the place of stdout."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

import numpy as np
import torch


def set_random_seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def collect_env_info() -> str:
    return f"PyTorch version: {torch.__version__}"


class Logger:
    """Writes to stdout and to a file, and closes both in the end."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.console, self.file = sys.stdout, path.open("w")

    def __del__(self) -> None:
        self.console.close()
        self.file.close()

    def write(self, text: str) -> None:
        self.console.write(text)
        self.file.write(text)

    def flush(self) -> None:
        self.console.flush()
        self.file.flush()


def setup_logger(output: str) -> None:
    path = Path(output) / "log.txt"
    if path.exists():
        path = path.with_name(f"log.txt-{time.time_ns()}")
    sys.stdout = Logger(path)


class Registry:
    """Names of classes."""

    def __init__(self, kind: str) -> None:
        self.kind, self.known = kind, {}

    def register(self):
        def add(registered: type) -> type:
            if registered.__name__ in self.known:
                raise KeyError(f"{registered.__name__} is registered as {self.kind} already")
            self.known[registered.__name__] = registered
            return registered

        return add

    def get(self, name: str) -> type:
        return self.known[name]

    def registered_names(self) -> list[str]:
        return list(self.known)

    def build(self, name: str, cfg: object) -> object:
        if name not in self.known:
            raise ValueError(f"{self.kind} must be one of {sorted(self.known)}, got {name!r}")
        return self.known[name](cfg)
