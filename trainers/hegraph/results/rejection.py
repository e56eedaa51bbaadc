"""Scores for open-set rejection, compared on the test images of feature banks with the models that runs saved.

A class of a bank is known if the model has a class of that name, so half of the classes are unknown to a run with
DATASET.SUBSAMPLE_CLASSES base. Besides the scores of `method/training/confidence.py`, there are

- "distance": `-min_c |A^-1/2 (f - u_c)| / s`, the distance to the nearest class node in the whitened space of the
  closed-form head (`method/head/closed_form.py`); "angle": the cosine with the nearest class node in that space,
  relative to the mean;
- "own text": the cosine `f . t_c` with the positive text node of the predicted class; "margin": `f . t_c - f . n_c`,
  with its negative text node; "margin, shuffled": with the negative text node of another class.

Shapes: M test images of a data set, n known and m unknown images, K classes, d feature width.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..features.bank import FeatureBank, load_bank
from ..method.model import shuffled
from ..method.training.confidence import DEFAULT_SCORE, known_score
from ..models.folder import load_model
from ..models.saved import SavedModel
from ..utils.errors import UserError, unknown
from .records import OPEN_SET_RATE, check_exist, find_runs, warn_skipped
from .scores import PLACE, cells, method, score
from .table import Table, add_mean_places

NEW = "new"  # value of --unknown: classes of a bank that the model does not know
ZERO_SHOT_SCORE = "zero-shot probability"
SCORE = "score"  # key of a row with the name of the score
COLUMNS = {"auroc": "AUROC", "fpr95": "FPR95", "known": "known accepted", "unknown": "unknown accepted"}


def rejection_table(folders: Sequence[Path], banks: Sequence[Path], unknown_images: str = NEW) -> Table:
    """Compare how well scores separate images of known and unknown classes, as means over seeds and data sets.

    Args:
        folders: Folders with finished runs.
        banks: A feature bank for the data set of each run. Test images of the model's classes are known.
        unknown_images: `NEW`, the test images of the other classes of the same bank, or the path of another bank.

    Runs without a model are skipped with a warning.

    Raises:
        UserError: If a folder does not exist, no run has a model, a data set has no bank or two, a bank is of no run
            or has other features than the model, or runs of a row are not comparable.
    """
    check_exist(folders)
    found = find_runs(folders)
    runs = {folder: run for folder, run in found.items() if (folder / "model").exists()}
    warn_skipped([*found], [*runs], "without a model")
    if not runs:
        raise UserError(f"no finished run with a model below {', '.join(map(str, folders))}; run an experiment first")
    by_dataset = banks_by_dataset(banks, {run["dataset"] for run in runs.values()})
    other = None if unknown_images == NEW else load_bank(Path(unknown_images))
    rows = []
    for folder, run in runs.items():
        bank = by_dataset.get(run["dataset"])
        if bank is None:
            raise unknown("data set of --features", run["dataset"], by_dataset)
        for name, values in score_images(load_model(folder), bank, other or bank).items():
            for column in COLUMNS:
                rows.append(score(run, method(run), column, values.get(column)) | {SCORE: name})
    keys = [*PLACE, SCORE]
    against = other.dataset if other else "classes that were not in the training"
    accepted = f"accepted: by the threshold for {OPEN_SET_RATE:.0%} of known images, on {DEFAULT_SCORE}"
    caption = f"Images of known classes against {against}, in %; {accepted}"
    return Table(caption, keys, add_mean_places(cells(rows, keys), keys), COLUMNS, decimals=dict.fromkeys(COLUMNS, 2))


def banks_by_dataset(paths: Sequence[Path], datasets: Collection[str]) -> dict[str, FeatureBank]:
    """Load banks by data set; UserError if one is of none of the data sets of runs, or two are of one."""
    banks: dict[str, FeatureBank] = {}
    for path in paths:
        bank = load_bank(path)
        if bank.dataset not in datasets:
            problem = f"{path} has features of {bank.dataset}, and the runs are of {', '.join(sorted(datasets))}"
            raise UserError(f"{problem}; leave out --features that no run needs")
        if bank.dataset in banks:
            raise UserError(f"two banks of --features are of {bank.dataset}, the second is {path}; name one of them")
        banks[bank.dataset] = bank
    return banks


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
    known_features = _test_features(model, known, are_known=True)
    unknown_features = _test_features(model, unknown, are_known=False)
    row_of_class = {name: row for row, name in enumerate(known.classnames)}
    negative = known.text_negative[[row_of_class[name] for name in model.classnames]]
    known_scores = all_scores(model, known_features, negative)
    unknown_scores = all_scores(model, unknown_features, negative)
    results = {name: separation(known_scores[name], unknown_scores[name]) for name in known_scores}
    if model.known is not None:
        name = model.known.score
        threshold = model.known.threshold(OPEN_SET_RATE)
        for column, scores in (("known", known_scores[name]), ("unknown", unknown_scores[name])):
            results[name][column] = 100 * (scores >= threshold).double().mean().item()
    return results


def all_scores(model: SavedModel, features: Tensor, negative: Tensor) -> dict[str, Tensor]:
    """Scores of images by name, each `[M]`; without class texts, none of text.

    Args:
        model: Model of a run.
        features: Unit-norm features, shape `[M, d]`.
        negative: Negative text nodes of the model's classes, shape `[K, d]`.
    """
    logits = model.classifier.logits(features)
    scores = {name: known_score(logits, model.temperature, name) for name in ("probability", "energy")}
    messages = None if model.transfer is None else model.transfer.messages
    if messages is not None and model.class_nodes is not None:
        scores |= node_scores(features, messages.mean, messages.whitening, model.class_nodes)
    if not model.has_text:
        return scores
    scores = {ZERO_SHOT_SCORE: known_score(model.zero_shot_logits(features), 1.0, "probability")} | scores
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
    name = f"the bank of {bank.dataset}"
    names = set(model.classnames)
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
