"""Crops of photographs that scikit-image contains, as classes of a teach project.

The photographs are CC0 or in the public domain: `brick` (CC0Textures), `chelsea` (Stefan van der Walt), `coffee`
(Rachel Michetti), `hubble_deep_field` (NASA), `grass` (linolafett) and `rocket` (SpaceX).
"""

from pathlib import Path

import numpy as np
from PIL import Image

PHOTOS = {
    "brick wall": "brick", "cat": "chelsea", "cup of coffee": "coffee", "galaxies": "hubble_deep_field",
    "grass": "grass", "rocket": "rocket",
}  # fmt: skip
SIDE = 96  # pixels of a square crop
CROPS = 12  # of each photograph in a project


def crops(name: str) -> list[Image.Image]:
    """All crops of a photograph, which do not overlap, in random order."""
    from skimage import data

    photo = Image.fromarray(getattr(data, PHOTOS[name])()).convert("RGB")
    tops = range(0, photo.height - SIDE + 1, SIDE)
    lefts = range(0, photo.width - SIDE + 1, SIDE)
    corners = np.array([(left, top) for top in tops for left in lefts])
    chosen = np.random.default_rng(0).permutation(corners)
    return [photo.crop((left, top, left + SIDE, top + SIDE)) for left, top in chosen.tolist()]


def write_project(folder: Path) -> None:
    """Write the first crops of each photograph to `folder/train/CLASS/`."""
    for name in PHOTOS:
        (folder / "train" / name).mkdir(parents=True)
        for number, crop in enumerate(crops(name)[:CROPS]):
            crop.save(folder / "train" / name / f"{number:02}.png")
