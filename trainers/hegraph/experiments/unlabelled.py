"""Images without labels that a fitted method hears, as `DATASET.UNLABELLED` names them (`method/unlabelled.py`).

There are two protocols, and no table mixes them with each other or with the inductive one. *With unlabelled images*: a
pool that holds no test image is heard, and test images are predicted one by one, as ever. *Transductive*: the test
images are the pool, so that what is said of one depends on the others.

Shapes: M unlabelled images, K classes, d feature width.
"""

from __future__ import annotations

from dataclasses import asdict

from torch import Tensor

from ..baselines import TRANSDUCTIVE_METHODS
from ..config import Config
from ..features.bank import FeatureBank, row_hashes
from ..method.class_sums import ClassSums
from ..method.unlabelled import Heard
from ..results.records import TRANSDUCTIVE, WITH_UNLABELLED
from ..utils.errors import UserError
from ..utils.files import hash_content
from .tasks import POOL, Task, refuse_tested

TOGETHER = "test"  # what DATASET.UNLABELLED says of the test images


def labelled_images(task: Task, bank: FeatureBank) -> ClassSums:
    """What the images of a bank tell unlabelled ones, on the CPU; nothing for zero-shot CLIP, which has seen none."""
    keys, labels = bank.cache_keys().cpu(), bank.train_labels.cpu()
    seen = 0 if task.cfg.run.trainer == "ZeroShot" else len(keys)
    return ClassSums.of(keys[:seen], labels[:seen], len(bank.classnames))


def unlabelled_features(task: Task, source: Task, backbone: str, width: int) -> Tensor:
    """Unit-norm features of the unlabelled images, shape `[M, d]`.

    Args:
        task: Whose test images are tested, and whose configuration names the images.
        source: Whose images that were not drawn are the pool.
        backbone, width: Of the features that the method takes.

    Raises:
        UserError: If the images cannot be had, are of another backbone or width, or are test images in a pool.
    """
    what = task.cfg.data.unlabelled
    tested, _ = task.test_features()
    if what == TOGETHER:
        if tested is None:
            raise UserError(f"{task.name} has no test images; give --unlabelled {POOL}")
        return tested
    found = (source if what == POOL else task).unlabelled(what)
    if found.backbone not in ("", backbone):
        raise UserError(f"{what} holds features of {found.backbone!r}, but the method's are of {backbone!r}")
    features = found.features()
    if not len(features):
        raise UserError(f"{task.name} has no unlabelled images: all its training images are drawn; give other ones")
    if features.shape[1] != width:
        raise UserError(f"{what}: features of width {features.shape[1]}, but the method takes {width}")
    if tested is not None:
        known = set(row_hashes(tested))
        refuse_tested([f"row {n}" for n, row in enumerate(row_hashes(features)) if row in known], len(features))
    return features


def check_protocol(cfg: Config) -> None:
    """Checks that the method, and what else is asked for, can be had with the unlabelled images.

    Raises:
        UserError: If a transductive method is to predict images one by one, or other data sets are to be tested with
            predictions of the test images together.
    """
    what, name = cfg.data.unlabelled, cfg.run.trainer
    if name in TRANSDUCTIVE_METHODS and what != TOGETHER:
        raise UserError(f"{name} predicts all test images together: give --unlabelled {TOGETHER}, got {what!r}")
    if what == TOGETHER and (cfg.data.target_domains or cfg.data.target_datasets):
        raise UserError(
            f"--unlabelled {TOGETHER} predicts the test images together and reaches no other data set; leave out the "
            f"targets, or give --unlabelled {POOL}"
        )


def identity_of(task: Task) -> object:
    """What changes whenever the unlabelled images would; None without.

    Raises:
        UserError: If they cannot be had.
    """
    what = task.cfg.data.unlabelled
    if what in ("", TOGETHER):  # test images are part of the task's own identity
        return None
    return task.unlabelled(what).identity()


def about(what: str, features: Tensor, heard: Heard) -> dict:
    """What a record says of the images that were heard."""
    images = {"images": what, "num_images": len(features), "hash": hash_content(features.cpu())}
    shares = {name: round(value, 4) for name, value in asdict(heard.shares).items()}
    protocol = TRANSDUCTIVE if what == TOGETHER else WITH_UNLABELLED
    return {"protocol": protocol, "unlabelled": images | {"shares": shares}}
