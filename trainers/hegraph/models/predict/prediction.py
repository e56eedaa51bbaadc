"""Prediction of images or feature banks, and output of the rows.

Shapes: B images of a batch, K classes, d feature width.
"""

import io
import logging
import math
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from ...datasets.folder import NONE_OF_THESE
from ...features.bank import BankFile, mean_over_views
from ...method.training.choice import accuracy, score_multilabel
from ...utils.command_line import echo
from ...utils.devices import choose_device
from ...utils.errors import UserError
from ...utils.files import atomic_path, check_output, check_outside_models
from ...utils.progress import Progress
from ..folder import load_model
from ..images import EncodedBatch, ImageModel, backbone_files
from ..saved import SavedModel, adapt
from .files import FORMATS, PredictionRow, chosen_format, count_images, image_paths, unique_names
from .sorting import DOUBTFUL, SortedCopies
from .unfinished import resumable_batches

logger = logging.getLogger(__name__)

BANK_BATCH = 1024  # features of a bank predicted at once
BATCH_PIXELS = 64 * 224 * 224  # pixels of a batch of images
MAX_BATCH = 256  # images of a batch


def predict_images(args: Namespace) -> int:
    """Classify the images that the command line names, and write their rows.

    Returns:
        Number of images that could not be read.

    Raises:
        UserError: If the model is damaged, its backbone is not available, an output cannot be written, or images would
            be sorted into a model folder or a teach project.
    """
    saved = open_model(args, args.open_set, args.coverage)
    copies = None
    if args.sort_into is not None:
        names = dict.fromkeys((*row_names(saved, args.open_set), NONE_OF_THESE))
        copies = SortedCopies(args.sort_into, names)
        for name in names:
            check_outside_models(copies.folder(name) / "IMAGE")
    device = choose_device(args.device, "--device")
    model = ImageModel.load(saved, device, args.backbone, args.pretrained, args.precision)
    batch_size = args.batch_size or default_batch_size(model.backbone.input_size)
    paths = image_paths(args.inputs, args.null, args.sort_into, args.out)
    total = count_images(args.inputs, args.sort_into)
    progress = progress_of_prediction(total, args.out)
    with_sets = args.coverage is not None
    with encoded_batches(model, paths, total, batch_size, progress.show) as encoded:
        rows = image_rows(model, encoded, args.top, args.open_set, args.transductive, copies, args.coverage)
        failed = write_rows(rows, args.out, chosen_format(args), args.open_set is not None, progress, with_sets)
    if copies is not None:
        logger.info("%s", copies.summary())
    return failed


def predict_bank(args: Namespace) -> int:
    """Classify the features of a bank, write their rows, and log the accuracy or, with several labels per image, mAP.

    Returns:
        Number of features for which the model predicts NaN.

    Raises:
        UserError: If the bank lacks the split, or has features of another backbone than the model.
    """
    model = open_model(args, args.open_set, args.coverage)
    bank = BankFile(args.features)
    if args.split not in bank.labels:
        raise UserError(f"{args.features} has no {args.split} images; choose another --split")
    width = bank.text_positive.shape[1]
    if bank.backbone != model.backbone.title or width != model.classifier.width:
        expected = f"{model.backbone.title!r} with width {model.classifier.width}"
        got = f"{bank.backbone!r} with width {width} in {args.features}"
        raise UserError(f"expected features of {expected}, got {got}; extract the bank with the model's backbone")
    model.backbone.compare_precision(bank.encoder.precision)
    features = bank.features(args.split)
    if args.split == "train":
        features = mean_over_views(features)
    parts = [slice(start, start + BANK_BATCH) for start in range(0, len(features), BANK_BATCH)]
    predict = model.classifier.logits
    logits = predict_transductively(model, features, "cpu") if args.transductive else predict(features)
    paths = [f"{args.features}#{args.split}/{row}" for row in range(len(features))]
    sets = None if args.coverage is None else model.prediction_sets(features, logits, args.coverage)

    def rows_of_part(part: slice) -> list[PredictionRow]:
        own_sets = None if sets is None else sets[part]
        return [*rows_of(model, paths[part], logits[part], args.top, args.open_set, own_sets)]

    rows = map(rows_of_part, parts)
    progress = progress_of_prediction(len(features), args.out)
    failed = write_rows(rows, args.out, chosen_format(args), args.open_set is not None, progress, sets is not None)
    labels = bank.labels[args.split]
    if failed or tuple(bank.classnames) != model.classnames:
        return failed
    if labels.ndim == 1:
        logger.info("accuracy %.2f %%", accuracy(logits, labels))
    elif labels.any():
        logger.info("mAP %.2f %%", score_multilabel(logits, labels, bank.classnames)["map"])
    return 0


def open_model(args: Namespace, open_set: float | None = None, coverage: float | None = None) -> SavedModel:
    """Load the model that the command line names, and check that it supports the options.

    Args:
        args: Arguments of the command.
        open_set: As in `rows_of`.
        coverage: Coverage of prediction sets; None for no sets.

    Raises:
        UserError: If the model is damaged, `--out` is a file of its backbone, or it has no threshold for open-set
            rejection or for the coverage.
    """
    model = load_model(args.model)
    if text_only := model.named_only:
        message = "%d of %d classes have no training images, and are predicted from their text: %s"
        logger.warning(message, len(text_only), len(model.classnames), ", ".join(text_only[:5]))
    if args.out is not None:
        check_output(args.out, backbone_files(model, args.backbone, args.pretrained))
    if open_set is not None:
        model.check_open_set(open_set)
    if coverage is not None:
        model.set_threshold(coverage)
    return model


def encoded_batches(
    model: ImageModel, paths: Iterable[str], total: int | None, batch_size: int, show: Callable[[int], None]
) -> AbstractContextManager[Iterator[EncodedBatch]]:
    """Context as `resumable_batches` that keeps nothing if the number `total` of images is unknown."""
    if total is None:  # a list of paths, which may be endless
        return nullcontext(model.encode(paths, batch_size, show))
    return resumable_batches(model, [*paths], batch_size, show)


def image_rows(
    model: ImageModel,
    encoded: Iterator[EncodedBatch],
    top: int = 5,
    open_set: float | None = None,
    transductive: bool = False,
    copies: SortedCopies | None = None,
    coverage: float | None = None,
) -> Iterator[list[PredictionRow]]:
    """Predict images in batches, in the order of their paths.

    Args:
        model: The model with its backbone.
        encoded: Batches of images, as from `ImageModel.encode`.
        top, open_set: As in `rows_of`.
        transductive: Whether the model is adapted to the images before they are predicted.
        copies: Copies of the images in folders by predicted class, to which they are added; None for no copies.
        coverage: Coverage of prediction sets; None for no sets.

    Raises:
        UserError: If a copy cannot be written.
    """
    if transductive and (batches := list(encoded)):
        encoded = iter(batches)
        features = [batch_features for *_, batch_features in batches]
        all_logits = predict_transductively(model.model, torch.cat(features), str(model.backbone.device))
        batch_logits = all_logits.split([*map(len, features)])
    for number, (images, problems, batch_features) in enumerate(encoded):
        logits = batch_logits[number] if transductive else model.logits(batch_features)
        readable = [str(image) for image, problem in zip(images, problems) if not problem]
        sets = None if coverage is None else model.model.prediction_sets(batch_features.cpu(), logits, coverage)
        predicted = rows_of(model.model, readable, logits, top, open_set, sets)
        rows = []
        for image, problem in zip(images, problems):
            row = PredictionRow(str(image), error=problem) if problem else next(predicted)
            if copies is not None and not row.error:
                classes = [name for name, _ in row.top[: 1 if model.model.thresholds is None else None]]
                for folder in [NONE_OF_THESE] if row.known is False else classes:
                    is_doubtful = folder in classes and dict(row.top)[folder] < DOUBTFUL
                    if problem := copies.add(folder, row.path, is_doubtful):
                        row = PredictionRow(row.path, error=problem)
            rows.append(row)
        yield rows


def predict_transductively(model: SavedModel, features: Tensor, device: str) -> Tensor:
    """Adapt the model to images, and return their logits `[B, K]`.

    Args:
        model: Model without adaptation.
        features: Unit-norm features of the images, shape `[B, d]`.
        device: Device of the adaptation.

    Raises:
        UserError: If the model cannot be adapted.
    """
    _, adaptation = adapt(model, features, device)
    prior = adaptation.class_prior
    logger.info("adapted to %d images, so that each prediction depends on all of them", len(features))
    logger.debug("weights: class offsets %.2f, class prior %.2f", prior.offset_weight, prior.prior_weight)
    return adaptation.logits.cpu()


def rows_of(
    model: SavedModel,
    paths: Sequence[str],
    logits: Tensor,
    top: int,
    open_set: float | None = None,
    sets: Tensor | None = None,
) -> Iterator[PredictionRow]:
    """Iterate over the rows of images.

    Args:
        model: The model.
        paths: Paths of the images.
        logits: Their logits, shape `[B, K]`.
        top: Number of classes in a row. With several labels per image, a row has all labels whose logits reach their
            thresholds.
        open_set: Rate of images of known classes to accept; images with lower scores are rejected. None rejects none.
        sets: Prediction sets, booleans of shape `[B, K]`; None for rows without sets.
    """
    names = row_names(model, open_set)
    probabilities = model.calibrate(logits)
    known = [None] * len(logits) if open_set is None else model.is_known(logits, open_set).tolist()
    finite = probabilities.isfinite().all(dim=1).tolist()
    counts = [top] * len(logits)
    if model.thresholds is not None:  # predicted labels come first, even if another one is more probable
        predicted = logits >= model.thresholds
        probabilities = probabilities.where(predicted, -1)
        counts = predicted.sum(dim=1).tolist()
    values, labels = probabilities.sort(dim=1, descending=True, stable=True)  # equal probabilities in class order
    most = max(counts, default=0)
    of_sets: list[list[str] | None] = [None] * len(logits)
    if sets is not None:
        for number, (ordered, inside) in enumerate(zip(labels, sets)):
            of_sets[number] = [names[label] for label in ordered[inside[ordered]].tolist()]
    columns = (paths, values[:, :most].tolist(), labels[:, :most].tolist(), counts, finite, known, of_sets)
    for path, row_values, row_labels, count, is_finite, is_known, classes in zip(*columns):
        if is_finite:
            top_classes = [(names[label], value) for label, value in zip(row_labels[:count], row_values)]
            yield PredictionRow(path, top_classes, known=is_known, classes=classes)
        else:
            yield PredictionRow(path, error="the model predicts NaN")


def row_names(model: SavedModel, open_set: float | None) -> list[str]:
    """Name of each of the K classes in rows; `open_set` as in `rows_of`."""
    return unique_names(model.classnames, model.class_ids, () if open_set is None else [NONE_OF_THESE])


def progress_of_prediction(total: int | None, out: Path | None) -> Progress:
    """Progress of a prediction, which is hidden if its rows appear in a terminal.

    Args:
        total: Number of images; None if it is unknown.
        out: File of the rows; None for standard output.
    """
    on_terminal = out is None and sys.stdout is not None and sys.stdout.isatty()
    return Progress(total, "predicting", is_shown=not on_terminal)


def write_rows(
    batches: Iterable[Sequence[PredictionRow]],
    out: Path | None,
    format: str,
    open_set: bool = False,
    progress: Progress | None = None,
    with_sets: bool = False,
    selected_from: int | None = None,
) -> int:
    """Write rows as their batches arrive; stderr shows their rate, or the number of selected images.

    Args:
        batches: The rows.
        out: File to write; None for standard output.
        format: One of `FORMATS`.
        open_set: Whether images may be rejected as unknown.
        progress: Progress of the prediction; None without one.
        with_sets: Whether rows have prediction sets.
        selected_from: Number of images from which the rows were selected; None if the rows are all images.

    Returns:
        Number of rows with an error.

    Raises:
        UserError: If there is no row.
    """
    written = 0
    started = time.monotonic()
    errors: list[str] = []

    def counted() -> Iterator[Sequence[PredictionRow]]:
        nonlocal written
        with nullcontext() if progress is None else progress:
            for rows in batches:
                written += len(rows)
                errors.extend(row.path for row in rows if row.error)
                yield rows
                if progress is not None:
                    progress.show(written)

    with open_output(out) as write:
        for line in FORMATS[format](counted(), open_set, with_sets):
            write(line)
        if not written:
            raise UserError("expected at least one image, got none: the folders have no images, or the list is empty")
    seconds = time.monotonic() - started
    if selected_from is None:
        logger.info("%d images in %.1f s, %.0f per second", written, seconds, written / max(seconds, 1e-9))
    else:
        logger.info("selected %d of %d images", written - len(errors), selected_from)
    if errors:
        logger.warning("%d of %d could not be read; the first is %s", len(errors), written, errors[0])
    return len(errors)


@contextmanager
def open_output(out: Path | None) -> Iterator[Callable[[str], object]]:
    """Context with a function that writes text as UTF-8, to a file, or to standard output if `out` is None.

    The file replaces an older one at the end of the block.
    """
    if out is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", newline="")
        yield echo
        return
    with atomic_path(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        yield file.write


def default_batch_size(input_size: tuple[int, int]) -> int:
    """Number of images with `BATCH_PIXELS` pixels, so that memory does not depend on the input size of the backbone."""
    return min(max(BATCH_PIXELS // math.prod(input_size), 1), MAX_BATCH)
