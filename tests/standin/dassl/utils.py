"""Seeds, folders and a log that takes the place of stdout."""

from __future__ import annotations

import os
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
    return f"torch {torch.__version__}"


def mkdir_if_missing(folder: str) -> None:
    os.makedirs(folder, exist_ok=True)


def listdir_nohidden(path: str) -> list[str]:
    """Names in a folder, in the order of the file system."""
    return [name for name in os.listdir(path) if not name.startswith(".")]


class Logger:
    """Writes to stdout and to a file, and closes both in the end."""

    def __init__(self, path: Path) -> None:
        mkdir_if_missing(path.parent)
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

    def registered_names(self) -> list[str]:
        return list(self.known)

    def build(self, name: str, cfg: object) -> object:
        if name not in self.known:
            raise ValueError(f"{self.kind} must be one of {sorted(self.known)}, got {name!r}")
        return self.known[name](cfg)
