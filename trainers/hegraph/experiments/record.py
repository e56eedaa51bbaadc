"""Outputs of a finished run: its record, whose schema is `results.records.RunRecord`, its model and its predictions.

Shapes: K classes, M test images.
"""

import datetime
import logging
import os
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from ..baselines import load_method
from ..baselines.base import FittedMethod, zero_shot_transfer
from ..config import Config
from ..datasets.groups import SharedGroups
from ..datasets.loading import OWN
from ..features.bank import FeatureBank, count_labels
from ..method.model import TransferableAdapter
from ..method.training.choice import accuracy, macro_accuracy, score, score_multilabel
from ..method.training.confidence import Calibration, confidence_scores, known_score
from ..method.training.memory import peak_memory_mb
from ..method.unlabelled import ClassSums
from ..models.folder import save_model
from ..models.saved import NOT_TESTED, SavedModel, Scores, TextTrustRecord, TrainedModel, TrainedOn
from ..models.support_set import SupportSet
from ..results.records import (
    COVERAGE,
    GROUPS,
    OPEN_SET_RATE,
    OTHER_CLASSES,
    PREDICTIONS,
    TEXT_NODES,
    CalibrationRecord,
    GroupsRecord,
    ProbabilitiesRecord,
    RejectionRecord,
    RunRecord,
    SetsRecord,
    TargetRecord,
    write_record,
    write_tensors_with_classes,
)
from ..utils.commit import git_commit, versions
from ..utils.files import hash_json
from .adaptation import AdaptedModel
from .checks import reason_not_saved
from .evaluation import Predictions
from .run_folder import RunFolder, RunIdentity, precision_of
from .tasks import ids_of_names

logger = logging.getLogger(__name__)

# Record keys of the accuracies with one label per image
ACCURACIES = ("accuracy", "macro_accuracy", "macro_accuracy_zero_shot", "accuracy_text", "accuracy_zero_shot")


class Seconds(NamedTuple):
    """Time of encoding or reading the features, and of predicting the test images."""

    features: float
    test: float


def write_outputs(
    folder: RunFolder,
    adapted: AdaptedModel,
    predictions: Predictions,
    device: str | torch.device,
    seconds: Seconds,
    targets: dict[str, TargetRecord] | None = None,
) -> dict:
    """Write the outputs of a run, the record last, remove its checkpoint and return the record.

    Args:
        folder: Output folder, which this process has locked.
        adapted: The tested model, which a training run saves, and its adaptation to unlabelled images.
        predictions: Predictions on the test images.
        device: Device of the computation.
        seconds: Time of features and test.
        targets: Scores on further data sets by name.
    """
    model = adapted.model
    record = make_record(folder, adapted, predictions, device, seconds, targets or {})
    if folder.model is None:
        save_trained(folder, model, _scores_of_model(record))
    if model.fitted is not None and model.fitted.text_nodes is not None:
        before, after = model.fitted.text_nodes
        write_tensors_with_classes(folder.path / TEXT_NODES, predictions.classnames, before=before, after=after)
    write_predictions(folder, predictions)
    values = record.model_dump(exclude_unset=True)
    write_record(folder.path, values)
    if folder.model is None:
        folder.checkpoints.remove()
    return values


def save_trained(folder: RunFolder, model: TrainedModel, scores: Scores) -> None:
    """Write the model folder of a training run, unless its method or its adaptation has no class weights to save."""
    reason = reason_not_saved(folder.task)
    if reason or not isinstance(model, SavedModel):
        logger.info("%s saves no model folder: %s", model.method, reason)
        return
    images = None if model.method == "ZeroShot" else model.images
    ids = () if model.support_set is None else tuple(folder.task.image_ids("train").values())
    changes = {"scores": scores, "images": images, "image_ids": ids or None}
    save_model(model.model_copy(update=changes), folder.model_folder)


def write_predictions(folder: RunFolder, predictions: Predictions) -> None:
    """Write predicted and true labels of the test images; with several labels per image, scores and indicators."""
    logits = predictions.logits
    labels = predictions.labels
    if logits is None or labels is None:
        return
    if labels.dim() == 2:
        tensors = {"scores": logits, "labels": labels.to(torch.uint8)}
    else:
        tensors = {"predicted": logits.argmax(dim=1).int(), "labels": labels.to(torch.int)}
    groups = folder.task.test_groups
    if groups is not None:
        tensors[GROUPS] = torch.tensor(groups)
    path = folder.path / PREDICTIONS
    write_tensors_with_classes(path, predictions.classnames, folder.task.test_files, **tensors)


def make_record(
    identity: RunIdentity,
    adapted: AdaptedModel,
    predictions: Predictions,
    device: str | torch.device,
    seconds: Seconds,
    targets: dict[str, TargetRecord],
) -> RunRecord:
    """Score the predictions and return the record of the run; arguments as in `write_outputs`."""
    model = adapted.model
    labels = predictions.labels
    origin = model.trained_on
    calibration = calibration_of_test(model, predictions)
    fitted = model.fitted
    training_seconds = 0.0 if fitted is None else fitted.seconds
    counts = None if labels is None else count_labels(labels, len(predictions.classnames))
    return RunRecord(
        dataset=predictions.dataset,
        trainer=model.method,
        variant=model.variant,
        epochs=0 if fitted is None else fitted.epochs,
        steps=0 if fitted is None else fitted.steps,
        num_parameters=0 if fitted is None else fitted.num_parameters,
        **origin.model_dump(include={"shots", "num_train", "selected_on", "selected", "split_hash"}),
        backbone=model.backbone.title,
        precision=precision_of(identity.task.identity),
        images_per_class=[min(model.images), max(model.images)] if model.images else None,
        seed=identity.task.seed,
        **scores_on_test(predictions, calibration),
        num_test=0 if labels is None else len(labels),
        # Distinguishes test sets of one name, such as those of a user's own data sets
        test_set=None if counts is None else hash_json([list(predictions.classnames), counts]),
        rejection=rejection_on_test(predictions.logits, calibration),
        prediction_sets=sets_on_test(predictions, calibration),
        targets=targets,
        **adapted.entries,
        **optional_entries(identity, model, predictions),
        adapter_from=None if identity.model is None else str(identity.model),
        config=identity.config,
        config_hash=hash_json(identity.config),
        run_id=identity.run_id,
        host=identity.host,
        versions=versions(),
        git_commit=git_commit(),
        threads=torch.get_num_threads(),
        device="cpu" if torch.device(device).type == "cpu" else torch.cuda.get_device_name(device),
        seconds={
            "features": round(seconds.features, 3),
            "training": round(training_seconds + adapted.seconds, 3),
            "calibration": round(calibration.seconds, 3),
            "test": round(seconds.test, 3),
        },
        peak_memory_mb=peak_memory_mb(),
        finished_at=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )


def optional_entries(identity: RunIdentity, model: TrainedModel, predictions: Predictions) -> dict[str, Any]:
    """Return the entries of a record that only some runs have."""
    origin = model.trained_on
    source = own_source(identity.task.cfg, predictions.dataset)
    entries: dict[str, Any] = {"source": source} if source else {}
    if origin.shots_per_class:
        entries["shots_per_class"] = origin.shots_per_class
    if identity.model is None and (shared := identity.task.shared_groups) is not None:
        entries["groups"] = groups_record(shared)
    if predictions.rule:
        entries |= {"rule": predictions.rule, "num_classes": len(predictions.classnames), "trained_on": origin.title}
    return entries


def calibration_of_test(model: TrainedModel, predictions: Predictions) -> Calibration:
    """Return the calibration of a model on a test set; none for a transfer, or for the text classifier alone.

    The temperature was fitted to the whole model on its own classes.
    """
    is_part = predictions.rule and model.has_text_classifier
    if predictions.rule == OTHER_CLASSES or is_part:
        return Calibration()
    calibration = model.calibration
    if calibration.sets is None or predictions.columns is None:
        return calibration
    return replace(calibration, sets=calibration.sets.of_classes(predictions.columns))


def own_source(cfg: Config, dataset: str) -> str:
    """Return the name of the folder or file of a user's own images; "" for another data set, or if it is unknown."""
    return os.path.basename(os.path.abspath(cfg.data.root)) if cfg.data.root and dataset == OWN else ""


def groups_record(shared: SharedGroups) -> GroupsRecord:
    """Return the entry of a record on groups that train shares with val and test."""
    return GroupsRecord(
        num_groups=shared.groups,
        val_in_train=100 * shared.val_in_train / shared.val if shared.val else None,
        test_in_train=100 * shared.test_in_train / shared.test if shared.test else None,
        warning=shared.warning or None,
    )


def scores_on_test(predictions: Predictions, calibration: Calibration) -> dict[str, Any]:
    """Return the entries of a record about the predictions and their probabilities; None where nothing was tested.

    "accuracy", "macro_accuracy" and "macro_f1" are of the method, "accuracy_text" is of HeGraphAdapter's text
    classifier.
    """
    fitted = {key: getattr(calibration, key) for key in ("temperature", "fitted_on", "num_images")}
    logits = predictions.logits
    text = predictions.text_logits
    zero_shot = predictions.zero_shot
    labels = predictions.labels
    if logits is None or labels is None:
        logger.warning("%s has no test images: nothing is scored", predictions.dataset)
        nothing = dict.fromkeys((*ACCURACIES, "macro_f1"))
        return nothing | {"calibration": CalibrationRecord(**fitted, before=None, after=None, zero_shot=None)}
    if labels.dim() == 2:
        names = ids_of_names(predictions.classnames)
        of_clip = None if zero_shot is None else score_multilabel(zero_shot, labels, names)["map"]
        own = score_multilabel(logits, labels, names, predictions.thresholds)
        return dict.fromkeys(ACCURACIES) | own | {"map_zero_shot": of_clip}
    scores: dict[str, Any] = score(logits, labels)
    before, after = (
        ProbabilitiesRecord(**scores, **confidence_scores(logits, labels, at)) for at in (1.0, calibration.temperature)
    )
    calibrated = CalibrationRecord(**fitted, before=before, after=after, zero_shot=zero_shot_probabilities(predictions))
    return scores | {
        "macro_accuracy": macro_accuracy(logits, labels),
        "macro_accuracy_zero_shot": None if zero_shot is None else macro_accuracy(zero_shot, labels),
        "accuracy_text": None if text is None else accuracy(text, labels),
        "accuracy_zero_shot": None if zero_shot is None else accuracy(zero_shot, labels),
        "calibration": calibrated,
    }


def zero_shot_probabilities(predictions: Predictions) -> ProbabilitiesRecord | None:
    """Return the scores of zero-shot CLIP without bins; None without class texts."""
    logits = predictions.zero_shot
    labels = predictions.labels
    if logits is None or labels is None:
        return None
    scores = score(logits, labels) | confidence_scores(logits, labels)
    del scores["bins"]
    return ProbabilitiesRecord(**scores)


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


def sets_on_test(predictions: Predictions, calibration: Calibration) -> SetsRecord | None:
    """Return coverage and size of the prediction sets of the test images; None if too few images were held out."""
    scores = calibration.sets
    if scores is None or not scores.supports(COVERAGE):
        return None
    values: dict[str, Any] = {
        "nominal": COVERAGE,
        "threshold": scores.threshold(COVERAGE),
        "num_images": scores.number,
        "of_zero_shot": scores.of_zero_shot,
        **dict.fromkeys(("coverage", "mean_size", "single")),
    }
    of_sets = predictions.zero_shot if scores.of_zero_shot else predictions.logits
    if predictions.logits is not None and predictions.labels is not None and of_sets is not None:
        sets = scores.sets_of(of_sets, predictions.logits.argmax(dim=1), COVERAGE)
        covered = sets.gather(1, predictions.labels.unsqueeze(1)).double()
        sizes = sets.sum(dim=1).double()
        values["coverage"] = 100 * covered.mean().item()
        values["mean_size"] = sizes.mean().item()
        values["single"] = 100 * (sizes == 1).double().mean().item()
    return SetsRecord(**values)


def make_model(identity: RunIdentity, bank: FeatureBank, fitted: FittedMethod) -> TrainedModel:
    """Return the model of a method that was fitted to a bank, on the CPU: a `SavedModel` if it has class weights.

    Args:
        identity: Task and configuration of the training.
        bank: Features of the task.
        fitted: Result of `fit` and `calibrate`. The model does not keep it (see `TrainedModel.fitted`).
    """
    task = identity.task
    backbone, preprocessing, prompts = task.encoding_metadata(bank)
    counts = count_labels(bank.train_labels, len(bank.classnames))
    transfer = fitted.transfer if isinstance(fitted.transfer, TransferableAdapter) else None
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
            split_hash=identity.split_hash,
            selected_on="val" if fitted.selected else "last_step",
            selected=fitted.selected,
            config=identity.config,
            host=identity.host,
            git_commit=git_commit(),
            versions=versions(),
            source=own_source(task.cfg, bank.dataset),
        ),
        scores=NOT_TESTED,
        known=fitted.calibration.known,
        sets=fitted.calibration.sets,
        images=tuple(counts),
        text_trust=text_trust_of(bank, fitted),
        text_positive=bank.text_positive.detach().cpu(),
        thresholds=None if fitted.thresholds is None else fitted.thresholds.cpu(),
        transfer=None if transfer is None else transfer.to("cpu"),
        transfer_rule=transfer_rule(fitted),
    )
    if fitted.classifier is None or (bank.multilabel and fitted.thresholds is None):
        return model
    stores_support_set = load_method(model.method).stores_support_set
    return SavedModel(
        **(dict(model) | {"classifier": fitted.classifier.to("cpu")}),
        class_nodes=None if fitted.class_nodes is None else fitted.class_nodes.cpu(),
        labelled=None if bank.multilabel else labelled_sums(model.method, bank),
        support_set=SupportSet.of(bank, fitted.state) if stores_support_set else None,
    )


def text_trust_of(bank: FeatureBank, fitted: FittedMethod) -> TextTrustRecord | None:
    """Return the trust in the text of the classes; None without an estimate, or if class means stand in as text."""
    if fitted.trusted is None or not bank.has_text:
        return None
    return TextTrustRecord.of(fitted.trusted.trust)


def transfer_rule(fitted: FittedMethod) -> str:
    """Return the rule for unseen classes that a model folder stores."""
    if fitted.transfer is zero_shot_transfer:
        return "zero-shot"
    return "adapter" if isinstance(fitted.transfer, TransferableAdapter) else "none"


def labelled_sums(method: str, bank: FeatureBank) -> ClassSums:
    """Return the sums over the labelled images for an adaptation to unlabelled images; ZeroShot uses none."""
    count = 0 if method == "ZeroShot" else len(bank.train_labels)
    keys = bank.cache_keys()[:count].cpu()
    labels = bank.train_labels[:count].cpu()
    return ClassSums.of(keys, labels, len(bank.classnames))


def _scores_of_model(record: RunRecord) -> Scores:
    """Return the scores of a record that a model folder stores."""
    scores = {name: getattr(record, name) for name in Scores.model_fields.keys() & RunRecord.model_fields.keys()}
    if calibration := record.calibration:  # None with several labels per image
        scores |= {"ece": calibration.after and calibration.after.ece}
        scores |= {"ece_zero_shot": calibration.zero_shot and calibration.zero_shot.ece}
    return Scores(**scores)
