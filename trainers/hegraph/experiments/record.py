"""Outputs of a finished run: its record, whose schema is `results.records.RunRecord`, its model and its predictions.

Shapes: K classes, M test images.
"""

import datetime
import logging
import os
import time
from typing import Any

import torch

from ..baselines.base import FittedMethod, zero_shot_transfer
from ..config import Config
from ..datasets.loading import OWN
from ..features.bank import FeatureBank, count_labels
from ..method.model import TransferableAdapter
from ..method.training.choice import accuracy, score, score_multilabel
from ..method.training.confidence import Calibration, confidence_scores, known_score
from ..method.training.memory import peak_memory_mb
from ..method.unlabelled import ClassSums
from ..models.folder import save_model
from ..models.saved import NOT_TESTED, SavedModel, Scores, TrainedModel, TrainedOn
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
from ..utils.commit import git_commit, versions
from ..utils.files import hash_json
from ..utils.option import OUR_METHOD
from .checks import reason_not_saved
from .run_folder import RunFolder, precision_of
from .tasks import Predictions, ids_of_names

logger = logging.getLogger(__name__)


def write_outputs(
    folder: RunFolder,
    fitted: FittedMethod,
    model: TrainedModel,
    predictions: Predictions,
    device: str | torch.device,
    seconds: float,
    targets: dict[str, TargetRecord] | None = None,
) -> dict:
    """Write the outputs of a run, the record last, remove its checkpoint and return the record.

    Args:
        folder: Output folder, which this process has locked.
        fitted: The tested method.
        model: Its model, which a training run saves.
        predictions: Predictions on the test images.
        device: Device of the computation.
        seconds: Time of encoding or reading the features.
        targets: Scores on further data sets by name.
    """
    record = make_record(folder, fitted, model, predictions, device, seconds, targets or {})
    if folder.model is None:
        if isinstance(model, SavedModel) and not fitted.transductive:
            images = None if model.method == "ZeroShot" else model.images
            ids = () if model.support_set is None else tuple(folder.task.image_ids("train").values())
            changes = {"scores": _scores_of_model(record), "images": images, "image_ids": ids or None}
            save_model(model.model_copy(update=changes), folder.model_folder)
        else:
            logger.info("%s saves no model folder: %s", model.method, reason_not_saved(folder.task))
    if fitted.text_nodes is not None:
        before, after = fitted.text_nodes
        write_tensors_with_classes(folder.path / TEXT_NODES, predictions.classnames, before=before, after=after)
    if predictions.logits is not None and predictions.labels is not None:
        several = predictions.labels.dim() == 2
        predicted = {"scores": predictions.logits} if several else {"predicted": predictions.logits.argmax(dim=1).int()}
        labels = predictions.labels.to(torch.uint8 if several else torch.int)
        path, files = folder.path / PREDICTIONS, folder.task.test_files
        write_tensors_with_classes(path, predictions.classnames, files, **predicted, labels=labels)
    values = record.model_dump(exclude_unset=True)
    write_record(folder.path, values)
    if folder.model is None:
        folder.checkpoints.remove()
    return values


def make_record(
    folder: RunFolder,
    fitted: FittedMethod,
    model: TrainedModel,
    predictions: Predictions,
    device: str | torch.device,
    seconds: float,
    targets: dict[str, TargetRecord],
) -> RunRecord:
    """Score the predictions and return the record of the run; arguments as of `write_outputs`."""
    started, labels, origin = time.monotonic(), predictions.labels, model.trained_on
    counts = None if labels is None else count_labels(labels, len(predictions.classnames))
    source = own_source(folder.task.cfg, predictions.dataset)
    optional: dict[str, Any] = {"source": source} if source else {}
    if predictions.rule:
        optional |= {"rule": predictions.rule, "num_classes": len(predictions.classnames), "trained_on": origin.title}
    return RunRecord(
        dataset=predictions.dataset,
        trainer=model.method,
        **{name: getattr(fitted, name) for name in ("variant", "epochs", "steps", "num_parameters")},
        **origin.model_dump(include={"shots", "num_train", "selected_on", "selected", "split_hash"}),
        backbone=model.backbone.title,
        precision=precision_of(folder.task.identity),
        images_per_class=[min(model.images), max(model.images)] if model.images else None,
        seed=folder.task.seed,
        **scores_on_test(predictions, fitted.calibration),
        num_test=0 if labels is None else len(labels),
        # Distinguishes test sets of one name, such as those of a user's own data sets
        test_set=None if counts is None else hash_json([list(predictions.classnames), counts]),
        rejection=rejection_on_test(predictions.logits, fitted.calibration),
        targets=targets,
        **fitted.adaptation,
        **optional,
        adapter_from=None if folder.model is None else str(folder.model),
        config=folder.config,
        config_hash=hash_json(folder.config),
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


def own_source(cfg: Config, dataset: str) -> str:
    """Return the name of the folder or file of a user's own images; "" for another data set, or if it is unknown."""
    return os.path.basename(os.path.abspath(cfg.data.root)) if cfg.data.root and dataset == OWN else ""


def scores_on_test(predictions: Predictions, calibration: Calibration) -> dict[str, Any]:
    """Return the entries of a record about the predictions and their probabilities; None where nothing was tested.

    "accuracy" and "macro_f1" are of the method, "accuracy_text" is of HeGraphAdapter's text classifier.
    """
    fitted = {key: getattr(calibration, key) for key in ("temperature", "fitted_on", "num_images")}
    logits, labels = predictions.logits, predictions.labels
    text, zero_shot = predictions.text_logits, predictions.zero_shot
    if logits is None or labels is None or zero_shot is None:
        logger.warning("%s has no test images: nothing is scored", predictions.dataset)
        nothing = dict.fromkeys(("accuracy", "macro_f1", "accuracy_text", "accuracy_zero_shot"))
        return nothing | {"calibration": CalibrationRecord(**fitted, before=None, after=None, zero_shot=None)}
    if labels.dim() == 2:
        names = ids_of_names(predictions.classnames)
        clip = score_multilabel(zero_shot, labels, names)
        nothing = dict.fromkeys(("accuracy", "accuracy_text", "accuracy_zero_shot"))
        own = score_multilabel(logits, labels, names, predictions.thresholds)
        return nothing | own | {"map_zero_shot": clip["map"]}
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


def rejection_on_test(logits: torch.Tensor | None, calibration: Calibration) -> RejectionRecord | None:
    """Return the open-set threshold and its effect on the test images; None if no known images were scored."""
    known = calibration.known
    if known is None:
        return None
    values: dict[str, Any] = {"rate": OPEN_SET_RATE, "threshold": known.threshold(OPEN_SET_RATE), "accepted": None}
    if logits is not None:
        scores = known_score(logits, calibration.temperature, known.score)
        values["accepted"] = 100 * (scores >= values["threshold"]).double().mean().item()
    return RejectionRecord(**known.model_dump(exclude={"quantiles"}), **values)


def make_model(folder: RunFolder, bank: FeatureBank, fitted: FittedMethod) -> TrainedModel:
    """Return the model of a method that was fitted to a bank, on the CPU: a `SavedModel` if it has class weights."""
    task = folder.task
    backbone, preprocessing, prompts = task.encoding_metadata(bank)
    counts = count_labels(bank.train_labels, len(bank.classnames))
    model = TrainedModel(
        method=task.cfg.run.trainer,
        variant=fitted.variant,
        classnames=tuple(bank.classnames),
        class_ids=tuple(task.class_ids),
        logit_scale=bank.logit_scale,
        temperature=fitted.calibration.temperature,
        backbone=backbone,
        preprocessing=preprocessing,
        prompts=prompts,
        trained_on=TrainedOn(
            dataset=bank.dataset,
            shots=task.cfg.data.shots,
            seed=task.seed,
            num_train=len(bank.train_labels),
            split_hash=folder.split_hash,
            selected_on="val" if fitted.selected else "last_step",
            selected=fitted.selected,
            config=folder.config,
            host=folder.host,
            git_commit=git_commit(),
            versions=versions(),
            source=own_source(task.cfg, bank.dataset),
        ),
        scores=NOT_TESTED,
        known=fitted.calibration.known,
        images=tuple(counts),
        text_positive=bank.text_positive.detach().cpu(),
    )
    if fitted.classifier is None or (bank.multilabel and fitted.thresholds is None):
        return model
    transfer = fitted.transfer if isinstance(fitted.transfer, TransferableAdapter) else None
    rule = "zero-shot" if fitted.transfer is zero_shot_transfer else "none" if transfer is None else "adapter"
    count = 0 if model.method == "ZeroShot" else len(bank.train_labels)
    keys, labels = bank.cache_keys()[:count].cpu(), bank.train_labels[:count].cpu()
    return SavedModel(
        **dict(model),
        classifier=fitted.classifier.to("cpu"),
        transfer=transfer and transfer.to("cpu"),
        transfer_rule=rule,
        class_nodes=None if fitted.class_nodes is None else fitted.class_nodes.cpu(),
        labelled=None if bank.multilabel else ClassSums.of(keys, labels, len(counts)),
        thresholds=None if fitted.thresholds is None else fitted.thresholds.cpu(),
        support_set=SupportSet.of(bank, fitted.state) if model.method == OUR_METHOD else None,
    )


def _scores_of_model(record: RunRecord) -> Scores:
    """Return the scores of a record that a model folder stores."""
    scores = {name: getattr(record, name) for name in Scores.model_fields.keys() & RunRecord.model_fields.keys()}
    if calibration := record.calibration:  # None with several labels per image
        scores |= {"ece": calibration.after and calibration.after.ece}
        scores |= {"ece_zero_shot": calibration.zero_shot and calibration.zero_shot.ece}
    return Scores(**scores)
