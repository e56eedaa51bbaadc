"""How well the scores of trained models tell images of no known class: a table.

Beside the scores of `training/confidence.py` it knows these, which need more than logits:

- "distance": `-min_c |A^-1/2 (f - u_c)| / s`, to the nearest class node in the whitened space of the messages in
  closed form (`method/closed_form.py`); "angle": the cosine there with the nearest class node, both seen from the mean.
- "own text": the cosine `f . t_c` with the positive text node of the predicted class; "margin": `f . t_c - f . n_c`,
  with its negative text node; "margin, shuffled": with the negative text node of another class.

Models are those that runs have left, images the test images of feature banks. What is known is decided by the names of
classes, so that half of a bank's classes are unknown to a run with DATASET.SUBSAMPLE_CLASSES base.

Shapes: M images, n known and m unknown ones, B images of a batch, K classes, d feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
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
from .scores import PLACE, cells, mean_places, method, score
from .table import Table

NEW = "new"  # the classes of a bank that a model does not know
ZERO_SHOT = "zero-shot probability"
SCORE = "score"  # the key of a row that names the score
COLUMNS = {"auroc": "AUROC", "fpr95": "FPR95", "known": "known kept", "unknown": "unknown kept"}


def rejection_table(folders: Sequence[Path], banks: Sequence[Path], unknown: str = NEW) -> Table:
    """How well each score of the runs below some folders tells known from unknown images, as means over seeds and then
    over data sets, each of which has one of the banks.

    Unknown are test images of classes that a model does not know, of these banks (`NEW`) or of the bank at the path
    `unknown`. Raises UserError if there is no run or no bank of a run, a bank does not fit the models, or a row would
    mix runs.
    """
    runs = find_runs(folders)
    if not runs:
        raise UserError(f"no finished run below {', '.join(map(str, folders))}; run an experiment first")
    opened = {bank.dataset: bank for bank in map(load_bank, banks)}
    other = None if unknown == NEW else load_bank(Path(unknown))
    rows = []
    for folder, run in runs.items():
        bank = opened.get(run["dataset"])
        if bank is None:
            known = ", ".join(sorted(opened))
            raise UserError(f"{folder} is a run on {run['dataset']!r}, and --features are banks of {known}")
        for name, found in score_images(load_model(folder), bank, other or bank).items():
            rows += [score(run, method(run), column, found.get(column)) | {SCORE: name} for column in COLUMNS]
    keys = [*PLACE, SCORE]
    caption = (
        f"Images of known classes against {other.dataset if other else 'the classes that were held back'}, in %; "
        f"kept: by the threshold for {KEEP:.0%} of known images, on {DEFAULT}"
    )
    return Table(caption, keys, mean_places(cells(rows, keys), keys), COLUMNS, decimals=dict.fromkeys(COLUMNS, 2))


def score_images(model: SavedModel, known: FeatureBank, unknown: FeatureBank) -> dict[str, dict[str, float]]:
    """How well each score of a model tells known from unknown images.

    Known are the test images of one bank whose classes are the model's, unknown those of the other (or the same) bank
    whose classes are not. Raises UserError if the features are another backbone's, or a bank has no such images.

    Returns score -> what `separation` gives; for the score of `--keep` also "known" and "unknown", the percentage of
    images that its threshold keeps, if the model has one.
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
