"""From images or a feature bank to written rows.

Shapes: B images of a batch, K classes, d feature width.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ..backbones.identity import AUTO
from ..features.bank import BankFile, mean_over_views
from ..models.folder import load_model, model_files
from ..models.images import ImageModel, backbone_files
from ..models.saved import SavedModel
from ..utils.devices import choose_device
from ..utils.errors import UserError, output_error
from ..utils.files import atomic_path, check_output
from .inputs import Found, Inputs
from .rows import FORMATS, NONE_OF_THESE, Row, one_line
from .sorting import ClassFolders

logger = logging.getLogger(__name__)

BANK_BATCH = 1024
BATCH_PIXELS = 64 * 224 * 224
MAX_BATCH = 256


class Options(NamedTuple):
    """How predictions are written.

    Attributes:
        top: How many classes a row has.
        format: One of `FORMATS`.
        out: The file; None is standard output.
        keep: The share of images of known classes that are to be kept, while those that score lower than the rest are
            marked as none of these; None marks no image.
    """

    top: int
    format: str
    out: Path | None
    keep: float | None = None


def predict_images(
    folder: str,
    inputs: Inputs,
    options: Options,
    sort_into: Path | None = None,
    batch_size: int = 0,
    device: str = "",
    backbone: str = "",
    pretrained: str = "",
    precision: str = AUTO,
) -> int:
    """Classifies images; arguments as of the command line, but for `options`. A `batch_size` of 0 chooses one.

    Returns:
        How many images could not be read.

    Raises:
        UserError: If the model is damaged, its backbone cannot be had, or something cannot be written.
        ReaderGone: If standard output was closed by its reader.
    """
    saved = load_model(folder)
    if options.out is not None:
        of_model = [*model_files(Path(folder)), *backbone_files(saved, backbone, pretrained)]
        check_output(options.out, [*of_model, *inputs.given])
    model = ImageModel.of(saved, choose_device(device, "--device"), backbone, pretrained, precision)
    known_images(saved, torch.zeros(0, len(saved.classnames)), options.keep)  # or says that it has no threshold
    folders = None if sort_into is None else class_folders(saved, sort_into, options)
    batch_size = batch_size or default_batch_size(model.backbone.input_size)
    rows = image_rows(model, _not_written(inputs, options.out), options.top, batch_size, folders, options.keep)
    try:
        return write_rows(rows, inputs.count(), options)
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(
            f"the GPU has no memory for {batch_size} images at once; give a smaller --batch-size"
        ) from error


def predict_bank(folder: str, bank_file: Path, split: str, options: Options) -> int:
    """Classifies the features of a bank; arguments as of the command line, but for `options`.

    Returns:
        How many features the model gives NaN for.

    Raises:
        UserError: If model or bank are damaged or do not fit each other, or something cannot be written.
    """
    model = load_model(folder)
    if options.out is not None:
        check_output(options.out, [*model_files(Path(folder)), bank_file])
    known_images(model, torch.zeros(0, len(model.classnames)), options.keep)
    features, labels = bank_features(model, bank_file, split)
    names, predicted = distinct_names(model), []

    def rows() -> Iterator[Row]:
        for start, batch in zip(range(0, len(features), BANK_BATCH), features.split(BANK_BATCH)):
            logits = model.classifier.logits(batch)
            predicted.append(logits.argmax(dim=1))
            paths = [f"{bank_file}#{split}/{row}" for row in range(start, start + len(batch))]
            known = known_images(model, logits, options.keep)
            yield from rows_of(paths, model.calibrate(logits), names, options.top, known)

    failed = write_rows(rows(), len(features), options)
    if labels is not None:
        logger.info("accuracy %.2f %%", 100 * (torch.cat(predicted) == labels).double().mean().item())
    return failed


def bank_features(model: SavedModel, bank_file: Path, split: str) -> tuple[Tensor, Tensor | None]:
    """Features `[B, d]` of a split, and labels `[B]`, which are None where the bank's classes are not the model's.

    Raises:
        UserError: If the bank lacks the split, or its features are not those that the model was trained on.
    """
    bank = BankFile(bank_file)
    if split not in bank.labels:
        raise UserError(f"{bank_file} has no {split} images; choose another --split")
    width = bank.text_positive.shape[1]
    if bank.backbone != model.backbone.title or width != model.classifier.width:
        raise UserError(
            f"the model was trained on {model.backbone.title!r} features of width {model.classifier.width}, but "
            f"{bank_file} holds those of {bank.backbone!r}, {width} wide"
        )
    model.backbone.compare_precision("fp32" if bank.encoder is None else bank.encoder.precision)
    features = bank.features(split)
    if split == "train":
        features = mean_over_views(features)
    return features, bank.labels[split] if tuple(bank.classnames) == model.classnames else None


def image_rows(
    model: ImageModel,
    inputs: Iterable[Found],
    top: int,
    batch_size: int,
    folders: ClassFolders | None = None,
    keep: float | None = None,
) -> Iterator[Row]:
    """The rows of images, in order.

    Args:
        model: The model.
        inputs: The images.
        top: How many classes a row has.
        batch_size: B.
        folders: Where images are copied to by their classes, the last of which is none of these; None copies none.
        keep: As of `Options`.
    """
    names = distinct_names(model.model)
    waiting: deque[Found] = deque()

    def paths() -> Iterator[str]:
        for found in inputs:
            waiting.append(found)
            if not found.problem:
                yield found.path

    for batch, features in model.encode(paths(), batch_size):
        logits = model.logits(features)
        readable = [str(image) for image, problem in zip(batch.images, batch.problems) if not problem]
        known = known_images(model.model, logits, keep)
        predicted = rows_of(readable, model.model.calibrate(logits), names, top, known)
        for problem in batch.problems:
            yield from _places_before(waiting)
            path = waiting.popleft().path
            row = Row(path, error=problem) if problem else next(predicted)
            if folders is not None and not row.error:
                label = len(names) if row.known is False else names.index(row.top[0][0])
                if problem := folders.copy(path, label):
                    row = Row(path, error=problem)
            yield row
    yield from _places_before(waiting)


def rows_of(
    paths: Sequence[str],
    probabilities: Tensor,
    names: Sequence[str],
    top: int,
    known: Sequence[bool] | None = None,
) -> Iterator[Row]:
    """The rows of images from their probabilities `[B, K]` and, where that was asked, whether they are known."""
    finite = probabilities.isfinite().all(dim=1).tolist()
    values, labels = probabilities.sort(dim=1, descending=True, stable=True)  # of equal classes the first comes first
    best = zip(values[:, :top].tolist(), labels[:, :top].tolist())
    for path, usable, (row_values, row_labels), is_known in zip(paths, finite, best, known or repeat(None)):
        if usable:
            yield Row(path, [(names[label], value) for label, value in zip(row_labels, row_values)], known=is_known)
        else:
            yield Row(path, error="the model gives NaN for it")


def write_rows(rows: Iterable[Row], total: int | None, options: Options) -> int:
    """Writes rows, with a progress bar and the rate on stderr.

    Args:
        rows: The rows.
        total: How many there are; None where that is not known yet.
        options: How they are written.

    Returns:
        How many have an error.

    Raises:
        UserError: If there is no row, or the output cannot be written.
        ReaderGone: If standard output was closed by its reader.
    """
    to_line = FORMATS[options.format](options.keep is not None)
    written, failed, started = 0, 0, time.monotonic()
    first: Row | None = None  # of those that failed
    shows_rows = options.out is None and sys.stdout is not None and sys.stdout.isatty()
    bar = tqdm(total=total, desc="predicting", unit="img", disable=True if shows_rows else None)
    with bar, open_output(options.out) as write:
        for row in rows:
            write(to_line(row) if written else to_line.header + to_line(row))
            written += 1
            if row.error:
                failed, first = failed + 1, first or row
            bar.update()
        if not written:
            raise UserError("there is nothing to classify: the list is empty")
    seconds = time.monotonic() - started
    rows_written = f"{written} row{'' if written == 1 else 's'}"
    logger.info("%s in %.1f s, %.0f per second", rows_written, seconds, written / max(seconds, 1e-9))
    if first is not None:
        said = "%d of %d could not be read; the first is %s: %s"
        logger.warning(said, failed, written, one_line(first.path), one_line(first.error))
    return failed


@contextmanager
def open_output(out: Path | None) -> Iterator[Callable[[str], object]]:
    """Gives a function that writes text as UTF-8.

    Args:
        out: The file, which replaces an older one at the end of the block; None writes to standard output at once.

    Raises:
        UserError: If it cannot be written.
        ReaderGone: If standard output was closed by its reader.
    """
    if out is None:
        yield _write_stdout
        return
    with atomic_path(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        yield file.write


def known_images(model: SavedModel, logits: Tensor, keep: float | None) -> list[bool] | None:
    """Which images of logits `[B, K]` are taken to be of one of the classes; None where that was not asked."""
    return None if keep is None else model.is_known(logits, keep).tolist()


def class_folders(model: SavedModel, folder: Path, options: Options) -> ClassFolders:
    """The folders of the K classes, and as the last one that of images of none of them.

    Raises:
        UserError: If a class has the name of the last one and images go there, or the folder cannot be made.
    """
    names = distinct_names(model)
    if options.keep is not None and NONE_OF_THESE in names:
        raise UserError(
            f"a class of the model is called {NONE_OF_THESE!r}, and --sort-into has one folder for a name; "
            "leave out --keep or --sort-into"
        )
    return ClassFolders(folder, [*names, NONE_OF_THESE])


def distinct_names(model: SavedModel) -> list[str]:
    """The K class names; those that are equal are told apart by their ids, as in "crane (n02012849)"."""
    names = list(model.classnames)
    while equal := {name for name, count in Counter(names).items() if count > 1}:  # an id may make another name
        names = [f"{name} ({key})" if name in equal else name for name, key in zip(names, model.class_ids)]
    return names


def default_batch_size(input_size: tuple[int, int]) -> int:
    """As many images as have the pixels of `BATCH_PIXELS`, so that memory does not depend on the backbone's input."""
    height, width = input_size
    return min(max(BATCH_PIXELS // (height * width), 1), MAX_BATCH)


def _not_written(inputs: Iterable[Found], out: Path | None) -> Iterator[Found]:
    """The inputs.

    Raises:
        UserError: If one of them is the file that is to be written.
    """
    for found in inputs:
        if out is not None:
            check_output(out, [found.path])
        yield found


def _places_before(waiting: deque[Found]) -> Iterator[Row]:
    """Rows of the places without an image that come before the next image; they are taken off."""
    while waiting and waiting[0].problem:
        path, problem = waiting.popleft()
        yield Row(path, error=problem)


def _write_stdout(text: str) -> None:
    if sys.stdout is None:
        raise UserError("standard output is closed; give --out FILE")
    try:
        sys.stdout.buffer.write(text.encode("utf-8"))
        sys.stdout.buffer.flush()
    except OSError as error:
        raise output_error(error) from error
