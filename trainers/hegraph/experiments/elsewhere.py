"""Tests of a trained method on other data sets: domain generalization and transfer to other classes.

Other domains of the same classes (CoOp's and the paper's protocol, Table 1): the trained text classifier is applied
as it is. Classes are matched by what tells them apart across data sets (`Dataset.ids`, which are WordNet ids in
ImageNet and its variants, where names repeat), never by position. Only the columns of the target's classes compete.

Other classes (CoCoOp's protocol: cross-dataset, base to new): HeGraphAdapter transfers as `method/transfer.py` says.
Other methods have a rule of their own; a method without one is not tested.

The test features of a target are read after training, and scored once.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..config import DataOptions
from ..datasets.base import check_classes
from ..features.bank import FeatureBank
from ..method.cache import text_logits
from ..results.records import OTHER_CLASSES, SAME_CLASSES
from ..training.choice import accuracy
from ..utils.errors import UserError
from .out_of_fold import classify_in_batches
from .outcome import Outcome
from .tasks import DomainSource, ImageSource, TargetSource, Task


def score_targets(task: Task, bank: FeatureBank, data: DataOptions, outcome: Outcome) -> dict[str, dict]:
    """Tests on DATASET.TARGET_DOMAINS and DATASET.TARGET_DATASETS.

    Args:
        task: The task that the method was fitted to.
        bank: Its features.
        data: `cfg.data`.
        outcome: What the fitted method can do.

    Returns:
        For the record: name of the target -> accuracy of the method (None where it has no rule) and of zero-shot CLIP
        in percent, number of images and classes, and which of the two rules was applied.

    Raises:
        UserError: If a target cannot be had, or has classes that it must not have.
    """
    if not (data.target_domains or data.target_datasets):
        return {}
    check_targets(task, data)
    found = {}
    for name in data.target_domains:
        assert isinstance(task, DomainSource)
        dataset, features, labels = task.target_images(name)
        features = features.to(bank.train_features.device)
        columns = match_classes(task.dataset.ids, dataset.ids, bank.dataset, name)
        zero_shot = text_logits(features, bank.text_positive, bank.logit_scale)
        logits = classify_in_batches(outcome.classify, features) if outcome.classify else None
        mine = None if logits is None else logits[:, columns]
        found[name] = _scores(mine, zero_shot[:, columns], labels, SAME_CLASSES)
    for name in data.target_datasets:
        assert isinstance(task, TargetSource)
        target = task.target(name).to(bank.train_features.device.type)
        zero_shot = text_logits(target.features_to_classify, target.text_positive, target.logit_scale)
        logits = outcome.transfer(target) if outcome.transfer else None
        found[name] = _scores(logits, zero_shot, target.test_labels, OTHER_CLASSES)
    return found


def check_targets(task: Task, data: DataOptions) -> None:
    """Checks, before anything is trained, that every target can be had; no image is opened.

    Args:
        task: The task that a method will be fitted to.
        data: `cfg.data`.

    Raises:
        UserError: As `score_targets`.
    """
    for name in data.target_domains:
        if not isinstance(task, DomainSource):
            raise UserError("a feature bank has no other data sets; leave out --target-domains")
        ids = task.target_dataset(name).ids
        match_classes(task.dataset.ids, ids, task.dataset.name, name)
        check_classes(len(ids), name)
    for name in data.target_datasets:
        if not isinstance(task, TargetSource):
            raise UserError("features that are given as arrays have no other data sets; leave out --target-datasets")
        task.check_target(name)


def encode_targets(task: Task, data: DataOptions) -> None:
    """Encodes what `score_targets` will test on and is not on disk, with the other processes of `torchrun`; a bank has
    nothing to encode.

    Args:
        task: The task that a method will be fitted to.
        data: `cfg.data`.

    Raises:
        UserError: On an unreadable image, a class without a prompt, or a folder that cannot be written.
    """
    if not isinstance(task, ImageSource):
        return
    for name in data.target_domains:
        assert isinstance(task, DomainSource)
        task.target_images(name)
    for name in data.target_datasets:
        assert isinstance(task, TargetSource)
        task.target(name)


def match_classes(source_ids: Sequence[str], target_ids: Sequence[str], source: str, target: str) -> list[int]:
    """The label in the source of every class of the target, in the target's order.

    Raises:
        UserError: If the source has not all of them.
    """
    labels = {class_id: label for label, class_id in enumerate(source_ids)}
    unknown = [class_id for class_id in target_ids if class_id not in labels]
    if unknown:
        raise UserError(
            f"{len(unknown)} of {len(target_ids)} classes of {target} are none of {source}'s ({', '.join(unknown[:3])}"
            f"{', ...' if len(unknown) > 3 else ''}); with other classes it is tested by --target-datasets {target}"
        )
    return [labels[class_id] for class_id in target_ids]


def _scores(logits: Tensor | None, zero_shot: Tensor, labels: Tensor | None, rule: str) -> dict:
    if labels is None:
        raise ValueError("a target without test images cannot be tested")
    return {
        "accuracy": None if logits is None else accuracy(logits, labels),
        "accuracy_zero_shot": accuracy(zero_shot, labels),
        "num_test": len(labels),
        "num_classes": zero_shot.shape[1],
        "rule": rule,
    }
