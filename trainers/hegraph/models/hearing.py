"""A trained model hears images without labels (`method/unlabelled.py`), and is a model as before.

Shapes: M unlabelled images, K classes, d feature width.
"""

from __future__ import annotations

from torch import Tensor

from ..method.class_sums import ClassSums
from ..method.unlabelled import Heard, hear_unlabelled
from ..training.memory import refuse_beyond_memory
from ..utils.errors import UserError
from .saved import SavedModel, Scores

COPIES = 4  # of the logits of all unlabelled images, that hearing them holds at once
FLOAT = 4  # bytes


def hear(model: SavedModel, features: Tensor, device: str) -> tuple[SavedModel, Heard]:
    """A model whose classifier has heard unlabelled images, on the CPU, and what was heard.

    What was measured of the model as it was, scores of test images and of known ones, does not hold any more and goes.
    It hears once: what it knew of the labelled images goes, too.

    Args:
        model: One that has heard none.
        features: Unit-norm features of the images, shape `[M, d]`.
        device: Where to compute.

    Raises:
        UserError: As `check_hearing`.
    """
    labelled = check_hearing(model.labelled, features, model.classifier.width, device)
    heard = hear_unlabelled(
        model.classifier.to(device),
        labelled,
        model.text_positive.to(device),
        features.to(device),
        model.logit_scale,
        model.temperature,
    )
    changed = {
        "classifier": heard.classifier.to("cpu"),
        "unlabelled": len(features),
        "known": None,
        "labelled": None,
        "scores": Scores(accuracy=None, accuracy_text=None, accuracy_zero_shot=None, macro_f1=None, num_test=0),
    }
    return model.model_copy(update=changed), heard


def check_hearing(labelled: ClassSums | None, features: Tensor, width: int, device: str) -> ClassSums:
    """What a model knows of its labelled images, on the device; it can hear unlabelled ones.

    Raises:
        UserError: If the model knows none, there is no unlabelled image, they are of another width or not finite, or
            hearing them would take more memory than is free.
    """
    if labelled is None:
        raise UserError(
            "the model has heard unlabelled images before, or is of a version that kept nothing of its labelled ones; "
            "train it again"
        )
    if not len(features):
        raise UserError("there is no unlabelled image to hear")
    if features.shape[1] != width or not features.isfinite().all():
        raise UserError(
            f"unlabelled images need finite features of width {width}, got width {features.shape[1]}"
            + ("" if features.isfinite().all() else " with NaN or infinite values")
        )
    count, num_classes = len(features), len(labelled.counts)
    takes = COPIES * FLOAT * count * num_classes
    refuse_beyond_memory(takes, f"{count} unlabelled images of {num_classes} classes", device)
    return labelled.to(device)
