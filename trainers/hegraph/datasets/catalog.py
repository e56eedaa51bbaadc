"""The fifteen data sets of CoOp: one entry each, in CoOp's layout and class order."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from PIL import Image

from ..utils.errors import UserError
from ..utils.files import hash_file, read_json, write_json
from . import imagenet, layouts
from .base import Dataset, class_names
from .layouts import Pools
from .pickles import read_coop_pickle
from .splits import Item, read_split_file

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
MALFORMED = (KeyError, TypeError, ValueError, IndexError)  # what a file of another structure leads to


@dataclass(frozen=True)
class Entry:
    """Where a data set lies and how it is read.

    Attributes:
        folder: Below the data root.
        images: The folder, below `folder`, that the paths of the split file are relative to.
        split_file: CoOp's file with the split; None where the split is official and no file is needed.
        build: Reads the items and, where there is no official split, draws one.
        sizes: Published number of train, val and test images and of classes.
        ids: Reads the WordNet id of every class, in label order; None where class names tell classes apart.
    """

    folder: str
    images: str
    split_file: str | None
    build: Callable[[Path, random.Random], Pools]
    sizes: tuple[int, int, int, int]
    ids: Callable[[Path], list[str]] | None = None

    @property
    def test_only(self) -> bool:
        return self.sizes[0] == 0


_class_folders = layouts.split_class_folders
_CALTECH_NAMES = MappingProxyType(
    {"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"}
)
_EUROSAT_NAMES = MappingProxyType({
    "AnnualCrop": "Annual Crop Land",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "SeaLake": "Sea or Lake",
})  # fmt: skip

CATALOG: dict[str, Entry] = {
    "ImageNet": Entry(
        "imagenet", "images", None, imagenet.imagenet, (1281167, 50000, 50000, 1000), imagenet.ids("images/train")
    ),
    "Caltech101": Entry(
        "caltech-101", "101_ObjectCategories", "split_zhou_Caltech101.json",
        lambda folder, rng: _class_folders(
            folder, "101_ObjectCategories", rng, ("BACKGROUND_Google", "Faces_easy"), _CALTECH_NAMES
        ),
        (4128, 1649, 2465, 100),
    ),
    "OxfordPets": Entry(
        "oxford_pets", "images", "split_zhou_OxfordPets.json", layouts.oxford_pets, (2944, 736, 3669, 37)
    ),
    "StanfordCars": Entry(
        "stanford_cars", "", "split_zhou_StanfordCars.json", layouts.stanford_cars, (6509, 1635, 8041, 196)
    ),
    "OxfordFlowers": Entry(
        "oxford_flowers", "jpg", "split_zhou_OxfordFlowers.json", layouts.oxford_flowers, (4093, 1633, 2463, 102)
    ),
    "Food101": Entry(
        "food-101", "images", "split_zhou_Food101.json",
        lambda folder, rng: _class_folders(folder, "images", rng), (50500, 20200, 30300, 101),
    ),
    "FGVCAircraft": Entry("fgvc_aircraft", "images", None, layouts.fgvc_aircraft, (3334, 3333, 3333, 100)),
    "SUN397": Entry("sun397", "SUN397", "split_zhou_SUN397.json", layouts.sun397, (15880, 3970, 19850, 397)),
    "DescribableTextures": Entry(
        "dtd", "images", "split_zhou_DescribableTextures.json",
        lambda folder, rng: _class_folders(folder, "images", rng), (2820, 1128, 1692, 47),
    ),
    "EuroSAT": Entry(
        "eurosat", "2750", "split_zhou_EuroSAT.json",
        lambda folder, rng: _class_folders(folder, "2750", rng, names=_EUROSAT_NAMES), (13500, 5400, 8100, 10),
    ),
    "UCF101": Entry("ucf101", "UCF-101-midframes", "split_zhou_UCF101.json", layouts.ucf101, (7639, 1898, 3783, 101)),
    "ImageNetV2": Entry(
        "imagenetv2", "imagenetv2-matched-frequency-format-val", None, imagenet.imagenet_v2, (0, 0, 10000, 1000),
        imagenet.ids_by_position,
    ),
    "ImageNetSketch": Entry(
        "imagenet-sketch", "images", None, imagenet.test_folders("images"), (0, 0, 50889, 1000), imagenet.ids("images")
    ),
    "ImageNetA": Entry(
        "imagenet-adversarial", "imagenet-a", None, imagenet.test_folders("imagenet-a"), (0, 0, 7500, 200),
        imagenet.ids("imagenet-a"),
    ),
    "ImageNetR": Entry(
        "imagenet-rendition", "imagenet-r", None, imagenet.test_folders("imagenet-r"), (0, 0, 30000, 200),
        imagenet.ids("imagenet-r"),
    ),
}  # fmt: skip


def load_pools(name: str, root: str, seed: int, rng: random.Random) -> Dataset:
    """A data set of the catalog with its full splits; no image is opened.

    Where CoOp's split file is missing, the split is drawn from `rng` and the file is written, as CoOp does. A run with
    the seed that drew it draws it again before it goes on, so that it selects what the first run did.

    Args:
        name: A key of `CATALOG`.
        root: The folder of all data sets.
        seed: The one that `rng` was made from.
        rng: What a split is drawn from; what follows in the protocol goes on with it.

    Raises:
        UserError: If something is missing; the message says what and how to find out more.
    """
    entry = CATALOG[name]
    base = Path(root).expanduser().absolute()
    folder = base / entry.folder
    hint = f"see python -m trainers.hegraph.datasets check {name} --root {root or '.'}"
    if not folder.is_dir():
        raise UserError(f"{name} is not in {folder}; set --root to the folder that holds {entry.folder}/, or {hint}")
    try:
        pools = read_pools(entry, folder, seed, rng)
        classnames = pools_class_names(entry, pools)
        ids = entry.ids(folder) if entry.ids else ()
    except (UserError, *MALFORMED) as error:
        reason = str(error) if isinstance(error, UserError) else f"a file there has another structure ({error!r})"
        raise UserError(f"{name}: {reason}; {hint}") from error
    items = {split: [item._replace(path=f"{entry.folder}/{item.path}") for item in pools[split]] for split in SPLITS}
    if pools["val"] is pools["test"]:
        items["val"] = items["test"]
    return Dataset(name, classnames, **items, open=partial(open_image, base), root=base, class_ids=ids)


def read_coop_selection(dataset: Dataset, shots: int, seed: int) -> dict[str, list[Item]] | None:
    """What CoOp selected before, in this data root, for these shots and seed; None if it did not.

    CoOp keeps it as a pickle, and such a pickle wins over every draw, there and here.

    Raises:
        UserError: If the pickle is damaged, or was drawn from another split than the one that is here.
    """
    if shots < 1:
        return None  # CoOp keeps none of all images
    entry = CATALOG[dataset.name]
    path = dataset.root / entry.folder / "split_fewshot" / f"shot_{shots}-seed_{seed}.pkl"
    if not path.is_file():
        return None
    logger.info("%s: CoOp's own few-shot selection is used", path)
    drawn = read_coop_pickle(path, entry.folder)
    remedy = f"{path} was drawn from another split; delete it to draw anew"
    if "val" not in drawn and not dataset.val_is_test:
        raise UserError(f"{remedy} (it has no val)")
    names, test = dict(enumerate(dataset.classnames)), {item.path for item in dataset.test}
    for item in (item for items in drawn.values() for item in items):
        if names.get(item.label) != item.classname:
            raise UserError(f"{remedy} ({item.path} has label {item.label}, {item.classname!r})")
        if item.path in test:
            raise UserError(f"{remedy} ({item.path} is a test image)")
    return drawn


def pools_class_names(entry: Entry, pools: Pools) -> list[str]:
    """The class names in label order.

    Raises:
        UserError: If a split is empty, or the three do not agree on what a label means.
    """
    needed = ("test",) if entry.test_only else ("train", "test")
    empty = next((split for split in needed if not pools[split]), None)
    if empty is not None:
        raise UserError(f"there is no {empty} image")
    if entry.test_only:
        return class_names(pools["test"])
    return class_names(pools["train"], pools["val"], pools["test"])


def read_pools(entry: Entry, folder: Path, seed: int, rng: random.Random, write: bool = True) -> Pools:
    """The splits of a data set, with paths relative to its folder; `write`: keep a split that had to be drawn."""
    if entry.split_file is None:
        return entry.build(folder, rng)
    split_file = folder / entry.split_file
    prefix = f"{entry.images}/" if entry.images else ""
    if split_file.is_file():
        drawn = read_drawn(split_file)
        if drawn is not None and drawn["seed"] == seed:
            version, state, gauss = drawn["state"]
            rng.setstate((version, tuple(state), gauss))  # as it was after drawing
        pools = read_split_file(split_file)
        return {split: [item._replace(path=prefix + item.path) for item in pools[split]] for split in SPLITS}

    try:
        pools = entry.build(folder, rng)
    except UserError as error:
        raise UserError(f"{split_file} is missing, and no split can be drawn instead: {error}") from error
    pools_class_names(entry, pools)  # before a file is made of it
    if not write:
        return pools
    rows = {s: [[item.path[len(prefix) :], item.label, item.classname] for item in pools[s]] for s in SPLITS}
    try:
        write_json(split_file, rows)
        drawn = {"seed": seed, "sha256": hash_file(split_file), "state": rng.getstate()}
        write_json(_drawn_with(split_file), drawn)
    except UserError as error:
        logger.warning("%s; every seed will draw a split, and a test set, of its own", error)
    else:
        logger.warning(
            "%s was missing: drawn with seed %d and written, as CoOp does. It is not the split of published numbers; "
            "to get that, delete the file and run python -m trainers.hegraph.datasets download", split_file, seed,
        )  # fmt: skip
    return pools


def read_drawn(split_file: Path) -> dict[str, Any] | None:
    """How this program drew a split file; None if it did not, or the file has been changed or replaced since."""
    path = _drawn_with(split_file)
    if not path.is_file():
        return None
    drawn = read_json(path)
    return drawn if drawn["sha256"] == hash_file(split_file) else None


def _drawn_with(split_file: Path) -> Path:
    return split_file.with_name(split_file.name + ".drawn")


def open_image(base: Path, path: str) -> Image.Image:
    return Image.open(base / path)
