"""Adaptation of a trained method to unlabelled images, which `DATASET.UNLABELLED` names.

There are two protocols, and no table mixes their scores with each other or with inductive ones:

- semi-supervised: the pool holds no test image, and each test image is predicted on its own;
- transductive: the pool is the test images, so that each prediction depends on all of them.

Shapes: M images, K classes, d feature width.
"""

import logging
import time
from dataclasses import asdict, replace

import torch
from torch import Tensor

from ..baselines import TRANSDUCTIVE_METHODS
from ..baselines.base import FittedMethod
from ..datasets.base import refuse_tested
from ..features.bank import copied_rows
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
        UserError: If the images cannot be read, or features are of another backbone; if an image of a pool is a test
            image; or as of `check_adaptable`, for methods that are not transductive themselves.
    """
    source = task.cfg.data.unlabelled
    images = task.unlabelled
    if images.backbone not in ("", backbone):
        raise UserError(f"{source} holds features of {images.backbone!r}, but the method's are of {backbone!r}")
    features = images.features()
    if source != TEST_SET and (tested := task.test_features()[0]) is not None:
        copies = [f"image {n + 1}" for n in copied_rows(features, tested)]
        refuse_tested(copies, len(features), "unlabelled")
    if task.cfg.run.trainer not in TRANSDUCTIVE_METHODS:
        check_adaptable(features, text, device)
    return features


def adapt_method(
    fitted: FittedMethod, model: TrainedModel, features: Tensor, source: str, device: str | torch.device
) -> tuple[FittedMethod, TrainedModel]:
    """Adapt a fitted method and its model to the features `[M, d]` of the unlabelled images `source`.

    The temperature stays the same. A transductive method only records the images, because it adapts itself.
    """
    if fitted.transductive:
        return replace(fitted, adaptation={"protocol": TRANSDUCTIVE, "unlabelled": {"images": source}}), model
    assert isinstance(model, SavedModel)  # `check_method` refuses other methods
    started = time.monotonic()
    # The temperature of zero-shot CLIP would come from labelled images, such as val
    start = model.model_copy(update={"temperature": 1.0}) if model.method == "ZeroShot" else model
    adapted, adaptation = adapt(start, features, str(device))
    wait_for(torch.device(device))
    seconds = time.monotonic() - started
    logger.info("adapted to %d unlabelled images in %.2f s", len(features), seconds)
    images = {
        "images": source,
        "num_images": len(features),
        "hash": hash_content(features.cpu()),
        "class_prior": {name: round(value, 4) for name, value in asdict(adaptation.class_prior).items()},
    }
    transductive, classifier = source == TEST_SET, adaptation.classifier
    fitted = replace(
        fitted,
        logits=(lambda _: adaptation.logits) if transductive else classifier.logits,
        classifier=None if transductive else classifier,
        transductive=transductive,
        seconds=fitted.seconds + seconds,
        calibration=replace(fitted.calibration, known=None),  # the adaptation changes the scores of known images
        adaptation={"protocol": TRANSDUCTIVE if transductive else SEMI_SUPERVISED, "unlabelled": images},
    )
    return fitted, adapted.model_copy(update={"temperature": model.temperature})
