"""`features list` and `features prune`: the cached features of earlier runs."""

import os
import time
from pathlib import Path

import pytest

from trainers.hegraph.commands.features import main

DAY = 86400


@pytest.fixture
def cache(tmp_path) -> Path:
    """Cached features: an old large part, a new small one and old chunks; beside them a file of another program."""
    folder = tmp_path / "features"
    files = {
        "Pets/mini/train-0123456789abcdef.safetensors": (2_000_000, 40),
        "Pets/mini/text-fedcba9876543210.safetensors": (1_000, 1),
        "Pets/mini/test-0123456789abcdef.chunks/batches-of-4/0-4.safetensors": (3_000, 40),
        "Pets/bank.safetensors": (5_000, 40),
    }
    for name, (size, days) in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
        os.utime(path, (0, time.time() - days * DAY))
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_list_shows_cached_features_only(cache, capsys):
    assert main(["list", str(cache)]) == 0
    *rows, total = capsys.readouterr().out.splitlines()
    assert [row.split()[:4] for row in rows] == [
        ["0.0", "MB", "40.0", "days"], ["0.0", "MB", "1.0", "days"], ["2.0", "MB", "40.0", "days"],
    ]  # fmt: skip
    assert total == "3 files, 2.0 MB"


def test_prune_without_yes_deletes_nothing(cache, capsys):
    before = names(cache)
    assert main(["prune", str(cache), "--unused", "30"]) == 0
    assert "to delete: 2 files, 2.0 MB; add --yes to delete them" in capsys.readouterr().out
    assert names(cache) == before


def test_prune_deletes_by_age(cache):
    assert main(["prune", str(cache), "--unused", "30", "--yes"]) == 0
    assert names(cache) == {"text-fedcba9876543210.safetensors", "bank.safetensors"}


def test_prune_deletes_by_size(cache):
    assert main(["prune", str(cache), "--larger", "1", "--yes"]) == 0
    assert names(cache) == {"text-fedcba9876543210.safetensors", "bank.safetensors", "0-4.safetensors"}


def test_missing_folder_is_refused(tmp_path, capsys):
    assert main(["prune", str(tmp_path / "none")]) == 2
    assert "none is no folder" in capsys.readouterr().err
