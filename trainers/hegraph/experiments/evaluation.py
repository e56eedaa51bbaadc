"""Test of a trained method on the images of any data set, after the training and with `--eval-only`.

The classes decide the rule of the test:

- Known classes, on the data set of the training or in other domains (CoOp's and the paper's protocol, Table 1): in
  another domain HeGraphAdapter's text classifier is tested without its cache. Classes are matched by `Task.class_ids`,
  never by position, and only the classes of the target compete.
- Other classes (CoCoOp's protocol: cross-dataset, base to new): HeGraphAdapter transfers by `TransferableAdapter`,
  other methods by a rule of their own. A method without a rule is not tested.

Shapes: M images, K classes, d feature width.
"""

from dataclasses import replace

import torch
from torch import Tensor

from ..baselines.base import FittedMethod, Transfer, zero_shot_transfer
from ..datasets.base import check_classes
from ..features.bank import FeatureBank
from ..method.cache import text_logits
from ..method.training.choice import accuracy
from ..method.training.confidence import Calibration
from ..models.saved import SavedModel, TrainedModel
from ..results.records import OTHER_CLASSES, SAME_CLASSES, TargetRecord
from ..utils.errors import UserError
from .fitting import check_finite, classify_in_batches
from .tasks import Predictions, Task, match_classes


def fitted_model(model: SavedModel, device: str) -> FittedMethod:
    """Return the method of a model folder."""
    classifier = model.classifier.to(device)
    transfer: Transfer | None = zero_shot_transfer if model.transfer_rule == "zero-shot" else None
    if model.transfer is not None:
        adapter = model.transfer.to(device)

        def transfer(bank: FeatureBank) -> Tensor:
            return adapter(replace(bank, logit_scale=model.logit_scale))

    # A fitted temperature is never exactly 1, so 1 means that none was fitted
    calibration = Calibration(model.temperature, "nothing" if model.temperature == 1 else "model", known=model.known)
    return FittedMethod(
        classifier.logits,
        transfer=transfer,
        classifier=classifier,
        variant=model.variant,
        calibration=calibration,
        thresholds=None if model.thresholds is None else model.thresholds.to(device),
    )


def rule_for(model: TrainedModel, target: Task) -> str:
    """Return the rule of a test: "" on the data set and classes of the training, `SAME_CLASSES` or `OTHER_CLASSES`.

    `SAME_CLASSES` applies if the model knows all classes of the target.
    """
    if not set(target.class_ids) <= set(model.class_ids):
        return OTHER_CLASSES
    own = target.name == model.trained_on.dataset and list(target.class_ids) == list(model.class_ids)
    return "" if own else SAME_CLASSES


def evaluate(
    fitted: FittedMethod, model: TrainedModel, target: Task, device: str | torch.device, rule: str | None = None
) -> Predictions:
    """Predict the test images of a target with the method of a model, by a rule (default: that of `rule_for`).

    Raises:
        UserError: If the features have another width, a logit is not finite, the target has a single class, or the
            method does not transfer to its classes.
    """
    check_classes(len(target.class_ids), target.name)
    rule = rule_for(model, target) if rule is None else rule
    if rule != OTHER_CLASSES:
        predictions = test_known_classes(fitted, model, target, device, rule)
    elif fitted.transfer is not None:
        predictions = test_other_classes(fitted, fitted.transfer, model, target, device)
    else:
        raise UserError(f"{model.method} has no rule for other classes than its own; test it on those", "run.rule")
    if predictions.logits is not None:
        check_finite(predictions.logits)
    return predictions


def test_known_classes(
    fitted: FittedMethod, model: TrainedModel, target: Task, device: str | torch.device, rule: str
) -> Predictions:
    """Test a method on classes that it was fitted to; arguments and errors as of `evaluate`."""
    columns = match_classes(model.class_ids, target.class_ids, model.trained_on.dataset, target.name)
    features, labels = target.test_features()
    if features is None or labels is None:
        return Predictions(target.name, target.classnames)
    features, text_positive = _checked_features(model, features, device), model.text_positive.to(device)
    zero_shot = text_logits(features, text_positive[columns], model.logit_scale)
    logits, text = _known_logits(fitted, features, in_domain=not rule)
    text = None if text is None else text[:, columns]
    thresholds = None if fitted.thresholds is None else fitted.thresholds[columns]
    logits, labels = logits[:, columns], labels.to(device)
    return Predictions(target.name, target.classnames, logits, text, zero_shot, labels, rule, thresholds)


def test_other_classes(
    fitted: FittedMethod, transfer: Transfer, model: TrainedModel, target: Task, device: str | torch.device
) -> Predictions:
    """Test a method on unseen classes, by its `transfer`; arguments and errors as of `evaluate`."""
    bank = target.test_bank().to(str(device))
    features = _checked_features(model, bank.features_to_classify, device)
    zero_shot = zero_shot_transfer(replace(bank, test_features=features))
    logits = transfer(bank)
    text = None if fitted.text_classifier is None else logits
    return Predictions(target.name, target.classnames, logits, text, zero_shot, bank.test_labels, OTHER_CLASSES)


def _checked_features(model: TrainedModel, features: Tensor, device: str | torch.device) -> Tensor:
    """Move features to a device; UserError if they have another width than those of the model."""
    width = model.text_positive.shape[1]
    if features.shape[1] != width:
        raise UserError(f"the model takes features of width {width}, got {features.shape[1]}")
    return features.to(device)


@torch.no_grad()
def _known_logits(fitted: FittedMethod, features: Tensor, in_domain: bool) -> tuple[Tensor, Tensor | None]:
    """Return the logits of a method and of its text classifier, if any; in other domains they are the same."""
    if fitted.text_classifier is None or fitted.classifier is None:
        return fitted.logits(features) if fitted.transductive else classify_in_batches(fitted.logits, features), None
    parts = (fitted.classifier if in_domain else fitted.text_classifier).parts(features)
    return fitted.classifier.combine(parts), parts.text


# Further data sets at the end of a training run


def encode_targets(task: Task) -> None:
    """Encode the images that `score_targets` tests, unless their features are on disk."""
    for _, target, rule in task.targets:
        _ = target.test_features() if rule == SAME_CLASSES else target.test_bank()


def score_targets(
    fitted: FittedMethod, model: TrainedModel, task: Task, device: str | torch.device
) -> dict[str, TargetRecord]:
    """Test a method on the further data sets of a task."""
    scores = {}
    for name, target, rule in task.targets:
        predictions = evaluate(fitted, model, target, device, rule)
        # `check_training` refuses a target without test images, or one that the method cannot classify
        assert predictions.labels is not None and predictions.zero_shot is not None and predictions.logits is not None
        scores[name] = TargetRecord(
            accuracy=accuracy(predictions.logits, predictions.labels),
            accuracy_zero_shot=accuracy(predictions.zero_shot, predictions.labels),
            num_test=len(predictions.labels),
            num_classes=predictions.zero_shot.shape[1],
            rule=rule,
        )
    return scores
