"""Tests of a trained method on any data set: its own, other domains of its classes, other classes.

`evaluate` is the one way to test, after training as with `--eval-only`. The rule follows from the classes:

- other domains of the same classes (CoOp's and the paper's protocol, Table 1): the trained text classifier is applied
  as it is. Classes are matched by what tells them apart across data sets (`Task.class_ids`, which are WordNet ids in
  ImageNet and its variants, where names repeat), never by position. Only the target's classes compete;
- other classes (CoCoOp's protocol: cross-dataset, base to new): HeGraphAdapter transfers as `TransferableAdapter` says,
  other methods by a rule of their own. A method without one is not tested.

Before it is tested, a method may hear images without labels, as `DATASET.UNLABELLED` names them
(`method/unlabelled.py`). There are two protocols, and no table mixes them with each other or with the inductive one.
*With unlabelled images*: a pool that holds no test image is heard, and test images are predicted one by one, as ever.
*Transductive*: the test images are the pool, so that what is said of one depends on the others.

Shapes: M images, K classes, d width.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..baselines.base import FittedMethod
from ..config import OPTIONS, REMOVED, Config, is_filled
from ..config_files import with_values
from ..datasets.base import check_classes
from ..features.bank import row_hashes
from ..method.cache import text_logits
from ..method.model import TransferableAdapter
from ..method.options import ModelOptions
from ..method.unlabelled import ClassSums, hear_unlabelled
from ..models.saved import SavedModel, check_hearing
from ..results.records import OTHER_CLASSES, SAME_CLASSES, TRANSDUCTIVE, WITH_UNLABELLED
from ..training.choice import accuracy
from ..training.confidence import Calibration
from ..utils.devices import wait_for
from ..utils.errors import UserError
from ..utils.files import hash_content
from ..utils.schema import check
from .fitting import classify_in_batches, reach_other_classes
from .folder import run_config
from .tasks import POOL, TOGETHER, Task, Tested, match_classes, refuse_tested

logger = logging.getLogger(__name__)

# Keys that shaped a model of HeGraphAdapter, and that a test cannot change any more
KEPT = tuple(key for key, option in OPTIONS.items() if option.shapes_model)


@dataclass(frozen=True)
class TrainedMethod:
    """A fitted method by its name, the data set and the K classes that it was fitted to, and zero-shot CLIP's text
    features of these, `[K, d]`, and its `tau`. `class_ids` tell classes apart across data sets.
    """

    method: str
    fitted: FittedMethod
    dataset: str
    class_ids: Sequence[str]
    text_positive: Tensor
    logit_scale: float

    @classmethod
    def loaded(cls, model: SavedModel, device: str) -> TrainedMethod:
        """A model that was read from its folder."""
        classifier, adapter = model.classifier.to(device), model.transfer
        if model.transfer_rule == "zero-shot":
            adapter = TransferableAdapter(ModelOptions(variant="base"), {})  # which leaves text features as they are
        transfer = None if adapter is None else reach_other_classes(adapter.to(device), model.logit_scale)
        fitted = FittedMethod(
            classifier.logits,
            transfer=transfer,
            classifier=classifier,
            text_classifier=classifier.text_only() if model.method == "HeGraphAdapter" else None,
            variant=model.variant,
            calibration=Calibration(model.temperature, "model", known=model.known),
        )
        text = model.text_positive.to(device)
        return cls(model.method, fitted, model.trained_on.dataset, model.class_ids, text, model.logit_scale)


# Images without labels


def unlabelled_features(task: Task, source: Task, backbone: str) -> Tensor:
    """Unit-norm features `[M, d]` of the unlabelled images that the configuration of a task names; `source` is the task
    whose images that were not drawn are the pool, and `backbone` made the features that the method takes.

    Raises:
        UserError: If the images cannot be had, are of another backbone, or are test images in a pool.
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
    known = set() if tested is None else set(row_hashes(tested))
    refuse_tested([f"row {n}" for n, row in enumerate(row_hashes(features)) if row in known], len(features))
    return features


def hear(trained: TrainedMethod, labelled: ClassSums | None, features: Tensor, what: str) -> TrainedMethod:
    """A method, with its temperature, that has heard unlabelled images of features `[M, d]`, on the device that
    computes; DATASET.UNLABELLED says `what` they are. `labelled` tells of the images that it was fitted to.

    Raises:
        UserError: If the method has no classifier, or as `check_hearing`.
    """
    fitted, name = trained.fitted, trained.method
    if fitted.together:
        heard_of: dict[str, Any] = {"protocol": TRANSDUCTIVE, "unlabelled": {"images": what}}
        return replace(trained, fitted=replace(fitted, heard=heard_of))
    if fitted.classifier is None:
        raise UserError(f"{name} has no class weights that could hear unlabelled images; leave out --unlabelled")
    labelled = check_hearing(labelled, features, fitted.classifier.width, str(features.device))
    started = time.monotonic()
    # Images with labels, as those of val, would tell zero-shot CLIP its temperature
    temperature = 1.0 if name == "ZeroShot" else fitted.calibration.temperature
    text, scale = trained.text_positive, trained.logit_scale
    heard = hear_unlabelled(fitted.classifier, labelled, text, features, scale, temperature)
    wait_for(features.device)
    seconds = time.monotonic() - started
    logger.info("%d unlabelled images were heard in %.2f s", len(features), seconds)
    shares = {name: round(value, 4) for name, value in asdict(heard.shares).items()}
    images = {"images": what, "num_images": len(features), "hash": hash_content(features.cpu()), "shares": shares}
    together, classifier = what == TOGETHER, heard.classifier
    fitted = replace(
        fitted,
        logits=(lambda _: heard.logits) if together else classifier.logits,
        classifier=None if together else classifier,
        text_classifier=None if together or fitted.text_classifier is None else classifier.text_only(),
        together=together,
        seconds=fitted.seconds + seconds,
        calibration=replace(fitted.calibration, known=None),  # known images score otherwise now
        heard={"protocol": TRANSDUCTIVE if together else WITH_UNLABELLED, "unlabelled": images},
    )
    return replace(trained, fitted=fitted)


# Test images


def evaluate(trained: TrainedMethod, target: Task, device: str | torch.device, rule: str | None = None) -> Tested:
    """What a trained method says about the test images of a target, by a rule; None finds the rule.

    Raises:
        UserError: If the features are of another width, a logit is not finite, or there is but one class.
    """
    check_classes(len(target.class_ids), target.name)
    fitted = trained.fitted
    if rule != OTHER_CLASSES:
        found, columns = find_rule(trained, target)
        rule = found if rule is None else rule
    if rule:
        logger.info("%s: tested by the rule for %s", target.name, rule)
    logits = text = None
    if rule != OTHER_CLASSES:
        given, labels = target.test_features()
        if given is None:
            return Tested(target.name, target.classnames)
        text_features, logit_scale = trained.text_positive[columns], trained.logit_scale
    else:
        other = target.test_bank().to(str(device))
        given, labels = other.features_to_classify, other.test_labels
        text_features, logit_scale = other.text_positive, other.logit_scale
    features, width = given.to(device), trained.text_positive.shape[1]
    if features.shape[1] != width:
        raise UserError(f"the model takes features of width {width}, got {features.shape[1]}")
    zero_shot = text_logits(features, text_features, logit_scale)
    if rule != OTHER_CLASSES:
        logits, text = (part[:, columns] for part in _on_known_classes(fitted, features, elsewhere=bool(rule)))
    elif fitted.transfer is not None:
        logits = text = fitted.transfer(other)
    if logits is not None and not logits.isfinite().all():
        mend = "; lower OPTIM.LR" if trained.method == "HeGraphAdapter" else ""
        raise UserError(f"{trained.method} predicts NaN or infinite logits{mend}")
    text = text if fitted.text_classifier is not None else None
    labels = None if labels is None else labels.to(device)
    return Tested(target.name, target.classnames, logits, text, zero_shot, labels, rule)


@torch.no_grad()
def _on_known_classes(fitted: FittedMethod, features: Tensor, elsewhere: bool) -> tuple[Tensor, Tensor]:
    """Logits of a method, and of its text classifier if it has one, which is all that counts on other data sets."""
    if fitted.text_classifier is None or fitted.classifier is None:
        logits = fitted.logits(features) if fitted.together else classify_in_batches(fitted.logits, features)
        return logits, logits
    parts = (fitted.text_classifier if elsewhere else fitted.classifier).parts(features)
    return fitted.classifier.combine(parts), parts.text


def find_rule(trained: TrainedMethod, target: Task) -> tuple[str, list[int]]:
    """The rule: "" where data set and classes are those of the training, `SAME_CLASSES` where all classes are among the
    method's, else `OTHER_CLASSES`; and of every class of the data its position among the method's, [] for others.
    """
    if not set(target.class_ids) <= set(trained.class_ids):
        return OTHER_CLASSES, []
    columns = match_classes(trained.class_ids, target.class_ids, trained.dataset, target.name)
    its_own = target.name == trained.dataset and columns == list(range(len(trained.class_ids)))
    return "" if its_own else SAME_CLASSES, columns


# Further data sets at the end of a training run


def encode_targets(task: Task) -> None:
    """Encodes what `score_targets` will test on and is not on disk, with the other processes of `torchrun`."""
    for _, target, rule in task.targets:
        if rule == SAME_CLASSES:
            target.test_features()
        else:
            target.test_bank()


def score_targets(trained: TrainedMethod, task: Task, device: str | torch.device) -> dict[str, dict]:
    """Tests on the further data sets of a task, for its record; no accuracy where the method has no rule."""
    scores = {}
    for name, target, rule in task.targets:
        tested = evaluate(trained, target, device, rule)
        assert tested.labels is not None  # a target has test images
        assert tested.zero_shot is not None
        scores[name] = {
            "accuracy": None if tested.logits is None else accuracy(tested.logits, tested.labels),
            "accuracy_zero_shot": accuracy(tested.zero_shot, tested.labels),
            "num_test": len(tested.labels),
            "num_classes": tested.zero_shot.shape[1],
            "rule": rule,
        }
    return scores


# --eval-only


def test_loaded(model: SavedModel, trained: TrainedMethod, target: Task, device: str) -> Tested:
    """What a model that was read from its folder, as `trained`, says about test images; UserError as `evaluate`, or if
    the features are another backbone's, or the model has no rule for these classes.
    """
    target.check_backbone(model)
    tested = evaluate(trained, target, device)
    if tested.logits is None:
        raise UserError(
            f"{model.method} has no rule for classes that it was not trained on; test it on its own classes"
        )
    return tested


def check_configuration(model: SavedModel, cfg: Config) -> None:
    """Checks that a configuration does not ask for another model than the one at hand.

    Raises:
        UserError: If it names another method, or changes a key that shaped the model. A key that follows from the shots
            of this configuration, which need not be those of the model, changes nothing. Nor does a key that was chosen
            on val, where it has the chosen value, or the one that it had before the choice.
    """
    if cfg.run.trainer != model.method:
        raise UserError(f"the model is of {model.method}; give --trainer {model.method}, not {cfg.run.trainer}")
    here = REMOVED | json.loads(json.dumps(run_config(cfg)))  # rows may be tuples here, and are lists in the folder
    before = model.trained_on.config
    there, prefix = before | _chosen_on_val(model, cfg), f"TRAINER.{model.method.upper()}."
    ours = model.method == "HeGraphAdapter"
    for key, value in before.items():
        kept = key in KEPT or key in REMOVED if ours else key.startswith(prefix)
        if kept and here.get(key) not in (there[key], value) and not is_filled(cfg, key):
            raise UserError(
                f"the model was trained by another recipe, and keeps it: {key} {there[key]}, not {here.get(key)}; to "
                f"test it as it is, end the command with {key} '{there[key]}'"
            )


def _chosen_on_val(model: SavedModel, cfg: Config) -> dict[str, object]:
    """The keys that `--select val` chose for a model, with the chosen values as a configuration holds them."""
    if model.method != "HeGraphAdapter" or not model.trained_on.selected:
        return {}
    said = [model.trained_on.selected.get(name) for name in ("keys", "value")]
    keys, values = check(tuple[list[str], list], tuple(said), "the model does not say what was chosen on val")
    with_chosen = run_config(with_values(cfg, dict(zip(keys, values))))
    return {key: with_chosen.get(key) for key in keys}
