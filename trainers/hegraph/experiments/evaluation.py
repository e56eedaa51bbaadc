"""Test of a trained method on the images of any data set, after training as with `--eval-only`.

The classes decide the rule of the test:

- Known classes, on the data set of the training or in other domains (CoOp's and the paper's protocol, Table 1): in
  another domain HeGraphAdapter's text classifier is tested without its cache. Classes are matched by `Task.class_ids`,
  never by position, and only the classes of the target compete.
- Other classes (CoCoOp's protocol: cross-dataset, base to new): HeGraphAdapter transfers by `TransferableAdapter`,
  other methods by a rule of their own. A method without a rule is not tested.

Shapes: M images, K classes, d feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..baselines.base import FittedMethod, Transfer, zero_shot_transfer
from ..datasets.base import check_classes
from ..features.bank import FeatureBank
from ..method.cache import text_logits
from ..models.saved import SavedModel, TrainedOn
from ..results.records import OTHER_CLASSES, SAME_CLASSES, TargetRecord
from ..training.choice import accuracy
from ..training.confidence import Calibration
from ..utils.commit import git_commit, versions
from ..utils.errors import UserError
from .fitting import classify_in_batches
from .run_folder import RunFolder
from .tasks import Task, Tested, match_classes


@dataclass(frozen=True)
class TrainedMethod:
    """Fitted method with its training and the classes that it knows.

    Attributes:
        method: Name of the method.
        trained_on: Origin of the method, as a model folder stores it.
        backbone: Title of the backbone.
        images: Number of training images of each class; None if unknown.
        class_ids: Identifiers of its K classes across data sets.
        text_positive, logit_scale: Text features `[K, d]` and `tau` of zero-shot CLIP.
    """

    fitted: FittedMethod
    method: str
    trained_on: TrainedOn
    backbone: str
    images: Sequence[int] | None
    class_ids: Sequence[str]
    text_positive: Tensor
    logit_scale: float

    @classmethod
    def of_run(cls, folder: RunFolder, bank: FeatureBank, fitted: FittedMethod) -> TrainedMethod:
        """Return a method that a run has fitted to a bank."""
        task, counts = folder.task, bank.train_labels.bincount(minlength=len(bank.classnames)).tolist()
        trained_on = TrainedOn(
            dataset=bank.dataset,
            shots=task.cfg.data.shots,
            seed=task.seed,
            num_train=sum(counts),
            split_hash=folder.split_hash,
            selected_on="val" if fitted.selected else "last_step",
            selected=fitted.selected,
            config=folder.config,
            host=folder.host,
            git_commit=git_commit(),
            versions=versions(),
        )
        name, text, scale = task.cfg.run.trainer, bank.text_positive, bank.logit_scale
        return cls(fitted, name, trained_on, bank.backbone, counts, task.class_ids, text, scale)

    @classmethod
    def loaded(cls, model: SavedModel, device: str) -> TrainedMethod:
        """Return the method of a model folder."""
        classifier = model.classifier.to(device)
        transfer: Transfer | None = zero_shot_transfer if model.transfer_rule == "zero-shot" else None
        if model.transfer is not None:
            adapter = model.transfer.to(device)

            def transfer(bank: FeatureBank) -> Tensor:
                return adapter(replace(bank, logit_scale=model.logit_scale))

        # A fitted temperature is never exactly 1, so 1 means that none was fitted
        fitted_on = "nothing" if model.temperature == 1 else "model"
        fitted = FittedMethod(
            classifier.logits,
            transfer=transfer,
            classifier=classifier,
            variant=model.variant,
            calibration=Calibration(model.temperature, fitted_on, known=model.known),
        )
        backbone, text = model.backbone.title, model.text_positive.to(device)
        return cls(
            fitted, model.method, model.trained_on, backbone, model.images, model.class_ids, text, model.logit_scale
        )

    def rule_for(self, target: Task) -> str:
        """Return the rule of a test: "" on the data set and classes of the training, `SAME_CLASSES` or `OTHER_CLASSES`.

        `SAME_CLASSES` applies if the method knows all classes of the target.
        """
        if not set(target.class_ids) <= set(self.class_ids):
            return OTHER_CLASSES
        own = target.name == self.trained_on.dataset and list(target.class_ids) == list(self.class_ids)
        return "" if own else SAME_CLASSES


def evaluate(trained: TrainedMethod, target: Task, device: str | torch.device, rule: str | None = None) -> Tested:
    """Predict the test images of a target by a rule, by default that of `TrainedMethod.rule_for`.

    Raises:
        UserError: If the features have another width, a logit is not finite, or the target has a single class.
    """
    check_classes(len(target.class_ids), target.name)
    rule = trained.rule_for(target) if rule is None else rule
    if rule == OTHER_CLASSES:
        return test_other_classes(trained, target, device)
    return test_known_classes(trained, target, device, rule)


def test_known_classes(trained: TrainedMethod, target: Task, device: str | torch.device, rule: str) -> Tested:
    """Test a method on classes that it was fitted to; errors as of `evaluate`."""
    columns = match_classes(trained.class_ids, target.class_ids, trained.trained_on.dataset, target.name)
    features, labels = target.test_features()
    if features is None:
        return Tested(target.name, target.classnames)
    features = _on_device(trained, features, device)
    zero_shot = text_logits(features, trained.text_positive[columns], trained.logit_scale)
    logits, text = _known_logits(trained.fitted, features, in_domain=not rule)
    text = None if text is None else text[:, columns]
    return _tested(trained, target, logits[:, columns], text, zero_shot, labels, rule)


def test_other_classes(trained: TrainedMethod, target: Task, device: str | torch.device) -> Tested:
    """Test a method on unseen classes, by its transfer; errors as of `evaluate`."""
    bank = target.test_bank().to(str(device))
    features = _on_device(trained, bank.features_to_classify, device)
    zero_shot = text_logits(features, bank.text_positive, bank.logit_scale)
    logits = None if trained.fitted.transfer is None else trained.fitted.transfer(bank)
    text = None if trained.fitted.text_classifier is None else logits
    return _tested(trained, target, logits, text, zero_shot, bank.test_labels, OTHER_CLASSES)


def _on_device(trained: TrainedMethod, features: Tensor, device: str | torch.device) -> Tensor:
    width = trained.text_positive.shape[1]
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


def _tested(
    trained: TrainedMethod,
    target: Task,
    logits: Tensor | None,
    text: Tensor | None,
    zero_shot: Tensor,
    labels: Tensor | None,
    rule: str,
) -> Tested:
    if logits is not None and not logits.isfinite().all():
        raise UserError(f"{trained.method} predicts NaN or infinite logits")
    labels = None if labels is None else labels.to(zero_shot.device)
    return Tested(target.name, target.classnames, logits, text, zero_shot, labels, rule)


# Further data sets at the end of a training run


def encode_targets(task: Task) -> None:
    """Encode the images that `score_targets` tests, unless their features are on disk."""
    for _, target, rule in task.targets:
        _ = target.test_features() if rule == SAME_CLASSES else target.test_bank()


def score_targets(trained: TrainedMethod, task: Task, device: str | torch.device) -> dict[str, TargetRecord]:
    """Test a method on the further data sets of a task."""
    scores = {}
    for name, target, rule in task.targets:
        tested = evaluate(trained, target, device, rule)
        # `check_training` refuses a target without test images, or one that the method cannot classify
        assert tested.labels is not None and tested.zero_shot is not None and tested.logits is not None
        scores[name] = TargetRecord(
            accuracy=accuracy(tested.logits, tested.labels),
            accuracy_zero_shot=accuracy(tested.zero_shot, tested.labels),
            num_test=len(tested.labels),
            num_classes=tested.zero_shot.shape[1],
            rule=rule,
        )
    return scores
