"""What the tests of the user's own images share."""

from __future__ import annotations

from pathlib import Path

from trainers.hegraph.datasets import Dataset, load_dataset


def make(root: Path, *files: str) -> Path:
    """A folder with empty files."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def load(root: object) -> Dataset:
    return load_dataset("ImageFolder", str(root))


def counts(dataset: Dataset) -> list[int]:
    """The numbers of training, val and test images."""
    return [len(items) for items in (dataset.train, dataset.val, dataset.test)]
