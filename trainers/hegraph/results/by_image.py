"""Paired differences of accuracy, confusion matrices, and scores for open-set rejection, from single test images.

Two methods misclassify many of the same test images, so the difference of their accuracies has a narrower interval than
either accuracy. The difference is computed for each image, as in McNemar's test, and averaged over seeds and data sets.
The bootstrap interval covers other test images of these data sets. It covers neither other data sets nor, if all seeds
sample the same training images, other training images. With several labels per image, mAP takes the place of accuracy,
and the bootstrap samples images and computes both mAPs for each sample.

Open-set scores are compared on the test images of feature banks, with the models that runs saved. A class of a bank is
known if the model has a class of that name, so half of the classes are unknown to a run with DATASET.SUBSAMPLE_CLASSES
base. Besides the scores of `method/training/confidence.py`, there are

- "distance": `-min_c |A^-1/2 (f - u_c)| / s`, the distance to the nearest class node in the whitened space of the
  closed-form head (`method/closed_form.py`); "angle": the cosine with the nearest class node in that space, relative to
  the mean;
- "own text": the cosine `f . t_c` with the positive text node of the predicted class; "margin": `f . t_c - f . n_c`,
  with its negative text node; "margin, shuffled": with the negative text node of another class.

Shapes: M test images of a data set, n known and m unknown images, K classes, d feature width.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from ..features.bank import FeatureBank, load_bank
from ..method.model import shuffled
from ..method.training.confidence import DEFAULT_SCORE, known_score
from ..models.folder import load_model
from ..models.saved import SavedModel
from ..utils.errors import UserError, unknown
from ..utils.option import describe_shots
from .comparison import warn_skipped
from .records import OPEN_SET_RATE, PREDICTIONS, find_runs, main_score, read_record, read_tensors_with_classes
from .scores import (
    OUR_METHOD,
    PLACE,
    PROTOCOL,
    cells,
    check_averaged,
    grouped,
    is_multilabel,
    method,
    method_order,
    place,
    score,
    title,
)
from .table import CONFIDENCE, Table, add_mean_places, markdown_table

RESAMPLES = 2000

# Keys of tests with equal values for paired runs, besides the number of shots
PAIR_KEYS = (*(key for key in PLACE if key not in ("shots", PROTOCOL)), "rule", "trained_on")

EPSILON = 1e-12  # least number of images in a denominator

NEW = "new"  # value of --unknown: classes of a bank that the model does not know
ZERO_SHOT_SCORE = "zero-shot probability"
SCORE = "score"  # key of a row with the name of the score
COLUMNS = {"auroc": "AUROC", "fpr95": "FPR95", "known": "known accepted", "unknown": "unknown accepted"}


class Ranking(NamedTuple):
    """Scores and label indicators of test images with several labels, each `[M, K]`."""

    scores: np.ndarray
    labels: np.ndarray


class Difference(NamedTuple):
    """Difference of two accuracies or mAPs in points, with the ends of its interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """Text such as "+0.65 (0.12 to 1.18)"; bold if the interval excludes 0."""
        text = f"{self.mean:+.2f} ({self.low:.2f} to {self.high:.2f})"
        return f"**{text}**" if self.low > 0 or self.high < 0 else text


def paired_table(folders: Sequence[Path], of: str = OUR_METHOD) -> str:
    """Table in Markdown with the accuracy of the method `of` minus the accuracy of every other method, by shots.

    Raises:
        UserError: If the folders have no runs of the method, or as `read_runs`.
    """
    runs = read_runs(folders)
    compared = paired_differences(runs, of)
    first = runs[runs["method"] == of]
    shots = sorted(set(first["shots"]))
    rows = [[name, *(str(by_shots.get(n, "")) for n in shots)] for name, by_shots in compared.items()]
    means = f"in points, mean of {', '.join(sorted(set(first['dataset'])))}; same seeds and test images"
    brackets = f"in brackets the {CONFIDENCE:.0%} bootstrap interval over test images, bold if it excludes 0"
    caption = f"{title(runs['record'])} of {of} minus the method in the row, {means}; {brackets}"
    return f"{caption}\n\n{markdown_table([f'{of} minus', *map(str, shots)], rows)}"


def paired_differences(runs: pd.DataFrame, of: str = OUR_METHOD) -> dict[str, dict[int, Difference]]:
    """Differences of the method `of` and every other method, by method and number of shots, from `read_runs`.

    Raises:
        UserError: If there are no runs of the method.
    """
    methods = sorted(set(runs["method"]), key=method_order)
    if of not in methods:
        raise unknown("method", of, methods)
    by_cell = {(name, n): group for (name, n), group in grouped(runs, ["method", "shots"])}
    shots = sorted(n for name, n in by_cell if name == of)
    differences: dict[str, dict[int, Difference]] = {name: {} for name in methods if name != of}
    for name, n in itertools.product(differences, shots):
        if (name, n) in by_cell and (value := difference(by_cell[of, n], by_cell[name, n])):
            differences[name][n] = value
    return differences


def read_runs(folders: Sequence[Path]) -> pd.DataFrame:
    """Read which test images finished runs classified correctly.

    Returns:
        Frame with a row per run and the columns `PAIR_KEYS`, "method" (with the protocol, unless it is inductive),
        "shots", "seed", "record", and "outcome": whether each test image was classified correctly, `[M]`, or with
        several labels per image its `Ranking`.

    Raises:
        UserError: If there is no run, runs of one method, data set and number of shots are not comparable, or runs of
            one data set and number of shots were tested on different images.
    """
    rows: list[dict] = []
    test_labels: dict[tuple, Tensor] = {}
    for folder, record in find_runs(folders).items():
        if main_score(record) is None:
            continue
        predicted, labels = read_scores(folder) if is_multilabel(record) else read_predictions(folder)[:2]
        values = record | place(record)
        test = {"shots": record["shots"]} | {key: values.get(key) or "" for key in PAIR_KEYS}
        if not torch.equal(test_labels.setdefault(tuple(test.values()), labels), labels):
            other = f"another run on {values['dataset']} with {describe_shots(record['shots'])}"
            raise UserError(f"{folder}: not tested on the same images as {other}; name runs with one test set")
        name = ", ".join(filter(None, (method(record), record.get(PROTOCOL))))
        outcome = (predicted == labels).numpy() if labels.dim() == 1 else Ranking(predicted.numpy(), labels.numpy())
        rows.append(test | {"method": name, "seed": record["seed"], "outcome": outcome, "record": record})
    if not rows:
        raise UserError(f"no run with test images below {', '.join(map(str, folders))}; run an experiment first")
    runs = pd.DataFrame(rows)
    for (dataset, name, shots, *_), group in grouped(runs, ["dataset", "method", "shots", *PAIR_KEYS[1:]]):
        check_averaged(list(group["record"]), f"{dataset}, {name}, {describe_shots(shots)}")
    return runs


def difference(first: pd.DataFrame, second: pd.DataFrame) -> Difference | None:
    """Difference of two methods at one number of shots; None if their data sets or seeds differ.

    Raises:
        UserError: If a data set has a single test image.
    """
    pairs = first.merge(second, on=[*PAIR_KEYS, "seed"], suffixes=("", "_second"))
    if not len(pairs) == len(first) == len(second):
        return None
    if any(isinstance(outcome, Ranking) for outcome in pairs["outcome"]):
        return map_difference(pairs)
    by_image = []
    for _, group in pairs.groupby(list(PAIR_KEYS)):
        rows = [a.astype(float) - b for a, b in zip(group["outcome"], group["outcome_second"])]
        by_image.append(100 * np.mean(rows, axis=0))
    if min(map(len, by_image), default=0) < 2:
        raise UserError("an interval over test images needs at least two test images of each data set, got one")
    return mean_difference(by_image)


def mean_difference(by_image: Sequence[np.ndarray]) -> Difference:
    """Mean of differences in points, for each data set `[M]`, averaged over data sets, with its bootstrap interval."""
    from scipy.stats import bootstrap  # takes half a second to import

    def mean_of_means(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.mean([sample.mean(axis=axis) for sample in samples], axis=0)

    options = {"n_resamples": RESAMPLES, "batch": 100, "confidence_level": CONFIDENCE, "method": "percentile"}
    result = bootstrap(by_image, mean_of_means, random_state=np.random.default_rng(0), **options)
    low, high = (round(float(end), 9) + 0.0 for end in result.confidence_interval)  # without rounding errors
    return Difference(float(mean_of_means(*by_image)), low, high)


def map_difference(pairs: pd.DataFrame) -> Difference:
    """Difference of two mAPs; each bootstrap sample of test images is the same for both methods and all seeds.

    Args:
        pairs: Rows with the columns "outcome" and "outcome_second" of the two methods.
    """
    rng, by_dataset = np.random.default_rng(0), []
    for _, group in pairs.groupby(list(PAIR_KEYS)):
        weights = bootstrap_weights(len(group["outcome"].iloc[0].labels), rng)
        seeds = zip(group["outcome"], group["outcome_second"])
        by_dataset.append(np.mean([mean_precision(a, weights) - mean_precision(b, weights) for a, b in seeds], axis=0))
    return percentile_interval(100 * np.mean(by_dataset, axis=0))


def bootstrap_weights(images: int, rng: np.random.Generator) -> np.ndarray:
    """Weights of images: 1 for all of them in the first row, then `RESAMPLES` bootstrap samples; `[1 + R, M]`."""
    return np.vstack([np.ones(images), rng.multinomial(images, np.full(images, 1 / images), RESAMPLES)])


def percentile_interval(values: np.ndarray) -> Difference:
    """First value, with the interval of the others, which are its bootstrap samples."""
    low, high = np.quantile(values[1:], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Difference(values[0], round(low, 9) + 0.0, round(high, 9) + 0.0)


def mean_precision(ranking: Ranking, weights: np.ndarray) -> np.ndarray:
    """Mean over classes of the average precision for B weightings of M images `[B, M]`, shape `[B]`.

    Equal scores share one threshold, as in scikit-learn's `average_precision_score` with `sample_weight`. A class
    without a positive image in a weighting is left out of its mean.
    """
    by_class = []
    for scores, labels in zip(ranking.scores.T, ranking.labels.T):
        order = np.argsort(-scores, kind="stable")
        last = np.flatnonzero(np.diff(scores[order], append=np.nan))  # of each group of equal scores
        hits = (weights[:, order] * labels[order]).cumsum(axis=1)[:, last]
        precision = hits / np.maximum(weights[:, order].cumsum(axis=1)[:, last], EPSILON)
        with np.errstate(invalid="ignore"):  # 0 / 0 without a positive image
            by_class.append((precision * np.diff(hits, prepend=0)).sum(axis=1) / hits[:, -1])
    return np.nanmean(by_class, axis=0)


def read_scores(folder: Path) -> tuple[Tensor, Tensor]:
    """Read the scores and the label indicators of a run with several labels per image, each `[M, K]`.

    Errors are those of `read_predictions`.
    """
    path = folder / PREDICTIONS
    (scores, labels), classnames = read_tensors_with_classes(path, "predictions of a run", ("scores", "labels"))
    if not scores.shape == labels.shape == (len(scores), len(classnames)) or not scores.isfinite().all():
        raise UserError(f"{path}: expected finite scores and labels of shape [M, {len(classnames)}]")
    return scores, labels


def read_predictions(folder: Path) -> tuple[Tensor, Tensor, list[str]]:
    """Read predicted classes and labels of a run's test images, each `[M]`, and the K class names.

    Raises:
        UserError: If the folder has no predictions, or the file is damaged.
    """
    path = folder / PREDICTIONS
    (predicted, labels), classnames = read_tensors_with_classes(path, "predictions of a run", ("predicted", "labels"))
    are_vectors = predicted.shape == labels.shape == (labels.numel(),) != (0,)
    if not are_vectors or not {*predicted.tolist(), *labels.tolist()} <= set(range(len(classnames))):
        raise UserError(f"{path}: expected predicted and labels to be class numbers [M] below {len(classnames)}")
    return predicted.long(), labels.long(), classnames


def confusion_matrix(folder: Path) -> tuple[np.ndarray, list[str]]:
    """`count_confusions` of the test images of a run, and the K class names.

    Raises:
        UserError: If the run has several labels per image, or as `read_predictions`.
    """
    if is_multilabel(read_record(folder) or {}):
        raise UserError(f"{folder}: a confusion matrix needs one label per image; `results labels` shows AP by class")
    predicted, labels, classnames = read_predictions(folder)
    return count_confusions(predicted, labels, len(classnames)), classnames


def count_confusions(predicted: Tensor, labels: Tensor, classes: int) -> np.ndarray:
    """Number of images by label (row) and predicted class (column), shape `[K, K]`."""
    from sklearn.metrics import confusion_matrix as count  # takes a second to import

    return count(labels.numpy(), predicted.numpy(), labels=list(range(classes)))


def confused_pairs(matrix: np.ndarray, number: int = 10) -> list[tuple[int, int]]:
    """Up to `number` pairs of classes `a < b` with the most confusions, from a matrix of `count_confusions`."""
    both = matrix + matrix.T
    pairs = [(int(a), int(b)) for a, b in np.argwhere(np.triu(both, 1))]
    return sorted(pairs, key=lambda pair: -both[pair])[:number]  # stable: equal pairs are sorted by label


def hardest_pairs(matrix: np.ndarray, classnames: Sequence[str]) -> list[str]:
    """Describe the pairs of `confused_pairs`, such as "a and b: 4 (a as b 1, b as a 3)"."""
    pairs = confused_pairs(matrix)
    named = [(classnames[a], classnames[b], matrix[a, b], matrix[b, a]) for a, b in pairs]
    return [f"{a} and {b}: {ab + ba} ({a} as {b} {ab}, {b} as {a} {ba})" for a, b, ab, ba in named]


# Open-set rejection


def rejection_table(folders: Sequence[Path], banks: Sequence[Path], unknown_images: str = NEW) -> Table:
    """Compare how well scores separate images of known and unknown classes, as means over seeds and data sets.

    Args:
        folders: Folders with finished runs.
        banks: A feature bank for the data set of each run. Test images of the model's classes are known.
        unknown_images: `NEW`, the test images of the other classes of the same bank, or the path of another bank.

    Runs without a model are skipped with a warning.

    Raises:
        UserError: If no run has a model, a data set has no bank, a bank has other features than the model, or runs of a
            row are not comparable.
    """
    found = find_runs(folders)
    runs = {folder: run for folder, run in found.items() if (folder / "model").exists()}
    warn_skipped([*found], [*runs], "without a model")
    if not runs:
        raise UserError(f"no finished run with a model below {', '.join(map(str, folders))}; run an experiment first")
    by_dataset = {bank.dataset: bank for bank in map(load_bank, banks)}
    other = None if unknown_images == NEW else load_bank(Path(unknown_images))
    rows = []
    for folder, run in runs.items():
        bank = by_dataset.get(run["dataset"])
        if bank is None:
            raise unknown("data set of --features", run["dataset"], by_dataset)
        for name, values in score_images(load_model(folder), bank, other or bank).items():
            rows += [score(run, method(run), column, values.get(column)) | {SCORE: name} for column in COLUMNS]
    keys, against = [*PLACE, SCORE], other.dataset if other else "classes that were not in the training"
    accepted = f"accepted: by the threshold for {OPEN_SET_RATE:.0%} of known images, on {DEFAULT_SCORE}"
    caption = f"Images of known classes against {against}, in %; {accepted}"
    return Table(caption, keys, add_mean_places(cells(rows, keys), keys), COLUMNS, decimals=dict.fromkeys(COLUMNS, 2))


def score_images(model: SavedModel, known: FeatureBank, unknown: FeatureBank) -> dict[str, dict[str, float]]:
    """Measure how well each score of a model separates known and unknown images.

    Args:
        model: Model of a run.
        known: Bank whose test images of the model's classes are known.
        unknown: Bank whose test images of other classes are unknown; it may be the same bank.

    Returns:
        Score -> the values of `separation`. The score of `--open-set` also has "known" and "unknown", the percentages
        of images that its threshold accepts, if the model has one.

    Raises:
        UserError: If the features are from another backbone, or a bank has no such images.
    """
    known_features, unknown_features = _test_features(model, known, True), _test_features(model, unknown, False)
    row_of_class = {name: row for row, name in enumerate(known.classnames)}
    negative = known.text_negative[[row_of_class[name] for name in model.classnames]]
    scores = [all_scores(model, features, negative) for features in (known_features, unknown_features)]
    results = {name: separation(scores[0][name], scores[1][name]) for name in scores[0]}
    if model.known is not None:
        threshold = model.known.threshold(OPEN_SET_RATE)
        for column, part in zip(("known", "unknown"), scores):
            results[model.known.score][column] = 100 * (part[model.known.score] >= threshold).double().mean().item()
    return results


def all_scores(model: SavedModel, features: Tensor, negative: Tensor) -> dict[str, Tensor]:
    """Scores of images by name, each `[M]`.

    Args:
        model: Model of a run.
        features: Unit-norm features, shape `[M, d]`.
        negative: Negative text nodes of the model's classes, shape `[K, d]`.
    """
    logits = model.classifier.logits(features)
    scores = {ZERO_SHOT_SCORE: known_score(model.zero_shot_logits(features), 1.0, "probability")}
    scores |= {name: known_score(logits, model.temperature, name) for name in ("probability", "energy")}
    messages = None if model.transfer is None else model.transfer.messages
    if messages is not None and model.class_nodes is not None:
        scores |= node_scores(features, messages.mean, messages.whitening, model.class_nodes)
    predicted = logits.argmax(dim=1)
    scores["own text"] = (features * model.text_positive[predicted]).sum(dim=1)
    for name, nodes in {"margin": negative, "margin, shuffled": negative[shuffled(len(negative))]}.items():
        scores[name] = scores["own text"] - (features * nodes[predicted]).sum(dim=1)
    return scores


def node_scores(features: Tensor, mean: Tensor, whitening: Tensor, nodes: Tensor) -> dict[str, Tensor]:
    """Scores "distance" and "angle" of images, each `[B]`.

    Args:
        features: Image features, shape `[B, d]`.
        mean: `m`, shape `[d]`.
        whitening: `A^-1/2 / s`, shape `[d, d]`.
        nodes: `A^-1/2 (u_c - m) / s`, shape `[K, d]`.
    """
    whitened = (features - mean) @ whitening
    cosines = F.normalize(whitened, dim=1) @ F.normalize(nodes, dim=1).t()
    return {"distance": -torch.cdist(whitened, nodes).amin(dim=1), "angle": cosines.amax(dim=1)}


def _test_features(model: SavedModel, bank: FeatureBank, are_known: bool) -> Tensor:
    """Features of a bank's test images whose classes the model knows, or does not know."""
    name, names = f"the bank of {bank.dataset}", set(model.classnames)
    if bank.backbone != model.backbone.title:
        raise UserError(f"expected {model.backbone.title!r} features, got {bank.backbone!r} in {name}; name its bank")
    if are_known and (missing := sorted(names - set(bank.classnames))):
        raise UserError(f"{name} has no class {missing[0]!r}, which the model knows")
    if bank.test_features is None or bank.test_labels is None:
        raise UserError(f"{name} has no test images")
    if bank.multilabel:
        raise UserError(f"open-set rejection needs one label per image, and {name} has several")
    is_known = torch.tensor([classname in names for classname in bank.classnames])
    features = bank.test_features[is_known[bank.test_labels] == are_known]
    if not len(features):
        knows = "knows" if are_known else "does not know"
        advice = "train with DATASET.SUBSAMPLE_CLASSES base, or give --unknown BANK"
        raise UserError(f"{name} has no test image of a class that the model {knows}; {advice}")
    return features


def separation(known: Sequence[float] | Tensor, unknown: Sequence[float] | Tensor) -> dict[str, float]:
    """Measure how well a score separates known and unknown images, in percent.

    Args:
        known: Scores of known images, shape `[n]`.
        unknown: Scores of unknown images, shape `[m]`.

    Returns:
        "auroc", the area under the ROC curve; "fpr95", the share of unknown images that reach the highest threshold
        which at least 95 % of the known images reach.
    """
    from sklearn.metrics import roc_auc_score, roc_curve  # takes a second to import

    scores = np.concatenate([np.asarray(known, dtype=float), np.asarray(unknown, dtype=float)])
    is_known = np.arange(len(scores)) < len(known)
    false, true, _ = roc_curve(is_known, scores, drop_intermediate=False)
    fpr95 = false[np.argmax(true >= 0.95)]
    return {"auroc": 100 * float(roc_auc_score(is_known, scores)), "fpr95": 100 * float(fpr95)}
