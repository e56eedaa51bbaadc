"""What a run leaves: the record with its scores on test and where they come from, and the model for others to use."""

from __future__ import annotations

import datetime
import logging
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..baselines.base import FittedMethod
from ..features.bank import FeatureBank
from ..models.lessons import Lessons
from ..models.saved import NOT_TESTED, SavedModel, Scores, TrainedOn
from ..results.records import KEEP
from ..training.choice import accuracy, score
from ..training.confidence import Calibration, confidence_scores, known_score
from ..utils.files import hash_json
from .evaluation import labelled_images
from .folder import RunFolder, precision_of
from .tasks import Tested

logger = logging.getLogger(__name__)

INSTALLED = Path(__file__).parents[1] / ".hegraph-installed"

try:
    import resource
except ImportError:  # Windows has no such module
    resource = None  # type: ignore[assignment]  # mypy knows the module of this platform only


def make_record(
    folder: RunFolder,
    fitted: FittedMethod,
    tested: Tested,
    device: str | torch.device,
    features_seconds: float,
    **more: object,
) -> dict:
    """Scores what was tested, once, and tells where the scores come from; `more` are the caller's keys, which win."""
    started, cfg = time.monotonic(), folder.task.cfg
    scores = scores_on_test(tested, fitted.calibration)
    record = {
        "dataset": tested.dataset,
        "trainer": cfg.run.trainer,
        "variant": fitted.variant,
        **provenance(folder, fitted),
        "precision": precision_of(folder.task.identity),
        **scores,
        "num_test": 0 if tested.labels is None else len(tested.labels),
        "test_set": hash_test_set(tested.classnames, tested.labels),
        "adapter_from": None if folder.model is None else str(folder.model),
        "rejection": rejection_on_test(tested.logits, fitted.calibration),
        "targets": {},
        "epochs": fitted.epochs,
        "steps": fitted.steps,
        "num_parameters": fitted.num_parameters,
        "config_hash": hash_json(folder.config),
        "run_id": folder.run_id,
        "threads": torch.get_num_threads(),
        "device": "cpu" if torch.device(device).type == "cpu" else torch.cuda.get_device_name(device),
        "seconds": {
            "features": round(features_seconds, 3),
            "training": round(fitted.seconds, 3),
            "calibration": round(fitted.calibration.seconds, 3),
            "test": round(time.monotonic() - started, 3),
        },
        "peak_memory_mb": peak_memory_mb(),
        "finished_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    return record | fitted.heard | more


def hash_test_set(classnames: Sequence[str], labels: Tensor | None) -> str | None:
    """What tells the test sets of one name apart, as data sets of one's own have: a hash of the classes and of how many
    test images each has. None without test images.
    """
    if labels is None:
        return None
    return hash_json([list(classnames), torch.bincount(labels, minlength=len(classnames)).tolist()])


def scores_on_test(tested: Tested, found: Calibration) -> dict:
    """How good the prediction is on test, and how honest its probabilities are: before the temperature and after it.

    Returns:
        "accuracy" and "macro_f1" of the prediction, "accuracy_text" of the text classifier alone and
        "accuracy_zero_shot", in percent; and "calibration": what the temperature is and was fitted on, and "before",
        "after" and "zero_shot", each with accuracy, macro F1 and what `confidence_scores` gives. Zero-shot CLIP's has
        no "bins", and is as CLIP comes, without a temperature. None for what there is not.
    """
    about: dict[str, Any] = {"temperature": found.temperature, "fitted_on": found.fitted_on}
    about["num_images"] = found.num_images
    logits, labels, text, zero_shot = tested.logits, tested.labels, tested.text_logits, tested.zero_shot
    if logits is None or labels is None or zero_shot is None:
        logger.warning("%s has no test images: nothing is scored", tested.dataset)
        nothing = dict.fromkeys(("accuracy", "macro_f1", "accuracy_text", "accuracy_zero_shot"))
        return nothing | {"calibration": about | dict.fromkeys(("before", "after", "zero_shot"))}
    scores = score(logits, labels)
    of_clip = score(zero_shot, labels) | confidence_scores(zero_shot, labels)
    del of_clip["bins"]
    about |= {
        "before": scores | confidence_scores(logits, labels),
        "after": scores | confidence_scores(logits, labels, found.temperature),
        "zero_shot": of_clip,
    }
    of_text = None if text is None else accuracy(text, labels)
    return scores | {"accuracy_text": of_text, "accuracy_zero_shot": of_clip["accuracy"], "calibration": about}


def rejection_on_test(logits: Tensor | None, found: Calibration) -> dict | None:
    """The threshold below which an image counts as none of the classes, see `training/confidence.py`.

    "kept" is the percentage of test images that reach it, None without test images. None where nothing tells how known
    images score.
    """
    known = found.known
    if known is None:
        return None
    threshold, kept = known.threshold(KEEP), None
    if logits is not None:
        scores = known_score(logits, found.temperature, known.score)
        kept = 100 * (scores >= threshold).double().mean().item()
    about = {"score": known.score, "fitted_on": known.fitted_on, "num_images": known.num_images}
    return about | {"keep": KEEP, "threshold": threshold, "kept": kept}


def make_model(
    folder: RunFolder, bank: FeatureBank, fitted: FittedMethod, record: dict | None = None
) -> SavedModel | None:
    """What is saved of a method that was fitted to a bank; None if it does not fold into class weights and a cache.

    `record` is the run's, for its scores; None for a model that was not tested.
    """
    if fitted.classifier is None:
        return None
    task = folder.task
    backbone, preprocessing, prompts = task.made_of(bank)
    trainer = task.cfg.run.trainer
    counts = bank.train_labels.bincount(minlength=len(bank.classnames)).tolist()
    about = provenance(folder, fitted) | {"dataset": bank.dataset, "num_train": len(bank.train_labels)}
    return SavedModel(
        classifier=fitted.classifier,
        text_positive=bank.text_positive.detach().cpu(),
        classnames=tuple(bank.classnames),
        class_ids=tuple(task.class_ids),
        method=trainer,
        variant=fitted.variant,
        logit_scale=bank.logit_scale,
        temperature=fitted.calibration.temperature,
        backbone=backbone,
        preprocessing=preprocessing,
        prompts=prompts,
        transfer=fitted.transferable,
        transfer_rule=fitted.transfer_rule,
        known=fitted.calibration.known,
        class_nodes=fitted.class_nodes,
        labelled=None if fitted.heard else labelled_images(task, bank),
        lessons=Lessons.of(bank, fitted.state) if trainer == "HeGraphAdapter" else None,
        images=None if trainer == "ZeroShot" else tuple(counts),
        unlabelled=fitted.heard.get("unlabelled", {}).get("num_images", 0),
        trained_on=TrainedOn(**about),
        scores=_scores_of(record),
    )


def _scores_of(record: dict | None) -> Scores:
    """What a model folder keeps of the scores of a record; none without one."""
    if record is None:
        return NOT_TESTED
    scores = {key: record[key] for key in ("accuracy", "accuracy_text", "accuracy_zero_shot", "macro_f1", "num_test")}
    after, zero_shot = (record["calibration"][when] or {} for when in ("after", "zero_shot"))
    return Scores(**scores, ece=after.get("ece"), ece_zero_shot=zero_shot.get("ece"))


def provenance(folder: RunFolder, fitted: FittedMethod) -> dict[str, Any]:
    """What a record and a model folder both tell of where they come from."""
    return {
        "shots": folder.task.cfg.data.shots,
        "seed": folder.task.seed,
        "split_hash": folder.split_hash,
        "selected_on": "val" if fitted.selected else "last_step",
        "selected": fitted.selected,
        "config": folder.config,
        "host": folder.host,
        "git_commit": git_commit(),
        "versions": versions(),
    }


# Versions and commit are asked for once: what a process has imported stays, whatever is installed meanwhile


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that compute the numbers."""
    found = {"python": platform.python_version(), "torch": torch.__version__}  # with the build, such as +cpu
    for package in ("open_clip_torch", "torch_geometric", "numpy", "scikit-learn"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # no run needs PyTorch Geometric, only the reference layer does
            found[package] = "none"
    return found


@cache
def git_commit() -> str | None:
    """The commit of this package, with "-dirty" if tracked files differ; None if it is not known. A copy that
    `install.sh` put into a CoOp checkout keeps its commit in a file, since git would name CoOp's.
    """
    if INSTALLED.is_file():
        return INSTALLED.read_text(encoding="utf-8").strip()
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


def peak_memory_mb() -> float | None:
    """Peak resident memory of this process, in MB; None on Windows, which does not say."""
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)
