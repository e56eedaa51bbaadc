"""From what a classifier was taught to a trained model: seed, configuration, training.

What was taught becomes a feature bank, as the rows of a bank file do. So everything after this point is the command
line's.

Shapes: N training images, K classes, d feature width.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..baselines import load_method
from ..config import OPTIONS, Config, default_values, is_filled
from ..config_files import load_cfg
from ..experiments.fitting import calibrated, train_adapter
from ..experiments.record import make_model
from ..experiments.run_folder import RunFolder
from ..experiments.tasks import FeatureTask, ImageTask, Task, ids_of_names
from ..features.bank import FeatureBank
from ..features.extract import class_prompts
from ..method.closed_form import OMEGA_NEW, TextPrior
from ..method.graph import class_prototypes
from ..method.unlabelled import ClassSums
from ..models.saved import Backbone as BackboneConfig
from ..models.saved import Preprocessing, Prompts, SavedModel
from ..models.support_set import SupportSet, scatter_state
from ..training.memory import refuse_beyond_memory, training_bytes
from ..utils.errors import UserError, first_line
from ..utils.option import NODE, OUR_METHOD
from ..utils.reading import Positive, validate

logger = logging.getLogger(__name__)

OURS = ("SEED", f"{NODE}.FEATURES.DIR")  # keys that the estimator sets
NO_NAME = "images"  # of the data set where the configuration names none
CLIP_SCALE = 100.0  # CLIP's `tau`, where no backbone says another


def make_configuration(
    files: tuple[str, str], named: Mapping[str, Any], options: Any, seed: int, folder: str
) -> Config:
    """The checked configuration of a training.

    Args:
        files: YAML of the data set and of the method, as `load_cfg` takes them.
        named: Configuration keys that have a parameter of their own.
        options: Further keys, as a dict or a list `[KEY, VALUE, ...]`, which win.
        seed, folder: SEED, and where encoded features are kept.

    Raises:
        UserError: If a key or a value is wrong, or asks for what an estimator cannot do.
    """
    flags, options = (options, None) if isinstance(options, Mapping) else ({}, options)
    ours = dict(zip(OURS, (seed, folder)))
    cfg = load_cfg(*files, {**ours, **named, **flags}, options)
    if given := [key for key in ours if cfg.values[key] != ours[key]]:
        raise UserError(f"options has {given[0]}, which random_state and a temporary folder set here; leave it out")
    if cfg.run.select_on == "val":
        raise UserError("SELECT_ON val needs val images, which fit has none of; use scikit-learn's GridSearchCV")
    if cfg.data.features == "online":
        raise UserError("FEATURES.MODE online is for runs; a classifier keeps the features, so use FEATURES.MODE bank")
    return cfg


def recipe_of(model: SavedModel) -> dict[str, Any]:
    """The keys that a model was trained with, as `options` takes them: those that are not what they are by default.

    What BY_SHOTS has filled is left open, so that it is filled again for another number of shots. There are none of
    another method, and where this version does not know the configuration, which is logged.
    """
    if model.method not in (OUR_METHOD, "ZeroShot"):
        return {}
    others = (*OURS, "TRAINER.NAME", "MODEL.", f"{NODE}.VARIANT", f"{NODE}.PREC", f"{NODE}.SELECT")
    config = model.trained_on.config
    known = {key: value for key, value in config.items() if key in OPTIONS and not key.startswith(others)}
    try:
        if chosen := model.trained_on.selected:  # on val images
            known |= zip(chosen["keys"], chosen["value"])
        cfg, default = load_cfg(flags=known), default_values()
    except (UserError, KeyError, TypeError) as error:
        said = "the configuration of the model is none of this version, so more training would take the default: %s"
        logger.warning(said, first_line(error))
        return {}
    there = [key for key in known if not key.startswith("DATASET.") or key == "DATASET.NAME"]
    return {key: known[key] for key in there if cfg.values[key] != default[key] and not is_filled(cfg, key)}


class Origin(NamedTuple):
    """Where features and text nodes come from.

    Attributes:
        backbone, preprocessing, logit_scale: What a model says of the backbone; `logit_scale` is CLIP's `tau`.
        prompted: Whether the text nodes are those of our sentences.
    """

    backbone: BackboneConfig
    preprocessing: Preprocessing | None
    logit_scale: float
    prompted: bool

    @classmethod
    def of(cls, model: SavedModel) -> Origin:
        return cls(model.backbone, model.preprocessing, model.logit_scale, model.prompts is not None)

    @classmethod
    def of_task(cls, task: ImageTask | None, logit_scale: float | None, prompted: bool) -> Origin:
        """That of a task's backbone; without one, and without a `logit_scale` of the user's, `tau` is CLIP's.

        Raises:
            UserError: If `logit_scale` is no number above 0.
        """
        if logit_scale is not None:
            logit_scale = validate(Positive, logit_scale, "logit_scale", convert=True)
        if task is None:
            return cls(BackboneConfig(title="unknown"), None, logit_scale or CLIP_SCALE, False)
        scale = logit_scale or task.backbone.logit_scale
        return cls(task.backbone_config(), Preprocessing.of(task.backbone), scale, prompted)


def learn(support_set: SupportSet, origin: Origin, cfg: Config, device: str) -> SavedModel:
    """The model of what was taught, on the CPU; `device` computes.

    It is trained on the classes that have images, as the command line does, and those that have none join it by their
    text (`with_named_classes`). Where fewer than two classes have images, nothing is trained: zero-shot CLIP takes
    its place, with the configuration by which more images train it.

    Raises:
        UserError: If nothing says what the classes look like, the training would take more memory than is free, or it
            diverges.
    """
    seen, names = support_set.counts > 0, support_set.names
    trains = bool(seen.sum() >= 2)
    if not trains and support_set.positive is None and not seen.all():
        raise UserError("without labelled images, text_features or a backbone has to say what the classes look like")
    known = support_set.of_classes(seen) if trains else support_set
    task = task_of(known, origin, cfg)
    bank = task.bank().to(device)
    if trains:
        check_memory(bank, cfg.data.batch_size, device)
        fitted = train_adapter(task, bank, start=known.state)
        if fitted.classifier is None or not fitted.classifier.weights.isfinite().all():
            raise UserError("the trained adapter holds NaN or infinite values; lower OPTIM.LR")
        fitted = calibrated(fitted, task, bank)
        support_set = replace(support_set, state=scatter_state(fitted.state, seen.nonzero().flatten(), len(names)))
    else:
        bank = replace(bank, train_features=bank.train_features[:1, :0], train_labels=bank.train_labels[:0])
        fitted = load_method("ZeroShot").fit(bank, None, task.seed)
    model = make_model(RunFolder(task), bank, fitted, None)
    assert model is not None  # both methods fold
    prompts = None
    if origin.prompted:
        positive, negative = class_prompts(cfg.data.name or NO_NAME, names, cfg.encoding)
        prompts = Prompts(positive=positive, negative=negative)
    labels = support_set.classes.tolist()
    can_be_kept = all(isinstance(label, (bool, int, float, str)) for label in labels)
    about = {
        "method": model.method if trains else "ZeroShot",
        "classifier": model.classifier.to("cpu"),
        "transfer": None if model.transfer is None else model.transfer.to("cpu"),
        "class_nodes": None if model.class_nodes is None else model.class_nodes.cpu(),
        "classnames": names,
        "class_ids": ids_of_names(names),
        "backbone": origin.backbone,
        "preprocessing": origin.preprocessing,
        "prompts": prompts,
        "labels": tuple(labels) if can_be_kept and labels != list(names) else None,
        "support_set": support_set,
        "images": tuple(support_set.counts.tolist()),
        "image_ids": tuple(support_set.ids.tolist()) if support_set.ids.any() else None,
    }
    model = model.model_copy(update=about)
    return with_named_classes(model, support_set, seen) if trains and not seen.all() else model


def check_memory(bank: FeatureBank, batch: int, device: str) -> None:
    """Raises UserError if training on a bank would take more memory than is free: beside what a training takes,
    calibration takes the logits of all images for all classes, three times in float64.
    """
    num_classes, (views, num_images, width) = len(bank.classnames), bank.train_features.shape
    parts = training_bytes(num_classes, num_images, width, views, min(batch, num_images))
    what = f"training on {num_images} images of {num_classes} classes"
    refuse_beyond_memory(sum(parts.values()) + 3 * 8 * num_images * num_classes, what, device)


def task_of(support_set: SupportSet, origin: Origin, cfg: Config) -> Task:
    """Lessons as the task of a feature bank. Text nodes that are not given are made of the images: a positive node is
    the mean of its class, a negative node the negative of the positive one.
    """
    positive, labels, names = support_set.positive, support_set.labels, support_set.names
    if positive is None:
        positive = class_prototypes(F.normalize(support_set.features.mean(dim=0), dim=-1), labels, names)
    bank = FeatureBank(
        train_features=support_set.features,
        train_labels=labels,
        text_positive=positive,
        text_negative=-positive if support_set.negative is None else support_set.negative,
        classnames=list(names),
        dataset=cfg.data.name or NO_NAME,
        backbone=origin.backbone.title,
        logit_scale=origin.logit_scale,
    )
    sampled = [[row, label, names[label]] for row, label in enumerate(labels.tolist())]
    return FeatureTask(bank, cfg, cfg.run.seed, {"train": sampled, "val": []}, {"precision": origin.backbone.precision})


def with_named_classes(model: SavedModel, support_set: SupportSet, seen: Tensor) -> SavedModel:
    """A model that was trained on the classes `seen`, booleans of shape `[K]`, with the others of the lessons, which
    have a name but no image.

    Their class weights are those by which the trained adapter reaches other classes (`TransferableAdapter`). With a
    cache, where text guesses that the mean of their images lies stands there for as many images as a class has on
    average. Without one, their messages in closed form weigh as much as those of the other classes: at the weight among
    classes that are all new, hardly an image would be predicted as theirs.
    """
    positive, negative, transfer, scale = support_set.positive, support_set.negative, model.transfer, model.logit_scale
    assert positive is not None and negative is not None and transfer is not None  # what has no image has text
    trained = model.classifier
    weights = scale * F.normalize(transfer.class_features(positive, negative), dim=-1)
    bias = torch.zeros(len(seen))
    if transfer.messages is not None:
        of_text, bias_of_text = transfer.messages.folded(positive)
        omega = transfer.options.closed_form.omega if trained.keys is None else OMEGA_NEW
        weights, bias = weights + omega * scale * of_text, omega * scale * bias_of_text
    weights[seen] = trained.weights
    bias[seen] = 0.0 if trained.bias is None else trained.bias
    sums = ClassSums.of(support_set.keys(), support_set.labels, len(seen))
    changed = replace(trained, weights=weights, bias=bias)
    if trained.keys is not None and trained.labels is not None:
        means = sums.sums[seen] / sums.counts[seen, None]
        guessed = F.normalize(TextPrior(positive[seen], means).predict(positive[~seen]), dim=-1).float()
        known, named = seen.nonzero().flatten(), (~seen).nonzero().flatten()
        share = torch.full((len(named),), len(trained.keys) / len(known))
        changed = replace(
            changed,
            keys=torch.cat([trained.keys, guessed]),
            labels=torch.cat([known[trained.labels], named]),
            key_weights=torch.cat([torch.ones(len(trained.keys)), share]),
        )
    return model.model_copy(
        update={"classifier": changed, "text_positive": positive, "labelled": sums, "class_nodes": None}
    )
