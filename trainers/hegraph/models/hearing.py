"""A trained model hears images without labels (`method/unlabelled.py`), and is a model as before.

Shapes: M unlabelled images, K classes, d feature width.
"""

from __future__ import annotations

from torch import Tensor

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
        UserError: If the model does not know its labelled images, there is no image, they are of another width or not
            finite, or hearing them would take more memory than is free.
    """
    if model.labelled is None:
        why = "has heard unlabelled images before" if model.unlabelled else "is of a version that kept none of them"
        raise UserError(
            f"the model knows no labelled images to hear unlabelled ones with, since it {why}; train it again"
        )
    count, width = features.shape
    if not count:
        raise UserError("there is no unlabelled image to hear")
    if width != model.classifier.width or not features.isfinite().all():
        raise UserError(
            f"unlabelled images need finite features of width {model.classifier.width}, got width {width}"
            + ("" if features.isfinite().all() else " with NaN or infinite values")
        )
    check_memory(count, len(model.classnames), device)
    heard = hear_unlabelled(
        model.classifier.to(device),
        model.labelled.to(device),
        model.text_positive.to(device),
        features.to(device),
        model.logit_scale,
        model.temperature,
    )
    changed = {
        "classifier": heard.classifier.to("cpu"),
        "unlabelled": count,
        "known": None,
        "labelled": None,
        "scores": Scores(accuracy=None, accuracy_text=None, accuracy_zero_shot=None, macro_f1=None, num_test=0),
    }
    return model.model_copy(update=changed), heard


def check_memory(num_images: int, num_classes: int, device: str) -> None:
    """Raises UserError if hearing so many images would take more memory than is free."""
    takes = COPIES * FLOAT * num_images * num_classes
    refuse_beyond_memory(takes, f"{num_images} unlabelled images of {num_classes} classes", device)
