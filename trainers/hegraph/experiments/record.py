"""The record of one run: its scores on test, and where they come from."""

from __future__ import annotations

import datetime
import logging
import time

import torch
from yacs.config import CfgNode

from ..features.bank import FeatureBank
from ..method.heads import text_logits
from ..training.confidence import confidence_scores
from ..training.evaluation import accuracy, score
from ..training.rejection import known_score
from ..utils.files import hash_json
from .folder import RunFolder
from .outcome import Outcome
from .provenance import git_commit, peak_memory_mb, versions

logger = logging.getLogger(__name__)

KEEP = 0.95  # the share of images of known classes whose threshold the record tells


def make_record(
    outcome: Outcome,
    bank: FeatureBank,
    cfg: CfgNode,
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
    scores, calibration = scores_on_test(outcome, bank), calibration_on_test(outcome, bank)
    device = bank.train_features.device
    return {
        "dataset": bank.dataset,
        "trainer": cfg.TRAINER.NAME,
        "variant": outcome.variant,
        "backbone": bank.backbone,
        "shots": cfg.DATASET.NUM_SHOTS,
        "seed": seed,
        **scores,
        "num_test": 0 if outcome.labels is None else len(outcome.labels),
        "num_train": len(bank.train_labels),
        "adapter_from": None if folder.model is None else str(folder.model),
        "selected_on": "val" if outcome.selected else "last_step",
        "selected": outcome.selected,
        "calibration": calibration,
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


def scores_on_test(outcome: Outcome, bank: FeatureBank) -> dict[str, float | None]:
    """Percent on test: the prediction, the text classifier alone, and zero-shot CLIP; None for what there is not."""
    if outcome.logits is None or outcome.labels is None or bank.test_features is None:
        logger.warning("%s has no test images: nothing is scored", bank.dataset)
        return dict.fromkeys(("accuracy", "macro_f1", "accuracy_text", "accuracy_zero_shot"))
    zero_shot = text_logits(bank.test_features, bank.text_positive, bank.logit_scale)
    text = outcome.text_logits
    return {
        **score(outcome.logits, outcome.labels),
        "accuracy_text": None if text is None else accuracy(text, outcome.labels),
        "accuracy_zero_shot": accuracy(zero_shot, outcome.labels),
    }


def calibration_on_test(outcome: Outcome, bank: FeatureBank) -> dict:
    """The temperature, and how honest the probabilities on test are: before and after it, and those of zero-shot CLIP.

    Returns:
        "temperature", "fitted_on" and "num_images", as of `Calibration`; "before", "after" and "zero_shot", each as
        `confidence_scores` gives them, and None without test images. Zero-shot CLIP's has no "bins", and is as CLIP
        comes, without a temperature.
    """
    found = outcome.calibration
    about = {"temperature": found.temperature, "fitted_on": found.fitted_on, "num_images": found.num_images}
    if outcome.logits is None or outcome.labels is None or bank.test_features is None:
        return about | dict.fromkeys(("before", "after", "zero_shot"))
    zero_shot = text_logits(bank.test_features, bank.text_positive, bank.logit_scale)
    of_clip = confidence_scores(zero_shot, outcome.labels)
    del of_clip["bins"]
    return about | {
        "before": confidence_scores(outcome.logits, outcome.labels),
        "after": confidence_scores(outcome.logits, outcome.labels, found.temperature),
        "zero_shot": of_clip,
    }


def rejection_on_test(outcome: Outcome) -> dict | None:
    """The threshold below which an image counts as none of the classes, see `training/rejection.py`.

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
