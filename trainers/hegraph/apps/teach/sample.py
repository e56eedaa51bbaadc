"""Example project: scans of the ten digits, a few labelled and the others unlabelled."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from ...datasets.digits import load_digits_dataset
from ...utils.files import writing_folder
from .contents import UNLABELLED
from .uploads import TRAIN

SAMPLE_SIZE = 180  # scans
SAMPLE_SHOTS = 3  # labelled scans of each class


def sample_images() -> Iterator[tuple[str, str, Image.Image]]:
    """Yield the scans, each with its place and file name."""
    dataset = load_digits_dataset()
    counts: Counter[str] = Counter()
    for item in dataset.train[:SAMPLE_SIZE]:
        counts[item.classname] += 1
        place = item.classname if counts[item.classname] <= SAMPLE_SHOTS else UNLABELLED
        yield place, f"scan-{item.path[-4:]}.png", dataset.open(item.path)


def write_sample(folder: Path) -> None:
    """Write a project with the scans."""
    with writing_folder(folder) as new:
        for place, name, image in sample_images():
            path = new / (place if place == UNLABELLED else f"{TRAIN}/{place}") / name
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
