"""Outputs of a finished run: its record, whose schema is `results.records.RunRecord`, its model and its predictions.

Shapes: K classes, M test images.
"""

from __future__ import annotations

import datetime
import logging
import time
from typing import Any

import torch
from torch import Tensor

from ..baselines import load_method
from ..baselines.base import FittedMethod, zero_shot_transfer
from ..features.bank import FeatureBank
from ..method.model import TransferableAdapter
from ..models.folder import save_model
from ..models.saved import NOT_TESTED, SavedModel, Scores
from ..models.support_set import SupportSet
from ..results.records import (
    OPEN_SET_RATE,
    PREDICTIONS,
    TEXT_NODES,
    CalibrationRecord,
    ProbabilitiesRecord,
    RejectionRecord,
    RunRecord,
    TargetRecord,
    write_record,
    write_tensors_with_classes,
)
from ..training.choice import accuracy, score
from ..training.confidence import Calibration, confidence_scores, known_score
from ..training.memory import peak_memory_mb
from ..utils.commit import git_commit, versions
from ..utils.files import hash_json
from ..utils.option import OUR_METHOD
from .evaluation import TrainedMethod
from .run_folder import RunFolder, precision_of
from .tasks import Tested

logger = logging.getLogger(__name__)


def write_outputs(
    folder: RunFolder,
    trained: TrainedMethod,
    tested: Tested,
    device: str | torch.device,
    seconds: float,
    targets: dict[str, TargetRecord] | None = None,
    bank: FeatureBank | None = None,
) -> dict:
    """Write the outputs of a run, the record last, remove its checkpoint and return the record.

    Args:
        folder: Output folder, which this process has locked.
        trained: The tested method.
        tested: Predictions on the test images.
        device: Device of the computation.
        seconds: Time of encoding or reading the features.
        targets: Scores on further data sets by name.
        bank: Features that the run has fitted the method to; None for the test of a trained model.
    """
    record, fitted = make_record(folder, trained, tested, device, seconds, targets or {}), trained.fitted
    if bank is not None:
        if (model := make_model(folder, bank, fitted, record)) is not None:
            save_model(model, folder.model_folder)
        else:
            name, reason = folder.task.cfg.run.trainer, "its prediction of a test image depends on the other ones"
            reason = reason if fitted.transductive else load_method(name).not_saved
            logger.info("%s saves no model folder: %s", name, reason)
    if fitted.text_nodes is not None:
        before, after = fitted.text_nodes
        write_tensors_with_classes(folder.path / TEXT_NODES, tested.classnames, before=before, after=after)
    if tested.logits is not None and tested.labels is not None:
        predicted, labels = tested.logits.argmax(dim=1).int(), tested.labels.int()
        write_tensors_with_classes(folder.path / PREDICTIONS, tested.classnames, predicted=predicted, labels=labels)
    values = record.model_dump(exclude_unset=True)
    write_record(folder.path, values)
    if folder.model is None:
        folder.checkpoints.remove()
    return values


def make_record(
    folder: RunFolder,
    trained: TrainedMethod,
    tested: Tested,
    device: str | torch.device,
    seconds: float,
    targets: dict[str, TargetRecord],
) -> RunRecord:
    """Score the predictions and return the record of the run; arguments as of `write_outputs`."""
    started, labels, fitted, origin = time.monotonic(), tested.labels, trained.fitted, trained.trained_on
    counts = None if labels is None else torch.bincount(labels, minlength=len(tested.classnames)).tolist()
    rule: dict[str, Any] = {}
    if tested.rule:
        rule = {"rule": tested.rule, "num_classes": len(tested.classnames), "trained_on": origin.dataset}
    return RunRecord(
        dataset=tested.dataset,
        trainer=trained.method,
        variant=fitted.variant,
        backbone=trained.backbone,
        precision=precision_of(folder.task.identity),
        shots=origin.shots,
        images_per_class=[min(trained.images), max(trained.images)] if trained.images else None,
        seed=folder.task.seed,
        **scores_on_test(tested, fitted.calibration),
        num_test=sum(counts or ()),
        num_train=origin.num_train,
        # Distinguishes test sets of one name, such as those of a user's own data sets
        test_set=None if counts is None else hash_json([list(tested.classnames), counts]),
        selected_on=origin.selected_on,
        selected=origin.selected,
        rejection=rejection_on_test(tested.logits, fitted.calibration),
        targets=targets,
        **fitted.adaptation,
        **rule,
        adapter_from=None if folder.model is None else str(folder.model),
        epochs=fitted.epochs,
        steps=fitted.steps,
        num_parameters=fitted.num_parameters,
        config=folder.config,
        config_hash=hash_json(folder.config),
        split_hash=origin.split_hash,
        run_id=folder.run_id,
        host=folder.host,
        versions=versions(),
        git_commit=git_commit(),
        threads=torch.get_num_threads(),
        device="cpu" if torch.device(device).type == "cpu" else torch.cuda.get_device_name(device),
        seconds={
            "features": round(seconds, 3),
            "training": round(fitted.seconds, 3),
            "calibration": round(fitted.calibration.seconds, 3),
            "test": round(time.monotonic() - started, 3),
        },
        peak_memory_mb=peak_memory_mb(),
        finished_at=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )


def scores_on_test(tested: Tested, calibration: Calibration) -> dict[str, Any]:
    """Return the entries of a record about the predictions and their probabilities; None where nothing was tested.

    "accuracy" and "macro_f1" are of the method, "accuracy_text" is of HeGraphAdapter's text classifier.
    """
    fitted = {key: getattr(calibration, key) for key in ("temperature", "fitted_on", "num_images")}
    logits, labels, text, zero_shot = tested.logits, tested.labels, tested.text_logits, tested.zero_shot
    if logits is None or labels is None or zero_shot is None:
        logger.warning("%s has no test images: nothing is scored", tested.dataset)
        nothing = dict.fromkeys(("accuracy", "macro_f1", "accuracy_text", "accuracy_zero_shot"))
        return nothing | {"calibration": CalibrationRecord(**fitted, before=None, after=None, zero_shot=None)}
    scores: dict[str, Any] = score(logits, labels)
    clip = score(zero_shot, labels) | confidence_scores(zero_shot, labels)
    del clip["bins"]
    before, after = (
        ProbabilitiesRecord(**scores, **confidence_scores(logits, labels, at)) for at in (1.0, calibration.temperature)
    )
    return scores | {
        "accuracy_text": None if text is None else accuracy(text, labels),
        "accuracy_zero_shot": clip["accuracy"],
        "calibration": CalibrationRecord(**fitted, before=before, after=after, zero_shot=ProbabilitiesRecord(**clip)),
    }


def rejection_on_test(logits: Tensor | None, calibration: Calibration) -> RejectionRecord | None:
    """Return the open-set threshold and its effect on the test images; None if no known images were scored."""
    known = calibration.known
    if known is None:
        return None
    threshold, accepted = known.threshold(OPEN_SET_RATE), None
    if logits is not None:
        scores = known_score(logits, calibration.temperature, known.score)
        accepted = 100 * (scores >= threshold).double().mean().item()
    return RejectionRecord(
        score=known.score,
        fitted_on=known.fitted_on,
        num_images=known.num_images,
        rate=OPEN_SET_RATE,
        threshold=threshold,
        accepted=accepted,
    )


def make_model(
    folder: RunFolder, bank: FeatureBank, fitted: FittedMethod, record: RunRecord | None
) -> SavedModel | None:
    """Return the model of a method that was fitted to a bank; None if it is not class weights with a cache.

    `record` holds the scores of the model; None if it was not tested.
    """
    if fitted.classifier is None:
        return None
    task, trained = folder.task, TrainedMethod.of_run(folder, bank, fitted)
    backbone, preprocessing, prompts = task.encoding_metadata(bank)
    transfer = fitted.transfer if isinstance(fitted.transfer, TransferableAdapter) else None
    rule = "zero-shot" if fitted.transfer is zero_shot_transfer else "none" if transfer is None else "adapter"
    return SavedModel(
        classifier=fitted.classifier,
        text_positive=bank.text_positive.detach().cpu(),
        classnames=tuple(bank.classnames),
        class_ids=tuple(trained.class_ids),
        method=trained.method,
        variant=fitted.variant,
        logit_scale=bank.logit_scale,
        temperature=fitted.calibration.temperature,
        backbone=backbone,
        preprocessing=preprocessing,
        prompts=prompts,
        transfer=transfer,
        transfer_rule=rule,
        known=fitted.calibration.known,
        class_nodes=fitted.class_nodes,
        labelled=None if fitted.adaptation else task.labelled(bank),
        support_set=SupportSet.of(bank, fitted.state) if trained.method == OUR_METHOD else None,
        images=None if trained.method == "ZeroShot" else tuple(trained.images or ()),
        unlabelled=0 if fitted.unlabelled is None else len(fitted.unlabelled),
        unlabelled_features=None if fitted.unlabelled is None else fitted.unlabelled.cpu(),
        trained_on=trained.trained_on,
        scores=NOT_TESTED if record is None else _scores_of_model(record),
    )


def _scores_of_model(record: RunRecord) -> Scores:
    """Return the scores of a record that a model folder stores."""
    calibration = record.calibration
    assert calibration is not None  # `make_record` sets it
    after, zero_shot = calibration.after, calibration.zero_shot
    return Scores(
        accuracy=record.accuracy,
        accuracy_text=record.accuracy_text,
        accuracy_zero_shot=record.accuracy_zero_shot,
        macro_f1=record.macro_f1,
        num_test=record.num_test,
        ece=None if after is None else after.ece,
        ece_zero_shot=None if zero_shot is None else zero_shot.ece,
    )
