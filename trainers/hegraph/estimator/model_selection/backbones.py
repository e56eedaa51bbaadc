"""Compare backbones on a few labelled images by the accuracy of the training-free variant on held-out images.

Each image is classified by a model that was fitted without it (`labels/held_out.py`): to all other images or, with few
images per class or with groups, to the images of other folds. So the comparison needs neither validation images nor
training, and the test images take no part in it. With several labels per image, the score is the mAP of the multi-label
head by exact leave-one-out, or without the groups of the images. The result is an estimate of the accuracy on images
from the same source. Near-duplicates among the images, such as frames of one video, make it too high unless groups are
named.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ...datasets.base import check_classes
from ...datasets.decoding import REDUCED
from ...datasets.images import ImageOrPath, open_any
from ...features.backbones.base import Backbone
from ...features.backbones.loading import load_backbone, local_weights
from ...features.bank import count_labels
from ...features.extract import encode_prompts
from ...features.options import NO_PROMPTS, EncodingOptions
from ...method.head.multilabel import MultiLabelHead
from ...results.intervals import (
    Difference,
    Ranking,
    bootstrap_weights,
    mean_difference,
    mean_precision,
    percentile_interval,
)
from ...results.table import CONFIDENCE
from ...utils.devices import choose_device
from ...utils.errors import UserError, user_message
from ...utils.reading import validate
from ...utils.text import one_line, shown
from ..classes import NotBlank, check_label_values
from ..labels.held_out import held_out_predictions
from .candidates import Candidate, read_candidates, size_of

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

TIMED_IMAGES = 32  # images that are encoded to measure the speed
REPETITIONS = 10  # most repetitions of a measurement
TIMED_SECONDS = 2.0  # after which no repetition begins
ARRAYS = (np.generic, np.ndarray, Tensor)
COLUMNS = (
    "backbone", "weights", "zero_shot", "held_out", "low", "high", "images_per_second", "megabytes", "parameters",
    "licence", "error",
)  # fmt: skip


class Encoded(NamedTuple):
    """Labelled images and class names, encoded by a backbone.

    Attributes:
        backbone: The backbone.
        features: Unit-norm image features, shape `[N, d]`.
        labels: Classes of the images, shape `[N]`, or label indicators, shape `[N, K]`.
        text: Unit-norm text features of the classes, shape `[K, d]`; 0 for classes without names.
        sample: Up to `TIMED_IMAGES` of the images.
        groups: Groups of the images, integers of shape `[N]`; None without groups.
        folds: Folds of images with one label, shape `[N]`; None for those of `held_out_folds`.
    """

    backbone: Backbone
    features: Tensor
    labels: Tensor
    text: Tensor
    sample: Sequence[ImageOrPath]
    groups: Tensor | None = None
    folds: Tensor | None = None


@dataclass(frozen=True)
class BackboneResult:
    """Result of a candidate.

    Attributes:
        candidate: The candidate.
        zero_shot: Accuracy (mAP) of zero-shot CLIP on the labelled images, in percent; NaN without text.
        outcome: Whether each image is classified correctly without itself, booleans `[N]`; with several labels per
            image, its scores and labels. None after an error.
        images_per_second: Speed of preprocessing and encoding images on this machine.
        megabytes: Size of the weights; None if unknown.
        parameters: Number of parameters.
        single_image_classes: Number of classes with one image. Without it, a class is known by its text only, if it has
            some.
        chance: Accuracy of always naming the largest class, in percent; 0 with several labels per image.
        error: Reason why the candidate could not be compared, or "".
    """

    candidate: Candidate
    zero_shot: float = np.nan
    outcome: np.ndarray | Ranking | None = None
    images_per_second: float = np.nan
    megabytes: float | None = None
    parameters: int = 0
    single_image_classes: int = 0
    chance: float = 0.0
    error: str = ""

    @property
    def has_text(self) -> bool:
        """Whether the classes have text; False after an error."""
        return not np.isnan(self.zero_shot)

    @property
    def accuracy(self) -> float:
        """Accuracy (mAP) on held-out images in percent; NaN after an error."""
        if self.outcome is None:
            return np.nan
        if isinstance(self.outcome, Ranking):
            return self.precision[0]
        return 100 * float(self.outcome.mean())

    def interval(self) -> tuple[float, float]:
        """Interval of the accuracy over images in percent: Wilson's, or for the mAP the bootstrap interval."""
        from scipy.stats import binomtest

        if self.outcome is None:
            return np.nan, np.nan
        if isinstance(self.outcome, Ranking):
            return percentile_interval(self.precision)[1:]
        ends = binomtest(int(self.outcome.sum()), len(self.outcome)).proportion_ci(CONFIDENCE, method="wilson")
        return 100 * ends.low, 100 * ends.high

    @cached_property
    def precision(self) -> np.ndarray:
        """Held-out mAP in percent, then its bootstrap samples, which are the same images for all candidates."""
        assert isinstance(self.outcome, Ranking)
        weights = bootstrap_weights(len(self.outcome.labels), np.random.default_rng(0))
        return 100 * mean_precision(self.outcome, weights)

    def minus(self, other: BackboneResult) -> Difference:
        """Difference of the accuracies of two results, with its paired interval over images."""
        if isinstance(self.outcome, Ranking):
            return percentile_interval(self.precision - other.precision)
        assert isinstance(self.outcome, np.ndarray) and isinstance(other.outcome, np.ndarray)
        return mean_difference([100 * (self.outcome.astype(float) - other.outcome)])


def compare_candidates(
    candidates: Sequence[Candidate], encode: Callable[[Candidate], Encoded], offline: bool = False
) -> list[BackboneResult]:
    """Compare candidates. An error of a candidate is part of its result, and the others go on.

    Args:
        candidates: The candidates.
        encode: Function that encodes the labelled images and the class names with a candidate.
        offline: Whether to skip candidates whose weights are not on this machine.

    Returns:
        Results sorted by accuracy, the best one first, and those with an error last.
    """
    results = []
    for candidate in tqdm(candidates, desc="comparing backbones", unit="backbone", disable=None):
        try:
            results.append(_result(candidate, encode, offline))
        except Exception as error:
            message = user_message(error)
            results.append(BackboneResult(candidate, megabytes=candidate.megabytes, error=one_line(message)))
            logger.warning("%s: %s", candidate, message)
    return sorted(results, key=lambda result: np.inf if result.error else -result.accuracy)


def _result(candidate: Candidate, encode: Callable[[Candidate], Encoded], offline: bool) -> BackboneResult:
    """Result of one candidate; arguments as in `compare_candidates`. Any error of the candidate is raised."""
    is_local = local_weights(candidate.name, candidate.tag) is not None
    if offline and not is_local:
        raise UserError("its weights are not on this machine", "candidates.offline")
    if not is_local:
        size = "unknown size" if candidate.megabytes is None else f"{candidate.megabytes:.0f} MB"
        logger.info("%s: downloading its weights (%s)", candidate, size)
    encoded = encode(candidate)
    zero_shot, outcome = held_out_outcome(encoded)
    counts = count_labels(encoded.labels, len(encoded.text))
    return BackboneResult(
        candidate,
        zero_shot=100 * zero_shot,
        outcome=outcome,
        images_per_second=measure_speed(encoded.backbone, encoded.sample),
        megabytes=size_of(candidate),
        parameters=sum(parameter.numel() for parameter in encoded.backbone.model.parameters()),
        single_image_classes=counts.count(1),
        chance=100 * max(counts) / len(encoded.labels) if encoded.labels.dim() == 1 else 0.0,
    )


def held_out_outcome(encoded: Encoded) -> tuple[float, np.ndarray | Ranking]:
    """Classify the images by zero-shot CLIP, and each one by a model that was fitted without it.

    Returns:
        Accuracy (mAP) of zero-shot CLIP between 0 and 1, or NaN without class texts, and `BackboneResult.outcome`.
    """
    features = encoded.features
    labels = encoded.labels
    has_text = bool(encoded.text.any())
    similarities = features @ encoded.text.t()
    if labels.dim() == 1:
        scale = encoded.backbone.logit_scale
        predicted = held_out_predictions(
            features, labels, encoded.text, scale, groups=encoded.groups, folds=encoded.folds
        )
        zero_shot = (similarities.argmax(dim=1) == labels).double().mean().item()
        outcome = (predicted == labels).numpy()
        if not has_text:
            zero_shot = np.nan
        return zero_shot, outcome
    indicators = labels.numpy()
    text = encoded.text if has_text else None
    scores = MultiLabelHead.fit(features, labels.bool(), text, encoded.groups).left_out.numpy()
    if not has_text:
        return np.nan, Ranking(scores, indicators)
    all_images = np.ones((1, len(indicators)))
    precision = mean_precision(Ranking(similarities.numpy(), indicators), all_images)[0]
    return precision, Ranking(scores, indicators)


def measure_speed(backbone: Backbone, images: Sequence[ImageOrPath]) -> float:
    """Measure how many images a backbone preprocesses and encodes in a second; files are opened before.

    The fastest of several repetitions counts, because other programs slow down single ones.
    """
    opened = [open_any(image) for image in images]
    backbone.encode_images(opened[:1])  # the first call is slower
    seconds: list[float] = []
    while len(seconds) < REPETITIONS and sum(seconds) < TIMED_SECONDS:
        start = time.perf_counter()
        backbone.encode_images(opened)
        seconds.append(time.perf_counter() - start)
    return len(opened) / min(seconds)


def recommend(results: Sequence[BackboneResult]) -> tuple[BackboneResult, Difference | None]:
    """Choose the fastest backbone that is not significantly less accurate than the best one.

    Args:
        results: Results of `compare_candidates`, the most accurate one first.

    Returns:
        The recommended result, and its accuracy minus the accuracy of the best one, with the bootstrap interval over
        images; None if it is the best one.

    Raises:
        UserError: If every candidate has an error.
    """
    usable = [result for result in results if not result.error]
    if not usable:
        raise UserError(f"no candidate can be compared; {results[0].candidate}: {results[0].error}", "candidates.none")
    best = usable[0]
    recommended = best
    difference = None
    for result in usable[1:]:
        paired = result.minus(best)
        if paired.high >= 0 and result.images_per_second > recommended.images_per_second:
            recommended, difference = result, paired
    return recommended, difference


def reason_against(results: Sequence[BackboneResult]) -> str:
    """Reason why no backbone can be recommended, as a clause; "" if one can.

    Args:
        results: Results of `compare_candidates`, the most accurate one first.
    """
    usable = [result for result in results if not result.error]
    if not usable:
        return "none could be compared"
    best = usable[0]
    if best.interval()[0] <= best.chance:
        return f"none is clearly better than always naming the largest class ({best.chance:.1f} %)"
    return f"{best.candidate} is the only one that was compared" if len(usable) == 1 else ""


def to_frame(results: Sequence[BackboneResult]) -> pd.DataFrame:
    """Convert results to a frame with `COLUMNS`; accuracies and interval ends in percent."""
    import pandas as pd

    rows: list[tuple[Any, ...]] = []
    for result in results:
        candidate = result.candidate
        numbers = (result.zero_shot, result.accuracy, *result.interval())
        size = np.nan if result.megabytes is None else result.megabytes
        costs = (result.images_per_second, size, result.parameters, candidate.licence, result.error)
        rows.append((candidate.name, candidate.tag, *numbers, *costs))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def compare_backbones(
    images: Sequence[ImageOrPath],
    labels: Sequence[Any],
    classnames: Sequence[str] | None = None,
    candidates: Sequence[str] = (),
    device: str = "",
    precision: str = "auto",
    offline: bool = False,
    use_names: bool = True,
) -> pd.DataFrame:
    """Compare backbones on held-out labelled images, without validation images and without training.

    Args:
        images: N paths or PIL images.
        labels: Class of each image: all strings, names in `classnames`, or all integers, indices into `classnames`.
            Without `classnames`, labels of any one kind that `HeGraphClassifier.fit` accepts.
        classnames: The K class names; None takes the sorted labels.
        candidates: Backbones such as "ViT-B-32:openai", "mini" or "local-dir:FOLDER"; () takes a list of six from 85
            to 428 million parameters.
        device: "cpu", "cuda" or "cuda:N"; "" takes a GPU if one is available.
        precision: As in `load_backbone`.
        offline: Whether to skip candidates whose weights are not on this machine.
        use_names: Whether class names are encoded as text; otherwise images alone define the classes.

    Returns:
        Frame sorted by held-out accuracy with a row per candidate and the columns "backbone", "weights",
        "zero_shot" (accuracy in percent; NaN without text), "held_out" (accuracy in percent), "low" and "high"
        (95 % interval over images), "images_per_second", "megabytes", "parameters", "licence" and "error".

    Raises:
        UserError: If images and labels do not match, labels are of several kinds, unknown or not finite, a class name
            is blank, fewer than two classes have images, or a candidate or the device is invalid. An image that cannot
            be read is an error in the row of each candidate.

    Examples:
        >>> from hegraph import compare_backbones, load_few_shot
        >>> digits = load_few_shot("Digits", root="", shots=2, seed=1)
        >>> images = [digits.open(item.path) for item in digits.train]
        >>> labels = [item.classname for item in digits.train]
        >>> compare_backbones(images, labels, candidates=["mini"])["backbone"].tolist()
        ['hegraph-mini']
    """
    if isinstance(candidates, str):
        raise UserError(f"candidates: expected a list of names, got {shown(candidates)}")
    specified = validate(list[NotBlank], candidates, "candidates", convert=True)
    names, indices = class_indices(images, labels, classnames)
    target = choose_device(device, "device")
    options = EncodingOptions(source="auto" if use_names else NO_PROMPTS)

    def encode(candidate: Candidate) -> Encoded:
        backbone = load_backbone(candidate.name, candidate.tag, target, precision).with_decoding(REDUCED)
        of_backbone = options if backbone.has_text else replace(options, source=NO_PROMPTS)
        text = encode_prompts(backbone, "images", names, of_backbone)["positive"]
        return Encoded(backbone, backbone.encode_images(list(images)), indices, text, images[:TIMED_IMAGES])

    return to_frame(compare_candidates(read_candidates(specified), encode, offline))


def class_indices(
    images: Sequence[ImageOrPath], labels: Sequence[Any], classnames: Sequence[str] | None
) -> tuple[list[str], Tensor]:
    """Return the K class names, and the index of each image's class, int64 of shape `[N]`.

    All labels are read in the same way. With `classnames`, strings are names, and integers are indices, even
    if the names look like integers.

    Args:
        images: N images. Only their number is used.
        labels: Class of each image: all names, or all indices into `classnames`.
        classnames: The K class names; None takes the sorted labels.

    Raises:
        UserError: If images and labels differ in number, a label is unknown, not finite or of another kind than the
            others, a name is blank, a label is the name of two classes, or fewer than two classes have images.
    """
    values = [label.tolist() if isinstance(label, ARRAYS) else label for label in labels]
    if len(values) != len(images):
        raise UserError(f"expected a label for each of {len(images)} images, got {len(values)}", "labels.number")
    check_label_values(values, "labels")
    if classnames is None:
        classes = sorted(set(values))
        names = validate(list[NotBlank], [str(label) for label in classes], "labels")
        position = {label: index for index, label in enumerate(classes)}
    elif all(isinstance(label, str) for label in values):
        names = _checked_classnames(classnames)
        position = {name: index for index, name in enumerate(names) if names.count(name) == 1}
    elif all(isinstance(label, int) for label in values):
        names = _checked_classnames(classnames)
        position = {index: index for index in range(len(names))}
    else:
        raise UserError(f"expected names or integers as labels, got {shown(values)}", "labels.type")
    unknown = [label for label in values if label not in position]
    if unknown:
        expected = f"expected labels that are all names in {shown(names)}, or all indices into them"
        raise UserError(f"{expected}, got {shown(unknown[0])}; give indices if a name is repeated", "labels.unknown")
    indices = [position[label] for label in values]
    check_classes(len(set(indices)))
    return names, torch.tensor(indices, dtype=torch.long)


def _checked_classnames(classnames: Sequence[str]) -> list[str]:
    """Class names as a list of strings; UserError if one is blank or no string."""
    if isinstance(classnames, str):
        raise UserError(f"classnames: expected a list of names, got {shown(classnames)}", "schema")
    return validate(list[NotBlank], list(classnames), "classnames")


def advice(results: Sequence[BackboneResult], recommended: BackboneResult, difference: Difference | None) -> str:
    """Sentence with the recommended backbone and the reason, without a full stop."""
    if difference is None:
        reason = "the best held-out accuracy, and no faster backbone ties with it"
    else:
        reason = f"the fastest one that ties with the best ({difference} points against {results[0].candidate})"
    return f"Recommended: {recommended.candidate}, {reason}"
