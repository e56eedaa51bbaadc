"""Training of a model on a support set: configuration, feature bank, training, classes without images.

The support set becomes a feature bank, so that training is the same as on the command line.

Shapes: N training images, K classes, d feature width.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F

from ..baselines import load_method
from ..config import OPTIONS, Config, default_values, is_filled
from ..config_files import load_cfg
from ..experiments.calibration import calibrate
from ..experiments.fitting import fit
from ..experiments.image_task import ImageTask
from ..experiments.prompt_source import images_only_backbone, with_prompt_source
from ..experiments.record import make_model
from ..experiments.run_folder import RunIdentity
from ..experiments.tasks import FeatureTask, Task, ids_of_names, names_of
from ..features.backbones.schema import BackboneConfig
from ..features.bank import FeatureBank, label_list
from ..features.extract import class_prompts
from ..method.head.closed_form import OMEGA_NEW, TextPrior
from ..method.head.trust import TrustedText
from ..method.mean_text import without_text
from ..method.training.memory import refuse_beyond_memory, training_bytes
from ..method.unlabelled import ClassSums
from ..models.saved import Preprocessing, Prompts, SavedModel
from ..models.support_set import SupportSet, scatter_state
from ..utils.errors import UserError
from ..utils.option import NODE, OUR_METHOD
from ..utils.reading import LenientModel, Positive, validate

logger = logging.getLogger(__name__)

RESERVED_KEYS = ("SEED", f"{NODE}.FEATURES.DIR")  # set by the estimator
NO_NAME = "images"  # name of the data set if the configuration has none
CLIP_SCALE = 100.0  # CLIP's `tau`, the default without a backbone


def make_configuration(files: tuple[str, str], values: Mapping[str, Any], options: Any, seed: int) -> Config:
    """Configuration of a training, which keeps encoded features in memory.

    Args:
        files: YAML of the data set and of the method, arguments of `load_cfg`.
        values: Configuration keys set by parameters of the classifier.
        options: Further keys, as a dict or a list `[KEY, VALUE, ...]`, with precedence.
        seed: SEED.

    Raises:
        UserError: If a key or value is invalid, or not supported by the classifier, or if it asks for prompts of a
            backbone that encodes images only.
    """
    flags, options = (options, None) if isinstance(options, Mapping) else ({}, options)
    reserved = dict(zip(RESERVED_KEYS, (seed, "")))
    cfg = load_cfg(*files, {**reserved, **values, **flags}, options)
    cfg = with_prompt_source(cfg, images_only_backbone(cfg))
    if changed := [key for key in reserved if cfg.values[key] != reserved[key]]:
        raise UserError(f"options has {changed[0]}, which the classifier sets; use random_state for the seed")
    if cfg.run.select_on == "val":
        raise UserError("SELECT_ON val needs val images, which fit does not have; use scikit-learn's GridSearchCV")
    if cfg.data.features == "online":
        raise UserError("expected FEATURES.MODE bank, got online, which only runs support")
    return cfg


def changed_options(model: SavedModel) -> dict[str, Any]:
    """Configuration keys of a model that differ from the defaults, for the parameter `options`.

    Keys filled by BY_SHOTS are omitted, so that they are filled again for another number of shots. Empty for another
    method, and, with a warning, for a configuration that this version does not support.
    """
    if model.method not in (OUR_METHOD, "ZeroShot"):
        return {}
    excluded = (*RESERVED_KEYS, "TRAINER.NAME", "MODEL.", f"{NODE}.VARIANT", f"{NODE}.PREC", f"{NODE}.SELECT")
    config = model.trained_on.config
    known = {key: value for key, value in config.items() if key in OPTIONS and not key.startswith(excluded)}
    try:
        if model.trained_on.selected:  # on val images
            selected = validate(SelectedOptions, model.trained_on.selected, "options selected on val images")
            known |= zip(selected.keys, selected.value)
        cfg = load_cfg(flags=known)
    except UserError as error:
        text = "this version does not support the model's configuration, so further training uses the default: %s"
        logger.warning(text, error)
        return {}
    default = default_values()
    keys = [key for key in known if not key.startswith("DATASET.") or key == "DATASET.NAME"]
    return {key: known[key] for key in keys if cfg.values[key] != default[key] and not is_filled(cfg, key)}


class SelectedOptions(LenientModel):
    """Options of a model that its run selected on val images: configuration keys, and their values in this order."""

    keys: list[str]
    value: list[Any]


class Origin(NamedTuple):
    """Origin of features and text nodes.

    Attributes:
        backbone, preprocessing: Metadata of the backbone.
        logit_scale: CLIP's `tau`.
        prompted: Whether the text nodes are encoded prompts of this package.
    """

    backbone: BackboneConfig
    preprocessing: Preprocessing | None
    logit_scale: float
    prompted: bool

    @classmethod
    def of(cls, model: SavedModel) -> Origin:
        """Origin of a model."""
        return cls(model.backbone, model.preprocessing, model.logit_scale, model.prompts is not None)

    @classmethod
    def of_task(cls, task: ImageTask | None, logit_scale: float | None, prompted: bool) -> Origin:
        """Origin of a task. `logit_scale` replaces the backbone's; without both it is `CLIP_SCALE`.

        Raises:
            UserError: If `logit_scale` is not a positive number.
        """
        if logit_scale is not None:
            logit_scale = validate(Positive, logit_scale, "logit_scale", convert=True)
        if task is None:
            return cls(BackboneConfig(title="unknown"), None, logit_scale or CLIP_SCALE, False)
        scale = logit_scale or task.backbone.logit_scale
        return cls(task.backbone_config(), Preprocessing.of(task.backbone), scale, prompted)


def train_model(support_set: SupportSet, origin: Origin, cfg: Config, device: str) -> SavedModel:
    """Train a model on a support set, on a device; the model is on the CPU.

    Classes without images are added after the training from their text (`with_named_classes`). If fewer than two
    classes have images, the model is zero-shot CLIP, with the configuration for later training.

    Raises:
        UserError: If a class has neither images nor text, the memory is too small, the training diverges, or the
            configuration does not support several labels per image.
    """
    if support_set.multilabel:
        return train_multilabel(support_set, origin, cfg, device)
    names = support_set.names
    seen = support_set.counts > 0
    trains = bool(seen.sum() >= 2)
    if support_set.positive is None and not seen.all():
        unseen = next(name for name, has_images in zip(names, seen.tolist()) if not has_images)
        problem = f"classes without images, such as {unseen!r}, need text_features or a backbone that encodes names"
        raise UserError(f"{problem}; without text, add images of them")
    known = support_set.of_classes(seen) if trains else support_set
    task = task_of(known, origin, cfg)
    bank = task.bank().to(device)
    if trains:
        check_memory(bank, cfg.data.batch_size, device)
        fitted = calibrate(fit(task, bank, start=known.state), task, bank)
        support_set = replace(support_set, state=scatter_state(fitted.state, seen.nonzero().flatten(), len(names)))
    else:
        bank = replace(
            bank, train_features=bank.train_features[:1, :0], train_labels=bank.train_labels[:0], train_groups=None
        )
        fitted = load_method("ZeroShot").fit(bank, None, task.seed)
    model = cast(SavedModel, make_model(RunIdentity(task), bank, fitted))  # both methods fold
    metadata = {"method": model.method if trains else "ZeroShot"} | metadata_of(support_set, origin, cfg)
    model = model.model_copy(update=metadata)
    if trains and not seen.all():
        return with_named_classes(model, support_set, seen, fitted.trusted)
    return model


def train_multilabel(support_set: SupportSet, origin: Origin, cfg: Config, device: str) -> SavedModel:
    """Train a model with several labels per image; the arguments are as in `train_model`.

    Without text, the zero-shot classifier of the model consists of the mean features of the classes.

    Raises:
        UserError: If the variant is not training-free, there are fewer than two images, or the memory is too small.
    """
    if cfg.model.variant != "training_free":
        expected = "several labels per image need variant='training_free', which has neither training steps nor a cache"
        raise UserError(f"{expected}, got {cfg.model.variant!r}")
    labels = support_set.labels
    if len(labels) < 2:
        raise UserError(f"several labels per image need at least two images, got {len(labels)}")
    refuse_beyond_memory(16 * labels.numel(), f"{len(labels)} images of {labels.shape[1]} classes", device)
    task = task_of(support_set, origin, cfg)
    bank = task.bank().to(device)
    fitted = fit(task, bank)
    model = make_model(RunIdentity(task), bank, fitted)
    return cast(SavedModel, model).model_copy(update=metadata_of(support_set, origin, cfg))


def metadata_of(support_set: SupportSet, origin: Origin, cfg: Config) -> dict[str, Any]:
    """Attributes of a model that describe its support set."""
    names = support_set.names
    prompts = None
    if origin.prompted:
        positive, negative = class_prompts(cfg.data.name or NO_NAME, names, cfg.encoding)
        prompts = Prompts(positive=positive, negative=negative)
    labels = support_set.classes.tolist()
    return {
        "classnames": names,
        "class_ids": ids_of_names(names),
        "backbone": origin.backbone,
        "preprocessing": origin.preprocessing,
        "prompts": prompts,
        "labels": tuple(labels) if labels != list(names) else None,
        "support_set": support_set,
        "images": tuple(support_set.counts.tolist()),
        "image_ids": tuple(support_set.ids.tolist()) if support_set.ids.any() else None,
    }


def check_memory(bank: FeatureBank, batch: int, device: str) -> None:
    """Raise UserError if training on a bank needs more memory than is free.

    Calibration needs three float64 copies of the logits of all images, in addition to the training.
    """
    num_classes = len(bank.classnames)
    views, num_images, width = bank.train_features.shape
    parts = training_bytes(num_classes, num_images, width, views, min(batch, num_images))
    what = f"training on {num_images} images of {num_classes} classes"
    refuse_beyond_memory(sum(parts.values()) + 3 * 8 * num_images * num_classes, what, device)


def task_of(support_set: SupportSet, origin: Origin, cfg: Config) -> Task:
    """Feature bank task of a support set.

    Without text, a positive text node is the mean of its class. Without negative text, a negative node is the negative
    of the positive one.
    """
    labels = support_set.labels
    names = support_set.names
    positive = support_set.positive
    negative = support_set.negative
    has_text = positive is not None
    if positive is None:
        positive = torch.zeros(len(names), support_set.features.shape[-1])
    bank = FeatureBank(
        train_features=support_set.features,
        train_labels=labels,
        text_positive=positive,
        text_negative=-positive if negative is None else negative,
        classnames=list(names),
        dataset=cfg.data.name or NO_NAME,
        backbone=origin.backbone.title,
        logit_scale=origin.logit_scale,
        train_groups=support_set.groups,
    )
    if not has_text:
        bank = without_text(bank, negative)
    sampled = [[row, label, names_of(names, label)] for row, label in enumerate(label_list(labels))]
    return FeatureTask(bank, cfg, cfg.run.seed, {"train": sampled, "val": []}, {"precision": origin.backbone.precision})


def with_named_classes(
    model: SavedModel, support_set: SupportSet, seen: torch.Tensor, trusted: TrustedText | None
) -> SavedModel:
    """Add the classes without images to a model that was trained on the classes `seen`, booleans of shape `[K]`.

    Their class weights are those of a transfer to unseen classes (`TransferableAdapter`). With a cache, the text prior
    of their mean is a cache key with the weight of an average class. Without a cache, the closed-form head has the same
    weight as for other classes, because few images would be classified as a new class with the smaller `OMEGA_NEW`.

    With trust in text, `trusted` is the text of the seen classes, and the text of new ones is scaled like theirs.

    The scores of open-set rejection and of prediction sets are removed, because they are of the seen classes alone.
    """
    positive = support_set.positive
    negative = support_set.negative
    transfer = model.transfer
    scale = model.logit_scale
    assert positive is not None and negative is not None and transfer is not None  # classes without images have text
    trained = model.classifier
    options = transfer.options
    text = positive if trusted is None else trusted.scale(positive).to(positive)
    weights = transfer.class_features(text, negative)
    if trusted is None or options.variant != "training_free":  # whose text keeps its norm
        weights = F.normalize(weights, dim=-1)
    weights = scale * weights
    bias = torch.zeros(len(seen))
    if transfer.messages is not None:
        head_weights, head_bias = transfer.messages.folded(positive)
        strength = options.head_weight(scale) if trained.keys is None else OMEGA_NEW * scale
        weights = weights + strength * head_weights
        bias = strength * head_bias
    weights[seen] = trained.weights
    bias[seen] = 0.0 if trained.bias is None else trained.bias
    sums = ClassSums.of(support_set.keys(), support_set.labels, len(seen))
    changed = replace(trained, weights=weights, bias=bias)
    if trained.keys is not None and trained.labels is not None:
        means = sums.sums[seen] / sums.counts[seen, None]
        known_text = positive[seen] if trusted is None else trusted.replaced
        prior = F.normalize(TextPrior.fit(known_text, means).predict(positive[~seen]), dim=-1).float()
        known = seen.nonzero().flatten()
        named = (~seen).nonzero().flatten()
        key_weights = torch.ones(len(trained.keys)) if trained.key_weights is None else trained.key_weights
        share = torch.full((len(named),), len(trained.keys) / len(known))
        changed = replace(
            changed,
            keys=torch.cat([trained.keys, prior]),
            labels=torch.cat([known[trained.labels], named]),
            key_weights=torch.cat([key_weights, share]),
        )
    update = {"classifier": changed, "text_positive": positive, "labelled": sums, "class_nodes": None}
    update |= {"known": None, "sets": None}
    if model.text_trust is not None:
        weights_of_all = torch.full((len(seen),), model.text_trust.share, dtype=torch.float64)
        weights_of_all[seen] = torch.tensor(model.text_trust.weights, dtype=torch.float64)
        update["text_trust"] = model.text_trust.model_copy(update={"weights": tuple(weights_of_all.tolist())})
    return model.model_copy(update=update)
