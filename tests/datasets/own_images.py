"""What the tests of the user's own images share."""

from __future__ import annotations

from trainers.hegraph.datasets import Dataset, load_dataset


def load(root: object) -> Dataset:
    return load_dataset("ImageFolder", str(root))


def counts(dataset: Dataset) -> list[int]:
    """The numbers of training, val and test images."""
    return [len(items) for items in (dataset.train, dataset.val, dataset.test)]
