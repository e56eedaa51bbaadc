"""Own images with several labels each, from the annotations of Pascal VOC or COCO.

ROOT/ImageSets/Main/<split>.txt, Annotations/*.xml, JPEGImages/*                  Pascal VOC
ROOT[/annotations]/instances_<split><year>.json, ROOT[/images][/<split><year>]    COCO

The labels of an image are the classes of all its objects, also of difficult and crowded ones. Images of val are test
images if no test image has labels, and training images otherwise.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from ..utils.errors import UserError
from ..utils.files import absolute
from ..utils.reading import LenientModel, Name, reading
from .images import is_image
from .layouts import list_names, read_lines
from .own_images import OwnImages, Row, complete_splits, split_in
from .splits import SPLITS

INSTANCES = "instances_"  # prefix of COCO's files


class _Image(LenientModel):
    id: int | str
    file_name: Name


class _Annotation(LenientModel):
    image_id: int | str
    category_id: int | str


class _Category(LenientModel):
    id: int | str
    name: Name


class _Instances(LenientModel):
    """COCO's file of objects; its further keys are not read."""

    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


def read_annotations(root: str) -> OwnImages | None:
    """Read the annotations of Pascal VOC or COCO, without opening an image.

    Images of val become test images if no test image has labels, and training images otherwise.

    Returns:
        The images; None if `root` has no annotations.

    Raises:
        UserError: If a file is damaged, or only some of COCO's files have a split in their names.
    """
    base = absolute(root)
    names: list[str] = []
    if os.path.isdir(base / "ImageSets" / "Main"):
        rows = _read_voc(base)
    elif files := _coco_files(base):
        base = files[0].parent.parent if files[0].parent.name == "annotations" else files[0].parent
        splits = {str(file): split_in(file.stem) for file in files}
        splits = complete_splits(splits, base, "rename it after its split, or move it away")
        rows = [row for file, split in splits.items() for row in _read_coco(base, Path(file), split, names)]
    else:
        return None
    val = "train" if any(row.split == "test" and row.label is not None for row in rows) else "test"
    rows = [row._replace(split=val) if row.split == "val" else row for row in rows]
    return OwnImages(rows, base, classnames=names)


def _read_voc(base: Path) -> list[Row]:
    """Read the lists of images, and the file of each image; an image without a file is unlabelled."""
    lists = {path.stem: path for path in (base / "ImageSets" / "Main").glob("*.txt")}
    lists.setdefault("train", lists.get("trainval", base / "ImageSets" / "Main" / "train.txt"))
    files = {Path(file).stem: file for file in reversed(list_names(base / "JPEGImages")) if is_image(file)}
    rows = []
    for split in filter(lists.__contains__, SPLITS):
        for line in read_lines(lists[split]):
            name = line if line in files else line.rsplit(maxsplit=1)[0]  # without the flag, 1 or -1, at the end
            path = f"JPEGImages/{files.get(name, f'{name}.jpg')}"
            rows.append(Row(split, path, _objects(base / f"Annotations/{name}.xml")))
    return rows


def _objects(path: Path) -> Sequence[str] | None:
    if not path.exists():
        return None
    with reading(path, "an annotation of Pascal VOC"):
        names = [each.findtext("name", "").strip() for each in ElementTree.parse(path).iter("object")]
        if "" in names:
            raise ValueError("an object has no name")
    return tuple(names)


def _coco_files(base: Path) -> list[Path]:
    """Find the files `instances_*.json` at `base`, in it or in its folder `annotations`."""
    if base.name.startswith(INSTANCES) and base.suffix == ".json":
        return [base]
    folders = [folder for folder in (base, base / "annotations") if os.path.isdir(folder)]
    names = [folder / name for folder in folders for name in list_names(folder)]
    return [path for path in names if path.name.startswith(INSTANCES) and path.suffix == ".json"]


def _read_coco(base: Path, path: Path, split: str, names: list[str]) -> list[Row]:
    """Read a file of objects, and append its category names to `names`; an image without an object has no label."""
    with reading(path, "COCO's instances"):
        content = _Instances.model_validate_json(path.read_bytes())
        categories = {category.id: category.name for category in content.categories}
        labels: dict[int | str, list[str]] = {image.id: [] for image in content.images}
        if len(labels) < len(content.images) or len(categories) < len(content.categories):
            raise ValueError("two images, or two categories, have the same id")
        for image, category in ((each.image_id, each.category_id) for each in content.annotations):
            if image not in labels or category not in categories:
                place = f"images have no id {image}" if image not in labels else f"categories have no id {category}"
                raise ValueError(f"an annotation is of image {image} and category {category}, but {place}")
            labels[image].append(categories[category])
    if not content.images:
        raise UserError(f"{path} lists no image")
    names += categories.values()
    name = path.stem.removeprefix(INSTANCES)
    folders = (name, f"images/{name}", "images", ".")
    folder = next((each for each in folders if (base / each / content.images[0].file_name).is_file()), name)
    return [Row(split, f"{folder}/{image.file_name}", tuple(labels[image.id])) for image in content.images]
