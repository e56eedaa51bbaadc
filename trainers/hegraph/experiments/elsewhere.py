"""What was trained on some classes, applied elsewhere: domain generalization and transfer to other classes.

Other domains of the same classes (CoOp's and the paper's protocol, Table 1): the trained text classifier is applied
as it is. Classes are matched by what tells them apart across data sets (`Dataset.ids`; WordNet ids in ImageNet and its
variants, where names repeat), never by position; only the columns of the target's classes compete.

Other classes (CoCoOp's protocol: cross-dataset, base to new): HeGraphAdapter transfers as `transfer.py` says, other
methods by a rule of their own; one that has none is not tested.

Test features of a target are read after training, and scored once.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..method.heads import text_logits
from ..training.evaluation import accuracy
from ..utils.errors import UserError
from .experiment import Experiment, Outcome

SAME_CLASSES, OTHER_CLASSES = "same classes", "other classes"


def score_targets(experiment: Experiment, outcome: Outcome) -> dict[str, dict]:
    """Tests on DATASET.TARGET_DOMAINS and DATASET.TARGET_DATASETS.

    Returns:
        For the record: name of the target -> accuracy of the method (None where it has no rule) and of zero-shot CLIP
        in percent, number of images and classes, and which of the two rules held.

    Raises:
        UserError: If a target cannot be had, or has classes that it must not have.
    """
    data = experiment.cfg.DATASET
    if not (data.TARGET_DOMAINS or data.TARGET_DATASETS):
        return {}
    if not hasattr(experiment.task, "target"):
        raise UserError("a feature bank has no other data sets; leave out --target-domains and --target-datasets")
    found = {}
    for name in data.TARGET_DOMAINS:
        dataset, features, labels = experiment.task.target_images(name)
        columns = match_classes(experiment.task.dataset.ids, dataset.ids, experiment.bank.dataset, name)
        zero_shot = text_logits(features, experiment.bank.text_positive, experiment.bank.logit_scale)
        logits = outcome.classify(features)
        found[name] = _scores(logits[:, columns], zero_shot[:, columns], labels, SAME_CLASSES)
    for name in data.TARGET_DATASETS:
        bank = experiment.task.target(name).to(experiment.device)
        zero_shot = text_logits(bank.test_features, bank.text_positive, bank.logit_scale)
        logits = outcome.transfer(bank) if outcome.transfer else None
        found[name] = _scores(logits, zero_shot, bank.test_labels, OTHER_CLASSES)
    return found


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


def _scores(logits: Tensor | None, zero_shot: Tensor, labels: Tensor, rule: str) -> dict:
    return {
        "accuracy": None if logits is None else accuracy(logits, labels),
        "accuracy_zero_shot": accuracy(zero_shot, labels),
        "num_test": len(labels),
        "num_classes": zero_shot.shape[1],
        "rule": rule,
    }
