"""The record of one run: its scores on test, and where they come from."""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from ..config import Config
from ..features.bank import FeatureBank
from ..method.cache import text_logits
from ..results.records import KEEP
from ..training.choice import accuracy, score
from ..training.confidence import confidence_scores, known_score
from ..utils.files import hash_json
from .folder import RunFolder
from .outcome import Outcome
from .provenance import git_commit, peak_memory_mb, versions

logger = logging.getLogger(__name__)


def make_record(
    outcome: Outcome,
    bank: FeatureBank,
    cfg: Config,
    seed: int,
    folder: RunFolder,
    host: str,
    features_seconds: float,
    targets: dict[str, dict] | None = None,
) -> dict:
    """Scores an outcome on test, once, and tells where the scores come from.

    Args:
        outcome: What the method says about the test images.
        bank: The task's features.
        cfg: The checked configuration.
        seed: The run's seed.
        folder: The run's folder, for what tells the run from others.
        host: "alone" or "dassl".
        features_seconds: How long encoding or reading the features took.
        targets: From `elsewhere.score_targets`.
    """
    started = time.monotonic()
    scores = scores_on_test(outcome, bank)
    device = bank.train_features.device
    return {
        "dataset": bank.dataset,
        "trainer": cfg.run.trainer,
        "variant": outcome.variant,
        "backbone": bank.backbone,
        "shots": cfg.data.shots,
        "seed": seed,
        **scores,
        "num_test": 0 if outcome.labels is None else len(outcome.labels),
        "num_train": len(bank.train_labels),
        "test_set": hash_test_set(bank.classnames, outcome.labels),
        "adapter_from": None if folder.model is None else str(folder.model),
        "selected_on": "val" if outcome.selected else "last_step",
        "selected": outcome.selected,
        "rejection": rejection_on_test(outcome),
        "targets": targets or {},
        "epochs": outcome.training.epochs,
        "steps": outcome.training.steps,
        "num_parameters": outcome.num_parameters,
        "config": folder.config,
        "config_hash": hash_json(folder.config),
        "split_hash": folder.split_hash,
        "run_id": folder.run_id,
        "host": host,
        "versions": versions(),
        "git_commit": git_commit(),
        "threads": torch.get_num_threads(),
        "device": "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device),
        "seconds": {
            "features": round(features_seconds, 3),
            "training": round(outcome.training.seconds, 3),
            "calibration": round(outcome.calibration.seconds, 3),
            "test": round(time.monotonic() - started, 3),
        },
        "peak_memory_mb": peak_memory_mb(),
        "finished_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def hash_test_set(classnames: Sequence[str], labels: Tensor | None) -> str | None:
    """What tells the test sets of one name apart, as data sets of one's own have: a hash of the classes and of how many
    test images each has. None without test images.
    """
    if labels is None:
        return None
    return hash_json([list(classnames), torch.bincount(labels, minlength=len(classnames)).tolist()])


def scores_on_test(outcome: Outcome, bank: FeatureBank) -> dict:
    """How good the prediction is on test, and how honest its probabilities are: before the temperature and after it.

    Returns:
        "accuracy" and "macro_f1" of the prediction, "accuracy_text" of the text classifier alone and
        "accuracy_zero_shot", in percent; and "calibration": "temperature", "fitted_on" and "num_images", as of
        `Calibration`, and "before", "after" and "zero_shot", each with accuracy, macro F1 and what `confidence_scores`
        gives. Zero-shot CLIP's has no "bins", and is as CLIP comes, without a temperature. None for what there is not.
    """
    found = outcome.calibration
    about = {"temperature": found.temperature, "fitted_on": found.fitted_on, "num_images": found.num_images}
    logits, labels, text = outcome.logits, outcome.labels, outcome.text_logits
    if logits is None or labels is None or bank.test_features is None:
        logger.warning("%s has no test images: nothing is scored", bank.dataset)
        nothing = dict.fromkeys(("accuracy", "macro_f1", "accuracy_text", "accuracy_zero_shot"))
        return nothing | {"calibration": about | dict.fromkeys(("before", "after", "zero_shot"))}
    zero_shot = text_logits(bank.test_features, bank.text_positive, bank.logit_scale)
    of_prediction, of_clip = score(logits, labels), score(zero_shot, labels)
    honesty_of_clip = confidence_scores(zero_shot, labels)
    del honesty_of_clip["bins"]
    return {
        **of_prediction,
        "accuracy_text": None if text is None else accuracy(text, labels),
        "accuracy_zero_shot": of_clip["accuracy"],
        "calibration": {
            **about,
            "before": of_prediction | confidence_scores(logits, labels),
            "after": of_prediction | confidence_scores(logits, labels, found.temperature),
            "zero_shot": of_clip | honesty_of_clip,
        },
    }


def rejection_on_test(outcome: Outcome) -> dict | None:
    """The threshold below which an image counts as none of the classes, see `training/confidence.py`.

    Returns:
        "score", "fitted_on" and "num_images", as of `KnownScores`; "keep" and its "threshold"; "kept", the percentage
        of test images that reach it, None without test images. None where nothing tells how known images score.
    """
    known = outcome.calibration.known
    if known is None:
        return None
    threshold, kept = known.threshold(KEEP), None
    if outcome.logits is not None:
        scores = known_score(outcome.logits, outcome.calibration.temperature, known.score)
        kept = 100 * (scores >= threshold).double().mean().item()
    about = {"score": known.score, "fitted_on": known.fitted_on, "num_images": known.num_images}
    return about | {"keep": KEEP, "threshold": threshold, "kept": kept}
