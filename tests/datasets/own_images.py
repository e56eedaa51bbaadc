"""What the tests of the user's own images share."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from file_server import tar_with
from PIL import Image

from trainers.hegraph.datasets import Dataset, load_dataset
from trainers.hegraph.utils.errors import UserError


def make(root: Path, *files: str) -> Path:
    """A folder with empty files."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_tar(path: Path, members: list[tuple[str, bytes]] | dict[str, bytes], mode: str = "w") -> Path:
    return write(path, tar_with(*(members.items() if isinstance(members, dict) else members), mode=mode))


def picture(red: int, green: int = 60, blue: int = 60) -> bytes:
    """A PNG of one colour."""
    content = io.BytesIO()
    Image.new("RGB", (12, 12), (red, green, blue)).save(content, "PNG")
    return content.getvalue()


def load(root: object) -> Dataset:
    return load_dataset("ImageFolder", str(root))


def refused(root: object, words: str) -> str:
    """What is said of images that cannot be loaded, which has these words."""
    with pytest.raises(UserError, match=words) as caught:
        load(root)
    return str(caught.value)


def counts(dataset: Dataset) -> list[int]:
    """The numbers of training, val and test images."""
    return [len(items) for items in dataset.splits.values()]


def rows_of(dataset: Dataset) -> dict[str, list[tuple]]:
    return {split: [tuple(item) for item in items] for split, items in dataset.splits.items()}
