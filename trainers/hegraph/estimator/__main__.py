"""The command `train-more`, which adds images and classes to a trained model."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..backbones.arguments import MODEL, add_device_arguments, add_encoder_arguments
from ..backbones.identity import AUTO
from ..utils.errors import Parser, UserError, command, echo, printable, run_cli
from ..utils.files import OutputFolder

if TYPE_CHECKING:
    from ..datasets import Dataset
    from .classifier import HeGraphClassifier

EPILOG = """\
DIR contains train/CLASS/*.jpg, or another layout that --root of a training accepts. Its test images are not read.
Images of classes that the model knows by name are added to these classes; other classes are new. Images that are
already in the support set are skipped.
"""


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog=command("train-more"),
        description="Add images and classes to a trained model.",
        examples=("output/model --root new_photos --out output/larger", "my_model --root new_photos --in-place"),
        epilog=EPILOG,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help=MODEL)
    add("--root", required=True, metavar="DIR", help="folder of class folders with images, or a CSV file")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=OutputFolder(), metavar="FOLDER", help="model folder to write or to replace")
    where.add_argument("--in-place", action="store_true", help="replace MODEL")
    add_encoder_arguments(parser)
    add_device_arguments(parser, "the one of the training")
    return parser.parse_args(arguments)


def train_more(args: argparse.Namespace) -> int:
    """Does what the command line says, and prints what each class has gained."""
    from ..datasets.loading import load_own_images

    dataset = load_own_images(args.root, split_folders=False)
    from ..models.folder import check_place, find_model_folder  # torch takes seconds to import
    from ..results.records import RECORD
    from .classifier import HeGraphClassifier

    folder = find_model_folder(Path(args.model))
    if args.in_place and (folder.parent / RECORD).is_file():
        raise UserError(f"{folder} is what the record beside it tells of, and stays; give --out FOLDER")
    out = folder if args.in_place else args.out
    check_place(out)
    if not args.in_place:
        images = [dataset.root / item.path for item in dataset.train] if dataset.root else []
        OutputFolder().check(out, [folder, *images])
    classifier = HeGraphClassifier.from_pretrained(
        folder, device=args.device or None, backbone=args.backbone or None, pretrained=args.pretrained or AUTO
    )
    classifier.precision = args.precision or classifier.model_.backbone.precision
    images, y, names = new_images(classifier, dataset)
    classifier.partial_fit(images, y, names)
    classifier.save_pretrained(out)
    model, gained = classifier.model_, Counter(y)
    for label, name, count in zip(classifier.classes_.tolist(), model.classnames, model.images or ()):
        if gained[label]:
            echo(printable(f"{name}: {gained[label]} more images, {count} in all") + "\n")
    if model.unlabelled:
        echo(f"the new model is adapted to the same {model.unlabelled} unlabelled images again\n")
    echo(f"{len(y)} images added, {len(model.classnames)} classes -> {out}\n")
    return 0


def new_images(classifier: HeGraphClassifier, dataset: Dataset) -> tuple[list[Any], list[Any], dict[Any, str]]:
    """The training images of a data set that a loaded classifier was not taught, their labels, and the names of all.

    A class has the label of the model's class of its name or, if it is new, its name, or the next number.

    Raises:
        UserError: If an image cannot be read, was taught as another class, or all were taught before; or if two classes
            of the model have one name.
    """
    from .incremental import image_ids, support_set_of

    support_set = support_set_of(classifier.model_)
    labels: dict[str, Any] = {name: label for label, name in support_set.by_label.items()}
    if len(labels) < len(support_set.names):
        raise UserError("the model has two classes of one name, so that their images cannot be told apart")
    for name in dataset.classnames:
        if name not in labels:
            labels[name] = name if support_set.classes.dtype.kind == "U" else max(labels.values()) + 1
    files = dataset.root is not None and dataset.version is None
    found = [dataset.root / item.path if files else dataset.open(item.path) for item in dataset.train]  # type: ignore[operator]
    of_rows = support_set.classes[support_set.labels.numpy()].tolist()
    taught = {number: label for number, label in zip(support_set.ids.tolist(), of_rows) if number}
    images, y = [], []
    for item, image, number in zip(dataset.train, found, image_ids(found).tolist()):
        label = labels[item.classname]
        if number not in taught:
            images.append(image)
            y.append(label)
        if taught.setdefault(number, label) != label:
            raise UserError(f"{item.path} was taught before as {taught[number]!r}; take it out of one class")
    if not images:
        raise UserError(f"the model was taught all {len(found)} images before")
    return images, y, {label: name for name, label in labels.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code, as of `report`."""
    return run_cli(lambda: train_more(parse_arguments(arguments)))


if __name__ == "__main__":
    sys.exit(main())
