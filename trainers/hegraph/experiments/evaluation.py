"""Test of a model on the images of any data set, after the training and with `--eval-only`.

The classes decide the rule of the test:

- Known classes, on the data set of the training or in other domains (CoOp's and the paper's protocol, Table 1): in
  another domain HeGraphAdapter's text classifier is tested without its cache. Classes are matched by `Task.class_ids`,
  never by position, and only the classes of the target compete.
- Other classes (CoCoOp's protocol: cross-dataset, base to new): HeGraphAdapter transfers by `TransferableAdapter`,
  other methods by a rule of their own. A method without a rule is not tested.

Shapes: M images, K classes, d feature width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..baselines.base import Transfer, zero_shot_transfer
from ..datasets.base import check_classes
from ..method.cache import text_logits
from ..method.training.choice import accuracy
from ..models.saved import TrainedModel
from ..results.records import OTHER_CLASSES, SAME_CLASSES, TargetRecord
from ..utils.errors import UserError
from .calibration import check_finite, classify_in_batches
from .tasks import Task, match_classes

Device = str | torch.device


@dataclass(frozen=True)
class Predictions:
    """Predictions on the M test images of a data set with K classes; None where nothing was predicted.

    Attributes:
        dataset, classnames: Name of the data set, and of its classes.
        logits, text_logits, zero_shot: Logits of the method, of HeGraphAdapter's text classifier alone, and of
            zero-shot CLIP, each `[M, K]`. Without class texts, there is no zero-shot CLIP.
        labels: Classes of the test images, `[M]`; with several labels per image, booleans `[M, K]`.
        rule: "" on the data set of the training, else `SAME_CLASSES` or `OTHER_CLASSES`.
        thresholds: Least logit with which a label is predicted, shape `[K]`, as in `TrainedModel`.
        columns: Position of each class among the classes of the model; None if nothing was predicted, or the classes
            are others.
    """

    dataset: str
    classnames: Sequence[str]
    logits: Tensor | None = None
    text_logits: Tensor | None = None
    zero_shot: Tensor | None = None
    labels: Tensor | None = None
    rule: str = ""
    thresholds: Tensor | None = None
    columns: Sequence[int] | None = None


def rule_for(model: TrainedModel, target: Task) -> str:
    """Return the rule of a test: "" on the data set and classes of the training, `SAME_CLASSES` or `OTHER_CLASSES`.

    `SAME_CLASSES` applies if the model knows all classes of the target.
    """
    if not set(target.class_ids) <= set(model.class_ids):
        return OTHER_CLASSES
    own = target.name == model.trained_on.dataset and list(target.class_ids) == list(model.class_ids)
    return "" if own else SAME_CLASSES


def evaluate(
    model: TrainedModel, target: Task, device: Device, rule: str | None = None, logits: Tensor | None = None
) -> Predictions:
    """Predict the test images of a target with a model, whether it was just fitted or loaded.

    Args:
        model: The model.
        target: Task with the test images.
        device: Device of the computation.
        rule: Rule of the test; None: the rule of `rule_for`.
        logits: Logits `[M, K]` of the test images for the classes of the model, if an adaptation to these images has
            predicted them already.

    Raises:
        UserError: If the features have another width, a logit is not finite, the target has a single class, or the
            method does not transfer to its classes.
    """
    check_classes(len(target.class_ids), target.name)
    rule = rule_for(model, target) if rule is None else rule
    if rule != OTHER_CLASSES:
        predictions = test_known_classes(model, target, device, rule, logits)
    else:
        transfer = model.transfer_function(device)
        if transfer is None:
            raise UserError(f"{model.method} has no rule for other classes than its own; test it on those", "run.rule")
        predictions = test_other_classes(model, transfer, target, device)
    if predictions.logits is not None:
        check_finite(predictions.logits)
    return predictions


def test_known_classes(
    model: TrainedModel, target: Task, device: Device, rule: str, logits: Tensor | None = None
) -> Predictions:
    """Test a model on classes that it was fitted to; arguments and errors as in `evaluate`."""
    columns = match_classes(model.class_ids, target.class_ids, model.trained_on.dataset, target.name)
    features, labels = target.test_features()
    if features is None or labels is None:
        return Predictions(target.name, target.classnames)
    features = _checked_features(model, features, device)
    zero_shot = None
    if model.has_text:
        zero_shot = text_logits(features, model.text_positive.to(device)[columns], model.logit_scale)
    text = None
    if logits is None:
        logits, text = _known_logits(model, features, device, in_domain=not rule)
    return Predictions(
        target.name,
        target.classnames,
        logits[:, columns],
        None if text is None else text[:, columns],
        zero_shot,
        labels.to(device),
        rule,
        None if model.thresholds is None else model.thresholds.to(device)[columns],
        columns,
    )


def test_other_classes(model: TrainedModel, transfer: Transfer, target: Task, device: Device) -> Predictions:
    """Test a model on unseen classes, by its `transfer`; arguments and errors as in `evaluate`."""
    bank = target.test_bank().to(str(device))
    features = _checked_features(model, bank.features_to_classify, device)
    zero_shot = zero_shot_transfer(replace(bank, test_features=features))
    logits = transfer(bank)
    text = logits if model.has_text_classifier else None
    return Predictions(target.name, target.classnames, logits, text, zero_shot, bank.test_labels, OTHER_CLASSES)


def _checked_features(model: TrainedModel, features: Tensor, device: Device) -> Tensor:
    """Move features to a device; UserError if they have another width than those of the model."""
    width = model.text_positive.shape[1]
    if features.shape[1] != width:
        raise UserError(f"the model takes features of width {width}, got {features.shape[1]}")
    return features.to(device)


@torch.no_grad()
def _known_logits(
    model: TrainedModel, features: Tensor, device: Device, in_domain: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the logits of a model and of its text classifier, if any; in other domains they are the same."""
    if model.classifier is not None and model.has_text_classifier:
        classifier = model.classifier if in_domain else model.classifier.text_only()  # the cache fits training images
        parts = classifier.to(device).parts(features)
        return classifier.combine(parts), parts.text
    classify = model.predictor(device)
    logits = classify(features) if model.is_transductive else classify_in_batches(classify, features)
    return logits, None


# Further data sets at the end of a training run


def encode_targets(task: Task) -> None:
    """Encode the images that `score_targets` tests, unless their features are on disk."""
    for _, target, rule in task.targets:
        encode_test_images(target, rule)


def encode_test_images(target: Task, rule: str) -> None:
    """Encode what the test of a target by a rule needs, unless the features are on disk."""
    _ = target.test_bank() if rule == OTHER_CLASSES else target.test_features()


def score_targets(model: TrainedModel, task: Task, device: Device) -> dict[str, TargetRecord]:
    """Test a model on the further data sets of a task."""
    scores = {}
    for name, target, rule in task.targets:
        predictions = evaluate(model, target, device, rule)
        # `check_training` refuses a target without test images, or one that the method cannot classify
        assert predictions.labels is not None and predictions.logits is not None
        zero_shot = predictions.zero_shot
        scores[name] = TargetRecord(
            accuracy=accuracy(predictions.logits, predictions.labels),
            accuracy_zero_shot=None if zero_shot is None else accuracy(zero_shot, predictions.labels),
            num_test=len(predictions.labels),
            num_classes=predictions.logits.shape[1],
            rule=rule,
        )
    return scores
