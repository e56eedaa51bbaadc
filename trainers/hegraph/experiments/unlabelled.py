"""Images without labels that a fitted method hears, as `DATASET.UNLABELLED` names them (`method/unlabelled.py`).

There are two protocols, and no table mixes them with each other or with the inductive one. *With unlabelled images*: a
pool that holds no test image is heard, and test images are predicted one by one, as ever. *Transductive*: the test
images are the pool, so that what is said of one depends on the others.

Shapes: M unlabelled images, K classes, d feature width.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor

from ..baselines import TRANSDUCTIVE_METHODS
from ..baselines.base import FittedMethod
from ..config import Config
from ..features.bank import BankFile, FeatureBank, row_hashes
from ..method.unlabelled import ClassSums, Heard, hear_unlabelled
from ..results.records import TRANSDUCTIVE, WITH_UNLABELLED
from ..training.memory import free_bytes
from ..utils.devices import wait_for
from ..utils.errors import UserError
from ..utils.files import hash_content, hash_file
from .tasks import Task, features_of_images, refuse_tested

logger = logging.getLogger(__name__)

BANK = ".safetensors"  # the suffix of a feature bank
POOL, TOGETHER = "pool", "test"  # what DATASET.UNLABELLED says; anything else is a path
COPIES = 4  # of the logits of all unlabelled images, that hearing them holds at once


def hear(fitted: FittedMethod, task: Task, bank: FeatureBank) -> FittedMethod:
    """A method that has heard the unlabelled images of its task; one that says nothing of them stays as it is.

    Args:
        fitted: The method, with its temperature.
        task, bank: What it was fitted to; features on the device that computes.

    Raises:
        UserError: If the images cannot be had, are of another width or not finite, are test images in a pool, or would
            not fit into memory; if the method has no classifier that could hear them.
    """
    what = task.cfg.data.unlabelled
    if not what:
        return fitted
    if fitted.together:
        return replace(fitted, heard={"protocol": TRANSDUCTIVE, "unlabelled": {"images": what}})
    if fitted.classifier is None:
        raise UserError(
            f"{task.cfg.run.trainer} has no class weights that could hear unlabelled images; leave out --unlabelled"
        )
    features = unlabelled_features(task, bank).to(bank.train_features)
    keys, labels, temperature = bank.cache_keys(), bank.train_labels, fitted.calibration.temperature
    if task.cfg.run.trainer == "ZeroShot":  # has seen no labelled image; those of val would tell it a temperature
        keys, labels, temperature = keys[:0], labels[:0], 1.0
    labelled = ClassSums.of(keys, labels, len(bank.classnames))
    check_memory(len(features), len(bank.classnames), str(features.device))
    started = time.monotonic()
    heard = hear_unlabelled(fitted.classifier, labelled, bank.text_positive, features, bank.logit_scale, temperature)
    wait_for(features.device)
    logger.info("%d unlabelled images were heard in %.2f s", len(features), time.monotonic() - started)
    changed = replace(
        fitted,
        seconds=fitted.seconds + time.monotonic() - started,
        calibration=replace(fitted.calibration, known=None),  # known images score otherwise now
        heard=about(what, features, heard),
    )
    if what == TOGETHER:
        return replace(changed, logits=lambda _: heard.logits, classifier=None, text_classifier=None, together=True)
    text = None if fitted.text_classifier is None else heard.classifier.text_only()
    return replace(changed, logits=heard.classifier.logits, classifier=heard.classifier, text_classifier=text)


def unlabelled_features(task: Task, bank: FeatureBank) -> Tensor:
    """Unit-norm features of the unlabelled images, shape `[M, d]`; `bank` and errors as of `hear`."""
    what = task.cfg.data.unlabelled
    tested, _ = task.test_features()
    if what == TOGETHER:
        if tested is None:
            raise UserError(f"{task.name} has no test images; give --unlabelled {POOL}")
        return tested
    features = task.pool() if what == POOL else _own(task, Path(what), bank)
    if not len(features):
        raise UserError(f"{task.name} has no unlabelled images: all its training images are drawn; give other ones")
    if features.shape[1] != bank.train_features.shape[2]:
        raise UserError(
            f"{what}: features of width {features.shape[1]}, but the task's have {bank.train_features.shape[2]}"
        )
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
    if what == POOL:
        return task.pool_identity()
    path = Path(what)
    return hash_file(BankFile(path).path) if path.suffix == BANK else task.files_identity(path)


def about(what: str, features: Tensor, heard: Heard) -> dict:
    """What a record says of the images that were heard."""
    images = {"images": what, "num_images": len(features), "hash": hash_content(features.cpu())}
    shares = {name: round(value, 4) for name, value in asdict(heard.shares).items()}
    protocol = TRANSDUCTIVE if what == TOGETHER else WITH_UNLABELLED
    return {"protocol": protocol, "unlabelled": images | {"shares": shares}}


def check_memory(num_images: int, num_classes: int, device: str) -> None:
    """Raises UserError if hearing so many images would take more memory than is free."""
    takes, free = COPIES * num_images * num_classes * 4, free_bytes(device)
    if free is not None and takes > free:
        raise UserError(
            f"{num_images} unlabelled images of {num_classes} classes would take about {takes / 1e9:.1f} GB of memory, "
            f"and {free / 1e9:.1f} GB are free; give fewer images"
        )


def _own(task: Task, path: Path, bank: FeatureBank) -> Tensor:
    if path.suffix != BANK:
        return task.encoded(path)
    file = BankFile(path)
    if file.backbone != bank.backbone:
        raise UserError(f"{path} holds features of {file.backbone!r}, but the task's are of {bank.backbone!r}")
    return features_of_images(file, {split: range(len(labels)) for split, labels in file.labels.items()})
