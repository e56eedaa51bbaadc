"""Labels in annotations of Label Studio, and predictions in its form."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...estimator.labels.suggest import suggest
from ...models.images import ImageModel
from ...utils.reading import validate
from .studio_requests import AnnotatedTask, Chosen, Labeling


def newest_labels(task: AnnotatedTask, labeling: Labeling) -> list[str] | None:
    """Labels of the newest annotation of a task; None without an annotation, and for a skipped task.

    An annotation without a choice is an image without labels if an image may have several, and otherwise None. Results
    of other tags, and relations between results, are not read.

    Raises:
        UserError: If the result of the annotation is damaged, or not one of choices.
    """
    annotation = task.newest
    if annotation is None:
        return None
    where = f"result of annotation {annotation.id}"
    for item in validate(list[dict[str, Any]], annotation.result or [], where):
        if item.get("from_name") == labeling.control:
            return validate(Chosen, item.get("value"), where).choices
    return [] if labeling.several else None


def order_of(model: ImageModel, pool: dict[int, Tensor]) -> dict[int, float]:
    """Scores of unlabelled tasks from their features: 0 for the task to label first, below 1 for the last."""
    if not pool:
        return {}
    tasks = [*pool]
    features = torch.stack([*pool.values()])
    thresholds = model.model.thresholds
    if thresholds is None:
        order = suggest(model.model, features, len(tasks))
    else:  # first the image with the logit that is nearest to its threshold
        order = (model.logits(features) - thresholds).abs().amin(dim=1).argsort(stable=True).tolist()
    return {tasks[index]: rank / len(tasks) for rank, index in enumerate(order)}


def results_of(model: ImageModel, features: Sequence[Tensor], labeling: Labeling) -> list[list[dict[str, Any]]]:
    """Results of images with features `[d]` each: predicted choices, and the probability of the least probable one.

    Classes that are no choices of the project are not predicted.
    """
    saved = model.model
    choices = [labeling.choice_of(name) for name in saved.classnames]
    columns = [index for index, choice in enumerate(choices) if choice is not None]
    if not columns or not features:
        return [[] for _ in features]
    logits = model.logits(torch.stack([*features]))[:, columns]
    probabilities = saved.calibrate(logits)
    if saved.thresholds is None:
        chosen = logits.argmax(dim=1, keepdim=True) == torch.arange(len(columns))
    else:
        chosen = logits >= saved.thresholds[columns]
    results = []
    for row, values in zip(chosen, probabilities):
        names = [choices[columns[index]] for index in row.nonzero().flatten().tolist()]
        result = {"from_name": labeling.control, "to_name": labeling.image, "type": "choices"}
        score = {"value": {"choices": names}, "score": round(float(values[row].min()), 4)} if names else {}
        results.append([result | score] if names else [])
    return results
