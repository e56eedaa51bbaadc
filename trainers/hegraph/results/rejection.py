"""How well the scores of trained models tell images of no known class: a table.

Beside the scores of `training/confidence.py` it knows these, which need more than logits:

- "distance": the negative distance to the nearest class node in the whitened space of the messages in closed form
  (`method/closed_form.py`), `-min_c |A^-1/2 (f - u_c)| / s`; "angle": the cosine there between the image and the
  nearest class node, both seen from the mean, as those messages compare them.
- "own text": the cosine `f . t_c` with the positive text node of the predicted class; "margin": `f . t_c - f . n_c`,
  with its negative text node; "margin, shuffled": with the negative text node of another class.

The models are those that runs have left, and the images are test images of feature banks. What is known is decided by
the names of classes, so that half of a bank's classes are unknown to a run with DATASET.SUBSAMPLE_CLASSES base.

Shapes: M images, n known and m unknown ones, B images of a batch, K classes, d feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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
from ..utils.errors import UserError
from .records import KEEP, find_runs
from .scores import check_averaged, method, method_order
from .table import Cell, Row, Table

NEW = "new"  # the classes of a bank that a model does not know
ZERO_SHOT = "zero-shot probability"
COLUMNS = {"auroc": "AUROC", "fpr95": "FPR95", "known": "known kept", "unknown": "unknown kept"}


def rejection_table(folders: Sequence[Path], banks: Sequence[Path], unknown: str = NEW) -> Table:
    """How well each score tells known from unknown images, as means over seeds and then over data sets.

    Args:
        folders: Output folders, below which runs are looked for at any depth.
        banks: Feature banks, one for each data set of the runs, whose test images of known classes are the known ones.
        unknown: `NEW`, for the test images of these banks whose classes a model does not know; or the path of another
            bank, for its test images of classes that a model does not know.

    Raises:
        UserError: If there is no run or no bank of a run, a bank does not fit the models, or a row would mix runs.
    """
    runs = find_runs(folders)
    if not runs:
        raise UserError(f"no finished run below {', '.join(map(str, folders))}; run an experiment first")
    of_runs = pd.DataFrame([(r["dataset"], method(r), r["shots"], r) for r in runs.values()])
    for (dataset, name, shots), group in of_runs.groupby([0, 1, 2]):
        check_averaged(list(group[3]), f"{dataset}, {name}, {shots} shots")
    opened = {bank.dataset: bank for bank in map(load_bank, banks)}
    other = None if unknown == NEW else load_bank(Path(unknown))
    rows = []
    for folder, record in runs.items():
        if record["dataset"] not in opened:
            known = ", ".join(sorted(opened))
            raise UserError(f"{folder} is a run on {record['dataset']!r}, and --features are banks of {known}")
        bank = opened[record["dataset"]]
        for score, values in score_images(load_model(folder), bank, other or bank).items():
            rows.append({"shots": record["shots"], "method": method(record), "score": score, **values})
            rows[-1]["dataset"] = record["dataset"]
    return _table(pd.DataFrame(rows), other.dataset if other else NEW)


def score_images(model: SavedModel, known: FeatureBank, unknown: FeatureBank) -> dict[str, dict[str, float]]:
    """How well each score of a model tells known from unknown images.

    Args:
        model: The model.
        known: Its test images of the model's classes are the known ones; its negative text nodes are those of them.
        unknown: Its test images of other classes are the unknown ones; may be the same bank.

    Returns:
        Score -> what `separation` gives; for the score of `--keep` also "known" and "unknown", the percentage of images
        that its threshold keeps, if the model has one.

    Raises:
        UserError: If the features are another backbone's, or a bank has no such images.
    """
    ours, theirs = _test_features(model, known, wanted=True), _test_features(model, unknown, wanted=False)
    of_class = {name: row for row, name in enumerate(known.classnames)}
    negative = known.text_negative[[of_class[name] for name in model.classnames]]
    scores = [all_scores(model, features, negative) for features in (ours, theirs)]
    found = {name: separation(scores[0][name], scores[1][name]) for name in scores[0]}
    if model.known is not None:
        threshold = model.known.threshold(KEEP)
        for column, part in zip(("known", "unknown"), scores):
            found[model.known.score][column] = 100 * (part[model.known.score] >= threshold).double().mean().item()
    return found


def all_scores(model: SavedModel, features: Tensor, negative: Tensor) -> dict[str, Tensor]:
    """Every score that a model has for images, each `[M]`.

    Args:
        model: The model.
        features: Unit-norm image features, shape `[M, d]`.
        negative: Negative text nodes of the model's classes, shape `[K, d]`.
    """
    logits = model.classifier.logits(features)
    found = {ZERO_SHOT: known_score(model.zero_shot_logits(features), 1.0, "probability")}
    found |= {name: known_score(logits, model.temperature, name) for name in ("probability", "energy")}
    messages = None if model.transfer is None else model.transfer.messages
    if messages is not None and model.class_nodes is not None:
        found |= metric_scores(features, messages.mean, messages.whitening, model.class_nodes)
    negatives = {"margin": negative, "margin, shuffled": negative[shuffled(len(negative))]}
    return found | text_scores(features, logits.argmax(dim=1), model.text_positive, negatives)


def _test_features(model: SavedModel, bank: FeatureBank, wanted: bool) -> Tensor:
    """The test features of a bank whose classes the model knows, or of those that it does not know."""
    if bank.backbone != model.backbone.title:
        raise UserError(
            f"the model is of {model.backbone.title!r} features, but the bank of {bank.dataset} holds those of "
            f"{bank.backbone!r}"
        )
    names = set(model.classnames)
    if wanted and (missing := sorted(names - set(bank.classnames))):
        raise UserError(f"the bank of {bank.dataset} has no class {missing[0]!r}, which the model knows")
    is_known = torch.tensor([name in names for name in bank.classnames])
    if bank.test_features is None or bank.test_labels is None:
        raise UserError(f"the bank of {bank.dataset} has no test images")
    features = bank.test_features[is_known[bank.test_labels] == wanted]
    if not len(features):
        what = "of a class that the model knows" if wanted else "of a class that the model does not know"
        raise UserError(
            f"the bank of {bank.dataset} has no test image {what}; train with DATASET.SUBSAMPLE_CLASSES base, or give "
            "--unknown BANK"
        )
    return features


def _table(scores: pd.DataFrame, unknown: str) -> Table:
    """The table of scores, one row of `scores` for each run and score."""
    scores = scores.reindex(columns=["shots", "method", "score", "dataset", *COLUMNS])
    data_sets = sorted(scores["dataset"].unique())
    order = {name: method_order(name) for name in scores["method"]}
    rows = []
    groups = scores.groupby(["shots", "method"], sort=False)
    for (shots, name), of_method in sorted(groups, key=lambda group: (group[0][0], order[group[0][1]])):
        for score, found in of_method.groupby("score", sort=False):
            means = found.groupby("dataset")[list(COLUMNS)].mean().mean()
            tested = sorted(found["dataset"].unique())
            of = "" if tested == data_sets else f", {', '.join(tested)} alone"
            shown = [None if pd.isna(mean) else Cell(float(mean)) for mean in means]
            rows.append(Row((str(shots), f"{name}{of}", str(score)), shown))
    what = "the classes that were held back" if unknown == NEW else unknown
    caption = (
        f"Images of known classes of {', '.join(data_sets)} against {what}, in %; kept: by the threshold for "
        f"{KEEP:.0%} of known images, on {DEFAULT}"
    )
    heads = ("shots", "method", "score")
    return Table(caption, heads, list(COLUMNS.values()), rows, [2] * 4, bold=False, intervals=False)


def metric_scores(features: Tensor, mean: Tensor, whitening: Tensor, nodes: Tensor) -> dict[str, Tensor]:
    """The scores "distance" and "angle", each `[B]`.

    Args:
        features: Unit-norm image features, shape `[B, d]`.
        mean: `m`, shape `[d]`.
        whitening: `A^-1/2 / s`, shape `[d, d]`.
        nodes: `A^-1/2 (u_c - m) / s`, shape `[K, d]`.
    """
    whitened = (features - mean) @ whitening
    cosines = F.normalize(whitened, dim=1) @ F.normalize(nodes, dim=1).t()
    return {"distance": -torch.cdist(whitened, nodes).amin(dim=1), "angle": cosines.amax(dim=1)}


def text_scores(features: Tensor, predicted: Tensor, positive: Tensor, negatives: dict[str, Tensor]) -> dict:
    """The scores "own text" and, for each kind of negative text nodes, the margin against them; each `[B]`.

    Args:
        features: Unit-norm image features, shape `[B, d]`.
        predicted: Their predicted classes, shape `[B]`.
        positive: Positive text nodes, shape `[K, d]`.
        negatives: Name of a score -> negative text nodes, shape `[K, d]`.
    """
    own = (features * positive[predicted]).sum(dim=1)
    return {"own text": own} | {
        name: own - (features * negative[predicted]).sum(dim=1) for name, negative in negatives.items()
    }


def separation(known: Sequence[float] | Tensor, unknown: Sequence[float] | Tensor) -> dict[str, float]:
    """How well a score tells known from unknown images.

    Args:
        known: Scores of known images, shape `[n]`.
        unknown: Of unknown ones, shape `[m]`.

    Returns:
        "auroc" in percent: how often a known image has a higher score than an unknown one (scikit-learn's
        `roc_auc_score`). "fpr95" in percent: the share of unknown images that are kept by the highest threshold that
        keeps at least 95 % of the known ones (from scikit-learn's `roc_curve`).
    """
    from sklearn.metrics import roc_auc_score, roc_curve  # takes a second to import

    scores = np.concatenate([np.asarray(known, dtype=float), np.asarray(unknown, dtype=float)])
    is_known = np.arange(len(scores)) < len(known)
    false, true, _ = roc_curve(is_known, scores, drop_intermediate=False)
    return {
        "auroc": 100 * float(roc_auc_score(is_known, scores)),
        "fpr95": 100 * float(false[np.argmax(true >= 0.95)]),
    }
