"""Adaptation of a trained method to unlabelled images, which `DATASET.UNLABELLED` names.

There are two protocols, and no table mixes their scores with each other or with inductive ones:

- semi-supervised: the pool holds no test image, and each test image is predicted on its own;
- transductive: the pool is the test images, so that each prediction depends on all of them.

Shapes: M images, K classes, d feature width.
"""

import logging
import time
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..baselines import TRANSDUCTIVE_METHODS
from ..datasets.base import refuse_tested
from ..features.copies import copied_rows
from ..models.saved import SavedModel, TrainedModel, adapt, check_adaptable
from ..results.records import SEMI_SUPERVISED, TRANSDUCTIVE
from ..utils.devices import wait_for
from ..utils.errors import UserError
from ..utils.files import hash_content
from .tasks import TEST_SET, Task

logger = logging.getLogger(__name__)


def read_unlabelled(task: Task, text: Tensor, backbone: str, device: str) -> Tensor:
    """Encode or read the unlabelled images that the configuration of a task names.

    Args:
        task: Task with the unlabelled images and the test images.
        text: Text features `[K, d]` of the method.
        backbone: Backbone of the method's features.
        device: Device of the adaptation, whose free memory is checked. The features are not moved there.

    Returns:
        Unit-norm features, shape `[M, d]`.

    Raises:
        UserError: If the images cannot be read, features are of another backbone, or an image is a test image and not
            of a published split. For methods that are not transductive themselves, also if the features are empty,
            have another width or are not finite, or the adaptation needs more memory than is free.
    """
    source = task.cfg.data.unlabelled
    images = task.unlabelled
    if images.backbone not in ("", backbone):
        raise UserError(f"{source} holds features of {images.backbone!r}, but the method's are of {backbone!r}")
    features = images.features()
    if source != TEST_SET and not images.of_published_split:
        tested, _ = task.test_features()
        if tested is not None:
            copies = [f"image {n + 1}" for n in copied_rows(features, tested)]
            refuse_tested(copies, len(features), "unlabelled")
    if task.cfg.run.trainer not in TRANSDUCTIVE_METHODS:
        check_adaptable(features, text, device)
    return features


class AdaptedModel(NamedTuple):
    """Model after an adaptation to unlabelled images.

    Attributes:
        model: The adapted model.
        entries: Entries of the record about the adaptation.
        seconds: Time of the adaptation.
        logits: Logits `[M, K]` of the images, if they are the test images; None otherwise.
    """

    model: TrainedModel
    entries: dict[str, Any]
    seconds: float = 0.0
    logits: Tensor | None = None


def adapt_model(model: TrainedModel, features: Tensor, source: str, device: str | torch.device) -> AdaptedModel:
    """Adapt a fitted or loaded model to the features `[M, d]` of the unlabelled images `source`.

    The temperature stays the same. A transductive method only records the images, because it adapts itself.

    Raises:
        UserError: If the model is already adapted, or the memory is too small.
    """
    if model.is_transductive:
        return AdaptedModel(model, {"protocol": TRANSDUCTIVE, "unlabelled": {"images": source}})
    assert isinstance(model, SavedModel)  # `check_method` refuses other methods
    started = time.monotonic()
    # The temperature of zero-shot CLIP would come from labelled images, such as val
    start = model.model_copy(update={"temperature": 1.0}) if model.method == "ZeroShot" else model
    adapted, adaptation = adapt(start, features, str(device))
    wait_for(torch.device(device))
    seconds = time.monotonic() - started
    logger.info("adapted to %d unlabelled images in %.2f s", len(features), seconds)
    class_prior = {name: round(value, 4) for name, value in asdict(adaptation.class_prior).items()}
    images = {
        "images": source,
        "num_images": len(features),
        "hash": hash_content(features.cpu()),
        "class_prior": class_prior,
    }
    adapted = adapted.model_copy(update={"temperature": model.temperature})
    if model.fitted is not None:
        fitted = replace(
            model.fitted,
            logits=adaptation.classifier.logits,
            calibration=replace(model.fitted.calibration, known=None),  # the adaptation changes the scores
        )
        adapted = adapted.model_copy(update={"fitted": fitted})
    if source == TEST_SET:
        return AdaptedModel(adapted, {"protocol": TRANSDUCTIVE, "unlabelled": images}, seconds, adaptation.logits)
    return AdaptedModel(adapted, {"protocol": SEMI_SUPERVISED, "unlabelled": images}, seconds)
