"""Summary of one run: accuracy in total and by class, example errors, suspicious labels, and calibration.

A run without test images is evaluated by leave-one-out on its training images, or without their groups.

Shapes: M images that the run is evaluated on, N training images, K classes.
"""

import base64
import io
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...datasets.images import open_image, reason
from ...estimator.labels import LEAST_AGREEMENT, SUSPICIOUS
from ...estimator.labels.issues import LabelIssue, rank_labels
from ...estimator.labels.leave_one_group_out import leave_one_group_out
from ...models.folder import load_model
from ...models.saved import SavedModel
from ...results.comparison import has_calibration, on_base_classes
from ...results.figures import MIN_IMAGES
from ...results.intervals import Ranking, bootstrap_weights, mean_precision, percentile_interval
from ...results.predictions import confused_pairs, count_confusions, read_predictions, read_scores
from ...results.records import PREDICTIONS, ImageFiles, main_score, read_test_files, read_training_rows
from ...results.scores import OUR_METHOD, PAPER, is_multilabel, method
from ...results.table import CONFIDENCE
from ...utils.errors import UserError

logger = logging.getLogger(__name__)

OTHER_IMAGES = "all other training images (leave-one-out)"
OTHER_GROUPS = "the training images of other groups (leave-one-group-out)"
MAX_LEFT_OUT = 5000  # training images, since leave-one-out takes O(N^2)
MAX_BARS = 20  # classes that are shown at once
MAX_PAIRS, MAX_EXAMPLES, MAX_ISSUES, MAX_WEAK = 5, 4, 8, 3
SIDE = 160  # pixels of an example image


class Example(NamedTuple):
    """Image with a caption. `source` is a data URI, or "" if the file cannot be read."""

    source: str
    name: str
    caption: str


class ClassResult(NamedTuple):
    """Score of a class in percent, its explanation, and its number of training images, if known."""

    name: str
    percent: float
    text: str
    images: int | None


class Pair(NamedTuple):
    """Two confused classes in words, with example images."""

    text: str
    examples: list[Example]


@dataclass
class Summary:
    """Values of the template.

    Attributes:
        run: Description of the run.
        sentence: Accuracy with its interval.
        classes: Scores by class, the lowest one first; [] if the run has no output folder.
        pairs: Most confused pairs; None where nothing is known of them.
        labels: Sentence about suspicious training labels; "" without an output folder.
        issues: Training images with suspicious labels.
        weak: Classes to add images of, the most urgent one first.
        calibration: Sentence about confidence; "" without calibration scores.
        sets: Sentence about prediction sets; "" without their coverage on test images.
        names: Sentence about classes whose names say nothing to the encoder; "" without them.
        at_chance: Whether the model is not significantly better than always predicting the largest class. Classes and
            pairs are then no advice.
    """

    run: str
    sentence: str
    classes: list[ClassResult] = field(default_factory=list)
    pairs: list[Pair] | None = None
    labels: str = ""
    issues: list[Example] = field(default_factory=list)
    weak: list[ClassResult] = field(default_factory=list)
    calibration: str = ""
    sets: str = ""
    names: str = ""
    at_chance: bool = False


class EvaluatedImages(NamedTuple):
    """Predicted classes and labels of M images, each `[M]`, the K class names, and the files, if known."""

    predicted: Tensor
    labels: Tensor
    classnames: Sequence[str]
    files: Sequence[Path]


class LeaveOneOut(NamedTuple):
    """Predictions of the training images by models without the image, or without its group.

    Attributes:
        predictions: The predictions.
        issues: Labels of the images from the most to the least suspicious one.
        names: `SavedModel.names_sentence`.
        fitted_to: Images that the models are fitted to, in words.
    """

    predictions: EvaluatedImages
    issues: Sequence[LabelIssue]
    names: str
    fitted_to: str = OTHER_IMAGES


def choose_run(runs: Sequence[tuple[Path | None, dict]]) -> tuple[Path | None, dict]:
    """Choose the run to summarise from output folders (None for a collected record) and records.

    It is a run with test images, of HeGraphAdapter and on all classes, if there is one, with the most shots. Of several
    such runs, it is the last one, because choosing the best one would select on test.
    """

    def priority(run: tuple[Path | None, dict]) -> tuple:
        record = run[1]
        ours = method(record) in (OUR_METHOD, PAPER)
        shots = record["shots"] if record["shots"] > 0 else math.inf
        is_tested = main_score(record) is not None
        return is_tested, not on_base_classes(record), ours, shots, record.get("finished_at") or ""

    return max(runs, key=priority)


def summarise(folder: Path | None, record: dict, run: str) -> Summary:
    """Summarise a run.

    Args:
        folder: Output folder of the run; None for a collected record.
        record: Record of the run.
        run: Description of the run.

    Raises:
        UserError: If a file of the run is damaged.
    """
    has_predictions = folder is not None and (folder / PREDICTIONS).exists()
    multilabel = is_multilabel(record)
    files = read_test_files(folder / PREDICTIONS) if folder is not None and has_predictions and not multilabel else None
    left_out = None if folder is None else leave_one_out_of_run(folder, files)
    if multilabel:
        summary = Summary(run, map_sentence(record, folder if has_predictions else None))
        precision = (record.get("average_precision") or {}).items()
        summary.classes = sort_scores(
            [ClassResult(name, ap, f"AP {ap:.1f} %", None) for name, ap in precision if ap is not None]
        )
    elif folder is not None and has_predictions:
        predicted, labels, names = read_predictions(folder)
        paths = [Path(files.root) / path for path in files.test] if files and len(files.test) == len(labels) else []
        summary = Summary(run, accuracy_sentence(record))
        add_classes(summary, EvaluatedImages(predicted, labels, names, paths), left_out)
    elif main_score(record) is not None:
        summary = Summary(run, accuracy_sentence(record))
    elif left_out is not None:
        predictions = left_out.predictions
        right = int((predictions.predicted == predictions.labels).sum())
        start = f"The run has no test images. Fitted to {left_out.fitted_to}, the model"
        summary = Summary(run, f"{start} classifies {share_with_interval(right, len(predictions.labels), 'training')}.")
        add_classes(summary, predictions, left_out)
    else:
        summary = Summary(run, "The run has no test images, so its accuracy is unknown.")
    summary.weak = [] if summary.at_chance else weak_classes(summary.classes)
    if left_out is not None:
        summary.names = left_out.names
        add_issues(summary, left_out)
    elif folder is not None and not multilabel:
        summary.labels = f"They are found in models of HeGraphAdapter with up to {MAX_LEFT_OUT:,} training images."
    if has_calibration(record):
        summary.calibration = calibration_sentence(record)
    if has_sets(record):
        summary.sets = sets_sentence(record)
    return summary


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """Wilson's interval for the share of correct images."""
    from scipy.stats import binomtest  # takes half a second to import

    low, high = binomtest(right, count).proportion_ci(CONFIDENCE, method="wilson")
    return low, high


def interval_text(right: int, count: int) -> str:
    """Words for Wilson's interval for the share of correct images, in percent."""
    low, high = wilson_interval(right, count)
    return f"{CONFIDENCE:.0%} interval: {100 * low:.1f} to {100 * high:.1f} %"


def share_with_interval(right: int, count: int, kind: str) -> str:
    """Words for a share of correct images with Wilson's interval."""
    share = f"{100 * right / count:.1f} % ({interval_text(right, count)})"
    return f"{right:,} of {count:,} {kind} images correctly: {share}"


def accuracy_sentence(record: dict) -> str:
    """Sentence about the accuracy of a record, with its interval over test images."""
    count = max(record["num_test"], 1)  # a record from elsewhere may lack the number
    share = share_with_interval(round(record["accuracy"] / 100 * count), count, "test")
    return f"The model classifies {share}.{zero_shot_sentence(record['accuracy_zero_shot'])}"


def map_sentence(record: dict, folder: Path | None) -> str:
    """Sentence about the mAP of a record, with its bootstrap interval over test images if the predictions are there."""
    interval = ""
    if folder is not None:
        ranking = Ranking(*(values.numpy() for values in read_scores(folder)))
        weights = bootstrap_weights(len(ranking.labels), np.random.default_rng(0))
        _, low, high = percentile_interval(100 * mean_precision(ranking, weights))
        interval = f" ({CONFIDENCE:.0%} interval: {low:.1f} to {high:.1f} %)"
    start = f"The mean average precision on {record['num_test']:,} test images is {record['map']:.1f} %{interval}"
    return f"{start}.{zero_shot_sentence(record['map_zero_shot'])}"


def zero_shot_sentence(score: float | None) -> str:
    """Sentence about the score of zero-shot CLIP in percent, after a space; "" without class texts."""
    return "" if score is None else f" CLIP without training images reaches {score:.1f} %."


def calibration_sentence(record: dict) -> str:
    """Sentence about the confidence of a record with calibration scores, and about merged bins."""
    before, after = (record["calibration"][part] for part in ("before", "after"))
    counts, confidence = (np.array(after["bins"][key]) for key in ("count", "confidence"))
    mean = (counts * confidence).sum() / counts.sum()
    means = f"On average, the model is {mean:.1f} % confident and {after['accuracy']:.1f} % correct"
    error = f"expected calibration error is {after['ece']:.1f} % ({before['ece']:.1f} % before temperature scaling)"
    merged = f"Neighbouring dots are merged until each has {MIN_IMAGES} images."
    if counts.sum() < 2 * MIN_IMAGES:
        merged = f"{counts.sum()} test images are few: all of them are one dot."
    return f"{means}; its {error}. {merged}"


def has_sets(record: dict) -> bool:
    """Whether a record has coverage and size of the prediction sets of test images."""
    sets = record.get("prediction_sets") or {}
    return all(sets.get(key) is not None for key in ("nominal", "coverage", "mean_size", "single"))


def sets_sentence(record: dict) -> str:
    """Sentences about the coverage and the size of a record's prediction sets."""
    sets = record["prediction_sets"]
    count = max(record["num_test"], 1)  # a record from elsewhere may lack the number
    interval = interval_text(round(sets["coverage"] / 100 * count), count)
    covered = f"contain the class of {sets['coverage']:.1f} % of the test images ({interval})"
    sizes = f"They have {sets['mean_size']:.2f} classes on average, and {sets['single']:.1f} % have a single class"
    return f"Prediction sets for {sets['nominal']:.0%} {covered}. {sizes}."


# Classes


def add_classes(summary: Summary, images: EvaluatedImages, left_out: LeaveOneOut | None) -> None:
    """Add the accuracy by class and the most confused pairs of `images` to a summary.

    Args:
        summary: Summary to complete.
        images: Images that the run is evaluated on.
        left_out: Its labels give the number of training images of each class; None leaves these unknown.
    """
    matrix = count_confusions(images.predicted, images.labels, len(images.classnames))
    training = count_training_images(images, left_out)
    for c, name in enumerate(images.classnames):
        right = int(matrix[c, c])
        count = int(matrix[c].sum())
        if count:
            score = ClassResult(name, 100 * right / count, f"{right} of {count} correct", training[c])
            summary.classes.append(score)
    summary.classes = sort_scores(summary.classes)
    count = int(matrix.sum())
    largest = int(matrix.sum(axis=1).max())
    summary.at_chance = wilson_interval(int(matrix.trace()), count)[0] <= largest / count
    if summary.at_chance:
        share = 100 * largest / count
        summary.sentence += f" The model is no better than always naming the largest class ({share:.1f} %)."
        return
    summary.pairs = [describe_pair(images, matrix, pair) for pair in confused_pairs(matrix, MAX_PAIRS)]


def count_training_images(images: EvaluatedImages, left_out: LeaveOneOut | None) -> Sequence[int | None]:
    """Number of training images of each class; None for each if it is unknown."""
    if left_out is None:
        return [None] * len(images.classnames)
    labels = left_out.predictions.labels.numpy()
    return np.bincount(labels, minlength=len(images.classnames)).tolist()


def describe_pair(images: EvaluatedImages, matrix: np.ndarray, pair: tuple[int, int]) -> Pair:
    """Describe two confused classes, with up to `MAX_EXAMPLES` images.

    Args:
        images: Images that the run is evaluated on.
        matrix: Their confusions, shape `[K, K]`.
        pair: The two classes.
    """
    parts = []
    examples: list[Example] = []
    for label, predicted in (pair, pair[::-1]):
        if not matrix[label, predicted]:
            continue
        name = images.classnames[label]
        other = images.classnames[predicted]
        parts.append(f"{matrix[label, predicted]} of {matrix[label].sum()} {name} predicted as {other}")
        is_confused = (images.labels == label) & (images.predicted == predicted)
        for row in is_confused.nonzero()[:, 0].tolist() if images.files else ():
            if len(examples) < MAX_EXAMPLES:
                examples.append(make_example(images.files[row], f"{name}, predicted as {other}"))
    return Pair("; ".join(parts), examples)


def sort_scores(scores: Sequence[ClassResult]) -> list[ClassResult]:
    """Sort classes from the lowest to the highest score; of equal scores, the one with the fewest images first."""
    return sorted(scores, key=lambda score: (score.percent, score.images or 0))


def weak_classes(scores: Sequence[ClassResult]) -> list[ClassResult]:
    """Return the first `MAX_WEAK` classes with errors of `scores`, which are sorted with the lowest first."""
    return [score for score in scores if score.percent < 100][:MAX_WEAK]


# Training images


def leave_one_out_of_run(folder: Path, files: ImageFiles | None) -> LeaveOneOut | None:
    """Predict the training images of a run without each image or its group; None if the run has none, or too many.

    `files` are the files of its test images, below the same folder as those of its training images.

    Raises:
        UserError: If the model is damaged.
    """
    if not (folder / "model").exists():  # such as a run of a transductive method
        return None
    try:
        model = load_model(folder)
    except UserError as error:
        logger.info("no leave-one-out: %s", error)
        return None
    support = model.support_set if isinstance(model, SavedModel) else None
    if support is None or support.multilabel or not 0 < len(support.labels) <= MAX_LEFT_OUT:
        return None
    if len(support.labels.unique()) < 2:
        return None
    fitted_to = OTHER_IMAGES
    groups = torch.arange(len(support.labels))
    if support.groups is not None and len(support.groups.unique()) > 1:
        groups = support.groups
        fitted_to = OTHER_GROUPS
    logits, predicted = leave_one_group_out(
        support.keys(),
        support.labels,
        groups,
        model.known_text,
        model.logit_scale,
        model.trusts_text,
        model.class_prior,
    )
    paths = [] if files is None else train_files(folder, files.root, len(support.labels))
    predictions = EvaluatedImages(predicted, support.labels, support.names, paths)
    issues = rank_labels(logits, support.labels, support.names)
    return LeaveOneOut(predictions, issues, model.names_sentence, fitted_to)


def train_files(folder: Path, root: str, count: int) -> list[Path]:
    """Files of the `count` training images of a run, below a root; [] if they are unknown."""
    rows = read_training_rows(folder)
    return [Path(root) / str(row[0]) for row in rows if row] if len(rows) == count else []


def add_issues(summary: Summary, left_out: LeaveOneOut) -> None:
    """Add the training images with suspicious labels, unless the model misclassifies most images by leave-one-out."""
    images = left_out.predictions
    right = int((images.predicted == images.labels).sum())
    if right < LEAST_AGREEMENT * len(images.labels):
        share = f"only {right:,} of {len(images.labels):,} training images as they are labelled"
        summary.labels = f"Fitted to the others, the model classifies {share}: it cannot find wrong labels."
        return
    suspicious = [issue for issue in left_out.issues if issue.score > SUSPICIOUS]
    count = len(left_out.issues)
    files = images.files
    start = f"{len(suspicious) or 'None'} of {count:,} training labels {'look' if len(suspicious) > 1 else 'looks'}"
    summary.labels = f"{start} wrong to a model that was fitted to the other training images."
    for issue in suspicious[:MAX_ISSUES]:
        caption = f"labelled {issue.label}, likely {issue.suggested} (score {issue.score:.1f})"
        unknown = Example("", f"training image {issue.index + 1}", caption)
        summary.issues.append(make_example(files[issue.index], caption) if files else unknown)


def make_example(path: Path, caption: str) -> Example:
    """Example of an image file, without its metadata."""
    content = io.BytesIO()
    try:
        image = open_image(path)
        image.thumbnail((SIDE, SIDE))
        image.info.clear()
        image.save(content, "JPEG", quality=85)
    except Exception as error:  # Pillow raises exceptions of many types on damaged bytes
        logger.info("%s is not shown: %s", path, reason(error))
        return Example("", path.name, caption)
    return Example(f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}", path.name, caption)
