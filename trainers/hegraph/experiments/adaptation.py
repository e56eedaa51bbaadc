"""Adaptation of a trained method to unlabelled images, which `DATASET.UNLABELLED` names.

There are two protocols, and no table mixes their scores with each other or with inductive ones:

- semi-supervised: the pool holds no test image, and each test image is predicted on its own;
- transductive: the pool is the test images, so that each prediction depends on all of them.

Shapes: M images, K classes, d feature width.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..baselines import TRANSDUCTIVE_METHODS
from ..features.bank import row_hashes
from ..method.unlabelled import ClassSums, adapt_to_unlabelled
from ..models.saved import check_adaptable
from ..results.records import SEMI_SUPERVISED, TRANSDUCTIVE
from ..utils.devices import wait_for
from ..utils.errors import UserError
from ..utils.files import hash_content
from .evaluation import TrainedMethod
from .tasks import POOL, TEST_SET, Task, refuse_tested

logger = logging.getLogger(__name__)


class UnlabelledImages(NamedTuple):
    """Unlabelled images that a method can adapt to.

    Attributes:
        source: DATASET.UNLABELLED.
        features: Unit-norm features `[M, d]`.
        labelled: Class sums of the training images of the method; None for a transductive method, which adapts itself.
    """

    source: str
    features: Tensor
    labelled: ClassSums | None


def read_unlabelled(
    task: Task, pool_task: Task, labelled: ClassSums | None, backbone: str, device: str
) -> UnlabelledImages:
    """Encode or read the unlabelled images that the configuration of a task names.

    Args:
        task: Task with the test images.
        pool_task: Task whose remaining images are the pool.
        labelled: Class sums of the training images of the method.
        backbone: Backbone of the method's features.

    Raises:
        UserError: If the images cannot be read, are of another backbone, or are test images in a pool; or as
            `check_adaptable`.
    """
    source = task.cfg.data.unlabelled
    images = (pool_task if source == POOL else task).unlabelled(source)
    if images.backbone not in ("", backbone):
        raise UserError(f"{source} holds features of {images.backbone!r}, but the method's are of {backbone!r}")
    features = images.features()
    if source != TEST_SET and (tested := task.test_features()[0]) is not None:
        test_rows = set(row_hashes(tested))
        refuse_tested([f"row {n}" for n, row in enumerate(row_hashes(features)) if row in test_rows], len(features))
    if task.cfg.run.trainer in TRANSDUCTIVE_METHODS:
        return UnlabelledImages(source, features, None)
    width = features.shape[1] if labelled is None else labelled.sums.shape[1]
    return UnlabelledImages(source, features, check_adaptable(labelled, features, width, device))


def adapt(trained: TrainedMethod, unlabelled: UnlabelledImages, device: str | torch.device) -> TrainedMethod:
    """Return a method that has adapted to unlabelled images; its temperature stays the same."""
    fitted, source = trained.fitted, unlabelled.source
    if unlabelled.labelled is None:
        adaptation = {"protocol": TRANSDUCTIVE, "unlabelled": {"images": source}}
        return replace(trained, fitted=replace(fitted, adaptation=adaptation))
    assert fitted.classifier is not None  # `check_method` refuses other methods
    features, labelled = unlabelled.features.to(device), unlabelled.labelled.to(device)
    started = time.monotonic()
    # The temperature of zero-shot CLIP would come from labelled images, such as val
    temperature = 1.0 if trained.method == "ZeroShot" else fitted.calibration.temperature
    text, scale = trained.text_positive, trained.logit_scale
    adapted = adapt_to_unlabelled(fitted.classifier, labelled, text, features, scale, temperature)
    wait_for(features.device)
    seconds = time.monotonic() - started
    logger.info("adapted to %d unlabelled images in %.2f s", len(features), seconds)
    images = {
        "images": source,
        "num_images": len(features),
        "hash": hash_content(features.cpu()),
        "class_prior": {name: round(value, 4) for name, value in asdict(adapted.class_prior).items()},
    }
    transductive, classifier = source == TEST_SET, adapted.classifier
    fitted = replace(
        fitted,
        logits=(lambda _: adapted.logits) if transductive else classifier.logits,
        classifier=None if transductive else classifier,
        transductive=transductive,
        seconds=fitted.seconds + seconds,
        calibration=replace(fitted.calibration, known=None),  # the adaptation changes the scores of known images
        adaptation={"protocol": TRANSDUCTIVE if transductive else SEMI_SUPERVISED, "unlabelled": images},
        unlabelled=None if transductive else features,
    )
    return replace(trained, fitted=fitted)
