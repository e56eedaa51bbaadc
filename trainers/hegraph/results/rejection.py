"""How well the scores of trained models tell images of no known class: a table.

The models are those that runs have left, and the images are test images of feature banks. What is known is decided by
the names of classes, so that half of a bank's classes are unknown to a run with DATASET.SUBSAMPLE_CLASSES base.

Shapes: M images, d feature width.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..features.bank import FeatureBank, load_bank
from ..method.model import shuffled
from ..models.folder import load_model
from ..models.saved import SavedModel
from ..training.rejection import DEFAULT, known_score, metric_scores, separation, text_scores
from ..utils.errors import UserError
from .cells import Observation, TestSet, check_averaged, make_cells
from .methods import PLACE, method, method_order, place
from .records import KEEP, find_runs
from .table import Cell, Row, Table
from .tabulate import tabulate_costs

NEW = "new"  # the classes of a bank that a model does not know
KEPT = "kept"
ZERO_SHOT = "zero-shot probability"
COLUMNS = {"auroc": "AUROC", "fpr95": "FPR95", "known": "known kept", "unknown": "unknown kept"}

Found = dict[tuple[int, str], dict[str, dict[str, dict[str, list[float]]]]]
# (shots, method) -> score -> column -> data set -> values of the seeds


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
    averaged: dict[tuple, list[dict]] = {}
    for record in runs.values():
        averaged.setdefault((record["dataset"], method(record), record["shots"]), []).append(record)
    for (dataset, name, shots), records in averaged.items():
        check_averaged(records, f"{dataset}, {name}, {shots} shots")
    opened = {bank.dataset: bank for bank in map(load_bank, banks)}
    other = None if unknown == NEW else load_bank(Path(unknown))
    found: Found = {}
    for folder, record in runs.items():
        if record["dataset"] not in opened:
            known = ", ".join(sorted(opened))
            raise UserError(f"{folder} is a run on {record['dataset']!r}, and --features are banks of {known}")
        scores = found.setdefault((record["shots"], method(record)), {})
        bank = opened[record["dataset"]]
        for score, values in score_images(load_model(folder), bank, other or bank).items():
            for column, value in values.items():
                of_score = scores.setdefault(score, {}).setdefault(column, {})
                of_score.setdefault(record["dataset"], []).append(value)
    return _table(found, sorted({record["dataset"] for record in runs.values()}), other.dataset if other else NEW)


def kept_table(records: Sequence[dict]) -> Table:
    """What the threshold for `KEEP` of the images of known classes keeps of the test images, which are all of them.

    It is all that records tell about the threshold: they know no image of other classes.

    Args:
        records: The runs.

    Raises:
        UserError: If no run tells it, or a row would mix runs.
    """
    told = [record for record in records if has_threshold(record)]
    if not told:
        raise UserError("no record tells what a threshold keeps, which runs of earlier versions did not measure")
    observations = [
        Observation(
            (place(record, PLACE), method(record), KEPT),
            record["seed"],
            record["rejection"]["kept"],
            TestSet.of(record),
            record,
        )
        for record in told
    ]
    caption = f"Test images, all of known classes, that are kept by the threshold for {KEEP:.0%} of such images, in %"
    means = {key: Cell(cell.mean) for key, cell in make_cells(observations).items()}
    return tabulate_costs(caption, list(PLACE), means, {KEPT: 2}, {})


def has_threshold(record: dict) -> bool:
    """Whether a record tells what the threshold of its model keeps of the test images."""
    return (record.get("rejection") or {}).get("kept") is not None


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


def _table(found: Found, data_sets: Sequence[str], unknown: str) -> Table:
    rows = []
    for (shots, name), scores in sorted(found.items(), key=lambda item: (item[0][0], method_order(item[0][1]))):
        for score, columns in scores.items():
            cells = [_mean(columns[column].values()) if column in columns else None for column in COLUMNS]
            tested = sorted(next(iter(columns.values())))
            of = "" if tested == list(data_sets) else f", {', '.join(tested)} alone"
            rows.append(Row((str(shots), f"{name}{of}", score), cells))
    what = "the classes that were held back" if unknown == NEW else unknown
    caption = (
        f"Images of known classes of {', '.join(data_sets)} against {what}, in %; kept: by the threshold for "
        f"{KEEP:.0%} of known images, on {DEFAULT}"
    )
    return Table(
        caption, ("shots", "method", "score"), list(COLUMNS.values()), rows, [2] * 4, bold=False, intervals=False
    )


def _mean(of_data_sets: Iterable[Sequence[float]]) -> Cell:
    return Cell(statistics.fmean(statistics.fmean(seeds) for seeds in of_data_sets))
