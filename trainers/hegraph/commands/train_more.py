"""The command `train-more`, which adds images and classes to a trained model."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..features.backbones.arguments import MODEL, add_device_arguments, add_encoder_arguments
from ..features.backbones.identity import AUTO
from ..utils.command_line import Parser, echo, run_cli
from ..utils.errors import UserError
from ..utils.files import OutputFolder
from ..utils.text import printable

if TYPE_CHECKING:
    from ..datasets.base import Dataset
    from ..datasets.images import ImageOrPath
    from ..estimator.classifier import HeGraphClassifier

EPILOG = """\
DIR contains train/CLASS/*.jpg, or another layout that --root of a training accepts. Its test images are not read.
Images of classes that the model knows by name are added to these classes; other classes are new. Images on which the
model was trained are skipped, except those of a data set of CoOp or of a feature bank.
"""


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("train-more", "Add images and classes to a trained model.", epilog=EPILOG)
    parser.examples = ("output/model --root new_photos --out output/larger", "my_model --root new_photos --in-place")
    add = parser.add_argument
    add("model", metavar="MODEL", help=MODEL)
    add("--root", required=True, metavar="DIR", help="folder of class folders with images, or a CSV file")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=OutputFolder(), metavar="FOLDER", help="model folder to write or to replace")
    where.add_argument(
        "--in-place", action="store_true", help="replace MODEL; its thumbnails are removed, its other files stay"
    )
    add_encoder_arguments(parser)
    add_device_arguments(parser, "the one of the training")
    return parser.parse_args(arguments)


def train_more(args: argparse.Namespace) -> int:
    """Run the command, and print the number of images added to each class.

    With `--in-place`, no other process changes the model between its loading and its saving.
    """
    from ..datasets.loading import load_own_images

    dataset = load_own_images(args.root, split_folders=False)
    from ..estimator.incremental import check_no_record
    from ..models.folder import ModelWriter, check_place, find_model_folder  # torch takes seconds to import

    folder = find_model_folder(Path(args.model))
    if args.in_place:
        check_no_record(folder, "use --out FOLDER")
        with ModelWriter(folder) as writer:
            classifier, added = extended(folder, dataset, args)
            writer.save(classifier.model_)
        out = folder
    else:
        out = args.out
        check_place(out)
        images = [dataset.root / item.path for item in dataset.train] if dataset.root else []
        OutputFolder().check(out, [folder, *images])
        classifier, added = extended(folder, dataset, args)
        classifier.save_pretrained(out)
    model = classifier.model_
    for label, name, count in zip(classifier.classes_.tolist(), model.classnames, model.images or ()):
        number = sum(label in labels for labels in added)
        if number:
            echo(printable(f"{name}: {number} images added, {count} in total") + "\n")
    if model.unlabelled:
        echo(f"adapted again to the same {model.unlabelled} unlabelled images\n")
    echo(f"{len(added)} images added, {len(model.classnames)} classes -> {out}\n")
    return 0


def extended(
    folder: Path, dataset: Dataset, args: argparse.Namespace
) -> tuple[HeGraphClassifier, list[frozenset[Any]]]:
    """Train the model of a folder on the new images of a data set.

    Returns:
        The classifier, and the labels of each new image.

    Raises:
        UserError: As in `new_images`, or if the model cannot be loaded or trained.
    """
    from ..estimator.classifier import HeGraphClassifier  # torch takes seconds to import
    from ..models.support_set import as_set

    classifier = HeGraphClassifier.from_pretrained(
        folder, device=args.device or None, backbone=args.backbone or None, pretrained=args.pretrained or AUTO
    )
    classifier.precision = args.precision or classifier.model_.backbone.precision
    with tempfile.TemporaryDirectory() as unpacked:
        images, y, names = new_images(classifier, dataset, Path(unpacked))
        classifier.partial_fit(images, y, names)
    return classifier, [as_set(label) for label in y]


def new_images(
    classifier: HeGraphClassifier, dataset: Dataset, unpacked: Path
) -> tuple[list[ImageOrPath], list[Any], dict[Any, str]]:
    """Select the training images of own images that are not in the support set of a loaded classifier.

    Args:
        classifier: The classifier.
        dataset: The own images.
        unpacked: Folder for copies of new images inside larger files, so that they are decoded as other files.

    Returns:
        The files of the images, their labels, and the class names by label.

    Raises:
        UserError: If an image is unreadable or in the support set of another class, no image is new, two classes of
            the model have the same name, or a new class cannot have a label.
    """
    from ..estimator.incremental import ClassLabels, image_id, support_set_of
    from ..models.support_set import label_kind  # torch takes seconds to import

    support_set = support_set_of(classifier.model_)
    several = support_set.multilabel
    if several != dataset.multilabel:
        expected, got = map(label_kind, (several, dataset.multilabel))
        raise UserError(f"expected {expected} per image, as the model has, got {got}")
    class_labels = ClassLabels(support_set)
    labels = [class_labels.find_or_add(name) for name in dataset.classnames]
    label_of = {number: label for number, label in zip(support_set.ids.tolist(), support_set.image_labels()) if number}
    images: list[ImageOrPath] = []
    y = []
    assert dataset.source is not None
    for item in dataset.train:
        source = dataset.source(item.path)
        number = image_id(source, item.path)
        label = frozenset(labels[each] for each in item.labels) if several else labels[item.labels[0]]
        if number not in label_of:
            if isinstance(source, bytes):
                file = unpacked / str(len(images))
                file.write_bytes(source)
                source = file
            images.append(source)
            y.append(label)
        if label_of.setdefault(number, label) != label:
            raise UserError(f"{item.path} is also an image of class {label_of[number]!r}; remove it from one class")
    if not images:
        raise UserError(f"expected new images, but all {len(dataset.train)} are in the support set of the model")
    return images, y, class_labels.names


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit code."""
    return run_cli(lambda: train_more(parse_arguments(arguments)))
