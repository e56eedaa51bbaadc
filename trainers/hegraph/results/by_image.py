"""What runs say image by image: paired differences of accuracy, confusions, and how scores tell unknown images.

Two methods that are tested on the same images make many mistakes together, so the difference of their accuracies is
known far better than either accuracy. It is taken image by image, as McNemar's test does, and averaged over seeds and
data sets. The interval says how the difference may change with other test images of these data sets. It does not say
how it may change with other data sets, nor, where all seeds draw the same training images, with other training images.

Images of no known class are told by scores of trained models. Beside those of `training/confidence.py`, these need more
than logits:

- "distance": `-min_c |A^-1/2 (f - u_c)| / s`, to the nearest class node in the whitened space of the messages in
  closed form (`method/closed_form.py`); "angle": the cosine there with the nearest class node, both seen from the mean.
- "own text": the cosine `f . t_c` with the positive text node of the predicted class; "margin": `f . t_c - f . n_c`,
  with its negative text node; "margin, shuffled": with the negative text node of another class.

Models are those that runs have left, images the test images of feature banks. What is known is decided by the names of
classes, so that half of a bank's classes are unknown to a run with DATASET.SUBSAMPLE_CLASSES base.

Shapes: M test images of a data set, n known and m unknown ones, K classes, d feature width.
"""

from __future__ import annotations

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
from ..models.folder import load_model
from ..models.saved import SavedModel
from ..training.confidence import DEFAULT, known_score
from ..utils.errors import UserError, unknown
from .records import OPEN_SET_RATE, PREDICTIONS, find_runs, read_tensors_with_classes
from .scores import OUR_METHOD, PLACE, PROTOCOL, cells, check_averaged, grouped, method, method_order, score
from .table import CONFIDENCE, Table, add_mean_places, pipes

RESAMPLES = 2000

# What tells tests apart that cannot be paired, beside the number of shots
TEST = (*(key for key in PLACE if key not in ("shots", PROTOCOL)), "rule", "trained_on")

NEW = "new"  # the classes of a bank that a model does not know
ZERO_SHOT = "zero-shot probability"
SCORE = "score"  # the key of a row that names the score
COLUMNS = {"auroc": "AUROC", "fpr95": "FPR95", "known": "known kept", "unknown": "unknown kept"}


class Difference(NamedTuple):
    """How far one method is ahead of another, in percent of the test images, with the ends of its interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """Such as "+0.65 (0.12 to 1.18)"; bold where the interval excludes no difference."""
        text = f"{self.mean:+.2f} ({self.low:.2f} to {self.high:.2f})"
        return f"**{text}**" if self.low > 0 or self.high < 0 else text


def paired_table(folders: Sequence[Path], of: str = OUR_METHOD) -> str:
    """A table in markdown: how far the method `of`, named as tables have it, is ahead of every other one, by shots.

    Raises UserError if there are no runs of it below the folders, or as `read_runs`.
    """
    runs = read_runs(folders)
    methods = sorted(set(runs["method"]), key=method_order)
    if of not in methods:
        raise unknown("method", of, methods)
    ours = runs[runs["method"] == of]
    shots = sorted(set(ours["shots"]))
    rows = []
    for name, theirs in ((name, runs[runs["method"] == name]) for name in methods if name != of):
        found = [difference(ours[ours["shots"] == n], theirs[theirs["shots"] == n]) for n in shots]
        rows.append([name, *("" if one is None else str(one) for one in found)])
    caption = (
        f"Accuracy of {of} minus that of the other method (points), mean of {', '.join(sorted(set(ours['dataset'])))};"
        f" same seeds and test images; in brackets the {CONFIDENCE:.0%} bootstrap interval over test images, bold where"
        " it excludes 0"
    )
    return f"{caption}\n\n{pipes([f'{of} minus', *map(str, shots)], 1, rows)}"


def read_runs(folders: Sequence[Path]) -> pd.DataFrame:
    """Finished runs, one a row: the keys of `TEST`, "method" (with the protocol if it has heard images without labels),
    "shots", "seed" and "correct", which test images were classified correctly, shape `[M]`.

    Raises UserError if there is no run, if runs of one method, data set and number of shots must not be averaged, or if
    two runs of one data set and number of shots were not tested on the same images.
    """
    rows: list[dict] = []
    tested: dict[tuple, Tensor] = {}
    for folder, record in find_runs(folders).items():
        if record["accuracy"] is None:
            continue
        predicted, labels, _ = read_predictions(folder)
        test = {"shots": record["shots"]} | {key: record.get(key) or "" for key in TEST}
        if not torch.equal(tested.setdefault(tuple(test.values()), labels), labels):
            other = f"another run on {record['dataset']} with {record['shots']} shots"
            raise UserError(f"{folder}: not tested on the same images as {other}; name runs with one test set")
        name = ", ".join(filter(None, (method(record), record.get(PROTOCOL))))
        correct = (predicted == labels).numpy()
        rows.append(test | {"method": name, "seed": record["seed"], "correct": correct, "record": record})
    if not rows:
        raise UserError(f"no run with test images below {', '.join(map(str, folders))}; run an experiment first")
    runs = pd.DataFrame(rows)
    for (dataset, name, shots, *_), found in grouped(runs, ["dataset", "method", "shots", *TEST[1:]]):
        check_averaged(list(found["record"]), f"{dataset}, {name}, {shots} shots")
    return runs


def difference(ours: pd.DataFrame, theirs: pd.DataFrame) -> Difference | None:
    """The difference of two methods at one number of shots; None where they were not run on the same data and seeds.

    Raises UserError for a data set of one test image.
    """
    from scipy.stats import bootstrap  # takes half a second to import

    both = ours.merge(theirs, on=[*TEST, "seed"], suffixes=("", "_theirs"))
    if not len(both) == len(ours) == len(theirs):
        return None
    by_image = []
    for _, found in both.groupby(list(TEST)):
        rows = [a.astype(float) - b for a, b in zip(found["correct"], found["correct_theirs"])]
        by_image.append(100 * np.mean(rows, axis=0))
    if min(map(len, by_image), default=0) < 2:
        raise UserError("an interval over test images needs at least two of each data set")

    def mean_of_means(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.mean([sample.mean(axis=axis) for sample in samples], axis=0)

    options = {"n_resamples": RESAMPLES, "batch": 100, "confidence_level": CONFIDENCE, "method": "percentile"}
    found = bootstrap(by_image, mean_of_means, random_state=np.random.default_rng(0), **options)
    low, high = (round(float(end), 9) + 0.0 for end in found.confidence_interval)  # rounding errors are no difference
    return Difference(float(mean_of_means(*by_image)), low, high)


def read_predictions(folder: Path) -> tuple[Tensor, Tensor, list[str]]:
    """Reads what a run predicted: the predicted and the true classes of its test images, each `[M]`, and K class names.

    Raises UserError if the folder has no predictions, or the file holds something else.
    """
    path = folder / PREDICTIONS
    (predicted, labels), classnames = read_tensors_with_classes(path, "predictions of a run", ("predicted", "labels"))
    of_images = predicted.shape == labels.shape == (labels.numel(),) != (0,)
    if not of_images or not {*predicted.tolist(), *labels.tolist()} <= set(range(len(classnames))):
        raise UserError(f"{path}: predicted and labels must be class numbers [M] below {len(classnames)}")
    return predicted.long(), labels.long(), classnames


def confusion_matrix(folder: Path) -> tuple[np.ndarray, list[str]]:
    """Test images of a run by true class (row) and predicted class (column), shape `[K, K]`, and K class names."""
    from sklearn.metrics import confusion_matrix as count  # takes a second to import

    predicted, labels, classnames = read_predictions(folder)
    return count(labels.numpy(), predicted.numpy(), labels=list(range(len(classnames)))), classnames


def hardest_pairs(matrix: np.ndarray, classnames: Sequence[str]) -> list[str]:
    """The pairs of classes that were taken for each other most often, such as "a and b: 4 (a as b 1, b as a 3)".

    They are at most ten, of a matrix as of `confusion_matrix`; pairs that were never confused are left out.
    """
    both = matrix + matrix.T
    pairs = [(int(a), int(b)) for a, b in np.argwhere(np.triu(both, 1))]
    pairs.sort(key=lambda pair: -both[pair])  # a stable sort: equal pairs keep their label order
    lines = []
    for a, b in pairs[:10]:
        one, other = classnames[a], classnames[b]
        each = f"{one} as {other} {matrix[a, b]}, {other} as {one} {matrix[b, a]}"
        lines.append(f"{one} and {other}: {both[a, b]} ({each})")
    return lines


# Images of no known class


def rejection_table(folders: Sequence[Path], banks: Sequence[Path], others: str = NEW) -> Table:
    """How well each score of the runs below some folders tells known from unknown images, as means over seeds and below
    them over data sets, each of which has one of the banks.

    Unknown are test images of classes that a model does not know, of these banks (`NEW`) or of the bank at the path
    `others`. Raises UserError if there is no run or no bank of a run, a bank does not fit the models, or a row would
    mix runs.
    """
    runs = find_runs(folders)
    if not runs:
        raise UserError(f"no finished run below {', '.join(map(str, folders))}; run an experiment first")
    opened = {bank.dataset: bank for bank in map(load_bank, banks)}
    other = None if others == NEW else load_bank(Path(others))
    rows = []
    for folder, run in runs.items():
        bank = opened.get(run["dataset"])
        if bank is None:
            raise unknown("data set of --features", run["dataset"], opened)
        for name, found in score_images(load_model(folder), bank, other or bank).items():
            rows += [score(run, method(run), column, found.get(column)) | {SCORE: name} for column in COLUMNS]
    keys, against = [*PLACE, SCORE], other.dataset if other else "the classes that were held back"
    accepted = f"accepted: by the threshold for {OPEN_SET_RATE:.0%} of known images, on {DEFAULT}"
    caption = f"Images of known classes against {against}, in %; {accepted}"
    return Table(caption, keys, add_mean_places(cells(rows, keys), keys), COLUMNS, decimals=dict.fromkeys(COLUMNS, 2))


def score_images(model: SavedModel, known: FeatureBank, others: FeatureBank) -> dict[str, dict[str, float]]:
    """How well each score of a model tells known from unknown images.

    Known are the test images of one bank whose classes are the model's, unknown those of the other (or the same) bank
    whose classes are not. Raises UserError if the features are another backbone's, or a bank has no such images.

    Returns score -> what `separation` gives; for the score of `--open-set` also "known" and "unknown", the
    percentages of images that its threshold accepts, if the model has one.
    """
    ours, theirs = _test_features(model, known, wanted=True), _test_features(model, others, wanted=False)
    of_class = {name: row for row, name in enumerate(known.classnames)}
    negative = known.text_negative[[of_class[name] for name in model.classnames]]
    scores = [all_scores(model, features, negative) for features in (ours, theirs)]
    found = {name: separation(scores[0][name], scores[1][name]) for name in scores[0]}
    if model.known is not None:
        threshold = model.known.threshold(OPEN_SET_RATE)
        for column, part in zip(("known", "unknown"), scores):
            found[model.known.score][column] = 100 * (part[model.known.score] >= threshold).double().mean().item()
    return found


def all_scores(model: SavedModel, features: Tensor, negative: Tensor) -> dict[str, Tensor]:
    """Every score, each `[M]`, of unit-norm features `[M, d]`; `negative` are the negative text nodes `[K, d]`."""
    logits = model.classifier.logits(features)
    found = {ZERO_SHOT: known_score(model.zero_shot_logits(features), 1.0, "probability")}
    found |= {name: known_score(logits, model.temperature, name) for name in ("probability", "energy")}
    messages = None if model.transfer is None else model.transfer.messages
    if messages is not None and model.class_nodes is not None:
        found |= metric_scores(features, messages.mean, messages.whitening, model.class_nodes)
    predicted = logits.argmax(dim=1)
    found["own text"] = (features * model.text_positive[predicted]).sum(dim=1)
    for name, nodes in {"margin": negative, "margin, shuffled": negative[shuffled(len(negative))]}.items():
        found[name] = found["own text"] - (features * nodes[predicted]).sum(dim=1)
    return found


def metric_scores(features: Tensor, mean: Tensor, whitening: Tensor, nodes: Tensor) -> dict[str, Tensor]:
    """The scores "distance" and "angle", each `[B]`, of features `[B, d]`.

    `mean` is `m`, shape `[d]`; `whitening` is `A^-1/2 / s`, `[d, d]`; `nodes` are `A^-1/2 (u_c - m) / s`, `[K, d]`.
    """
    whitened = (features - mean) @ whitening
    cosines = F.normalize(whitened, dim=1) @ F.normalize(nodes, dim=1).t()
    return {"distance": -torch.cdist(whitened, nodes).amin(dim=1), "angle": cosines.amax(dim=1)}


def _test_features(model: SavedModel, bank: FeatureBank, wanted: bool) -> Tensor:
    """The test features of a bank whose classes the model knows, or of those that it does not know."""
    name, names = f"the bank of {bank.dataset}", set(model.classnames)
    if bank.backbone != model.backbone.title:
        raise UserError(f"the model is of {model.backbone.title!r} features, but {name} holds {bank.backbone!r}")
    if wanted and (missing := sorted(names - set(bank.classnames))):
        raise UserError(f"{name} has no class {missing[0]!r}, which the model knows")
    if bank.test_features is None or bank.test_labels is None:
        raise UserError(f"{name} has no test images")
    is_known = torch.tensor([classname in names for classname in bank.classnames])
    features = bank.test_features[is_known[bank.test_labels] == wanted]
    if not len(features):
        knows = "knows" if wanted else "does not know"
        advice = "train with DATASET.SUBSAMPLE_CLASSES base, or give --unknown BANK"
        raise UserError(f"{name} has no test image of a class that the model {knows}; {advice}")
    return features


def separation(known: Sequence[float] | Tensor, unknown: Sequence[float] | Tensor) -> dict[str, float]:
    """How well a score tells known images, of scores `[n]`, from unknown ones, of scores `[m]`, in percent.

    "auroc" is how often a known image has a higher score than an unknown one, "fpr95" the share of unknown images that
    are kept by the highest threshold that keeps at least 95 % of the known ones.
    """
    from sklearn.metrics import roc_auc_score, roc_curve  # takes a second to import

    scores = np.concatenate([np.asarray(known, dtype=float), np.asarray(unknown, dtype=float)])
    is_known = np.arange(len(scores)) < len(known)
    false, true, _ = roc_curve(is_known, scores, drop_intermediate=False)
    fpr95 = false[np.argmax(true >= 0.95)]
    return {"auroc": 100 * float(roc_auc_score(is_known, scores)), "fpr95": 100 * float(fpr95)}
