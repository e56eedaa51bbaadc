"""The model folder: `config.json`, `model.safetensors`, `README.md`, and maybe small pictures of the training images.

Loading reads JSON and safetensors only, and nothing in the folder is run. Every field and every tensor is checked
before it is used, and the hash of the tensors in `config.json` says that the two files belong together.

Shapes: K classes, N cached images, d feature width.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from ..method.cache import FoldedClassifier
from ..method.class_sums import ClassSums
from ..method.closed_form import NewClassMessages
from ..method.model import TransferableAdapter
from ..method.options import ModelOptions
from ..method.relations import metapath_defaults
from ..utils.errors import UserError, first_line
from ..utils.files import hash_content, write_json, write_tensors, writing_folder
from ..utils.option import option_of
from ..utils.reading import read_json, read_tensors, reading
from ..utils.schema import Finite, Part, Size
from .card import model_card
from .lessons import Lessons
from .saved import Described, SavedModel

logger = logging.getLogger(__name__)

CONFIG, TENSORS, CARD = "config.json", "model.safetensors", "README.md"
CLASSIFIER = ("weights", "bias", "keys", "labels", "key_weights")  # tensors of `FoldedClassifier`
NODES = "class_nodes"  # in the whitened space of the messages
TRANSFER = "transfer."  # prefix of the tensors that reach other classes
MESSAGES = f"{TRANSFER}messages."  # of those, the messages in closed form
LABELLED = "labelled."  # prefix of the tensors of `ClassSums` and `Lessons`
TAUGHT = ("features", "labels")  # of `Lessons`; text nodes and parameters need not be there
STATE = f"{LABELLED}state."  # prefix of its parameters
WHOLE = ("labels", f"{LABELLED}labels")  # tensors of whole numbers
LEVELS = 4  # folders between output/ and a run: data set, method, configuration, seed
MAX_CONFIG_BYTES = 2**28  # a thousand times what the prompts of ImageNet take
KEPT = (".json", ".safetensors", ".md", ".jpg", ".pt")
# Options of earlier versions, each with what this version does
REMOVED = {"activation": "tanh", "weight_per": "target", "gamma": 1.0, "omega_new": 0.05, "prior": 4.0}
SINCE = {
    "known",
    "tensors",
    "ece",
    "ece_zero_shot",
    "unlabelled",
    "images",
    "image_ids",
}  # fields that folders of earlier versions lack


class Fusion(Part):
    """How the two classifiers are added: `alpha` weighs the cache, whose affinities have the sharpness `beta`."""

    alpha: Finite
    beta: Finite


class AdapterTransfer(Part):
    """Other classes are reached by message passing among text nodes with the trained `W`."""

    rule: Literal["adapter"]
    options: ModelOptions

    @field_validator("options", mode="before")
    @classmethod
    def without_removed(cls, found: Any) -> Any:
        """The options without those of earlier versions, each of which must be what this version does."""
        found = _without_removed(found)
        if isinstance(found, dict) and isinstance(closed := found.get("closed_form"), dict):
            # Without messages, nothing weighs them
            found["closed_form"] = _without_removed(closed, matters=bool(closed.get("omega")))
        return found

    @field_validator("options")
    @classmethod
    def allowed(cls, found: ModelOptions) -> ModelOptions:
        """Every value is one that its key may have. A relation that was added since has the weight 0."""
        for holder in (found, found.closed_form):
            for of_field in fields(holder):
                if (declared := option_of(of_field)) is not None:
                    declared.check(getattr(holder, of_field.name))
        known = metapath_defaults()
        if unknown := found.metapath.keys() - known.keys():
            raise ValueError(f"metapath must have the keys {', '.join(known)}, got {', '.join(sorted(unknown))}")
        return replace(found, metapath=known | dict(found.metapath))


class OtherTransfer(Part):
    """Other classes are reached as by zero-shot CLIP, or not at all."""

    rule: Literal["zero-shot", "none"]
    options: dict[str, Any]


class ModelConfig(Described):
    """All of `config.json`: what the model says of itself, and how its tensors, of this width and hash, are to be read.

    Folders of earlier versions have no hash.
    """

    format: Literal["hegraph-model"] = "hegraph-model"
    version: Literal[1] = 1
    width: Size
    fusion: Fusion
    transfer: AdapterTransfer | OtherTransfer = Field(discriminator="rule")
    tensors: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None


def save_model(model: SavedModel, folder: Path) -> None:
    """Writes a model folder, whole or not at all; an older one in its place is replaced.

    HeGraphAdapter's cache keys are rounded to float16. Those of other methods stay in float32, since rounding them
    changed the prediction of single images.

    Raises:
        UserError: If the folder cannot be written, or something else than a model folder is in its place.
    """
    check_place(folder)
    tensors = _tensors(model)
    config = ModelConfig.model_validate(
        {name: getattr(model, name) for name in Described.model_fields}
        | {
            "width": model.classifier.width,
            "fusion": {"alpha": model.classifier.alpha, "beta": model.classifier.beta},
            "transfer": {"rule": model.transfer_rule, "options": model.transfer.options if model.transfer else {}},
            "tensors": hash_content(tensors),
        }
    )
    with writing_folder(folder) as temporary:
        write_tensors(temporary / TENSORS, tensors, {"format": config.format})
        (temporary / CARD).write_text(model_card(model), encoding="utf-8")
        write_json(temporary / CONFIG, config.model_dump(mode="json"))


def check_place(folder: Path) -> None:
    """Raises UserError if something else than a model folder is where one is to be written."""
    if folder.exists() and not (folder / CONFIG).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is no model folder, and is not overwritten; choose another")


def _without_removed(part: Any, matters: bool = True) -> Any:
    if not isinstance(part, dict):
        return part
    for name, value in REMOVED.items():
        if matters and part.get(name, value) != value:
            raise ValueError(
                f"the model was trained with {name} {part[name]!r:.80}, this version knows {value!r} alone"
            )
    return {name: value for name, value in part.items() if name not in REMOVED}


def _tensors(model: SavedModel) -> dict[str, Tensor]:
    """The tensors of a folder, by name and in the order of the names."""
    found = {name: getattr(model.classifier, name) for name in CLASSIFIER}
    found |= {"text_positive": model.text_positive, NODES: model.class_nodes}
    if model.transfer is not None:
        found |= {f"{TRANSFER}{name}": tensor for name, tensor in model.transfer.parameters.items()}
        if model.transfer.messages is not None:
            found |= {f"{MESSAGES}{name}": tensor for name, tensor in asdict(model.transfer.messages).items()}
    if model.labelled is not None:
        found |= {f"{LABELLED}{name}": tensor.float() for name, tensor in asdict(model.labelled).items()}
    if (lessons := model.lessons) is not None:
        found |= {f"{LABELLED}features": lessons.keys(), f"{LABELLED}labels": lessons.labels}
        found |= {f"{LABELLED}{name}": getattr(lessons, name) for name in ("positive", "negative")}
        found |= {f"{STATE}{name}": tensor for name, tensor in lessons.state.items()}
    kinds = {**dict.fromkeys(WHOLE, torch.int32), NODES: torch.float16}
    if model.method == "HeGraphAdapter":
        kinds["keys"] = torch.float16
    there = {name: tensor.detach().cpu() for name, tensor in sorted(found.items()) if tensor is not None}
    there |= {name: tensor.clone() for name, tensor in there.items() if name.startswith(LABELLED)}  # of none shared
    return {name: tensor.to(kinds.get(name, tensor.dtype)) for name, tensor in there.items()}


def load_model(folder: Path | str) -> SavedModel:
    """Reads a model folder, or `model/` in the output folder of a run.

    Raises:
        UserError: If something is missing, damaged or contradicts something else; the message says what.
    """
    path = find_model_folder(Path(folder))
    config = _read_config(path / CONFIG)
    found, _ = read_tensors(path / TENSORS, "a model")
    with reading(path / TENSORS, f"the tensors of the {CONFIG} beside it"):
        if config.tensors not in (None, hash_content(dict(sorted(found.items())))):
            raise ValueError(f"its hash is not the one in {CONFIG}")
        tensors = _checked(config, found)
        transfer = _transfer(config, tensors)
        names = [f"{LABELLED}{field.name}" for field in fields(ClassSums)]
        sums = [tensors[name].double() for name in names] if any(name in tensors for name in names) else None
        lessons = _lessons(config, tensors)
    if config.tensors is None:
        logger.warning("%s is of an earlier version, and does not say which tensors belong to it", path / CONFIG)
    of_classifier: dict[str, Any] = {name: tensors.get(name) for name in CLASSIFIER}
    return SavedModel(
        **{name: getattr(config, name) for name in Described.model_fields},
        classifier=FoldedClassifier(**of_classifier, alpha=config.fusion.alpha, beta=config.fusion.beta),
        text_positive=tensors["text_positive"],
        transfer=transfer,
        transfer_rule=config.transfer.rule,
        class_nodes=tensors.get(NODES),
        labelled=None if sums is None else ClassSums(*sums),
        lessons=lessons,
    )


def _read_config(path: Path) -> ModelConfig:
    with reading(path, "the config.json of a model folder"):
        if (size := path.stat().st_size) > MAX_CONFIG_BYTES:
            raise ValueError(f"it has {size:,} bytes, and at most {MAX_CONFIG_BYTES:,} are read")
        found = read_json(path)
        config = ModelConfig.model_validate_json(json.dumps(found))  # as JSON, whose lists may become tuples
        if missing := next(_missing(config.model_dump(mode="json"), found), ""):
            raise ValueError(f"{missing}: Field required")
    return config


def _missing(whole: dict[str, Any], found: dict[str, Any], above: str = "") -> Iterator[str]:
    """The fields that a file lacks, though those who make a model may leave them out."""
    for name, value in whole.items():
        if name not in found:
            # A relation that was added since has no key; one that is left out by default changes nothing
            if name not in SINCE and metapath_defaults().get(name) != 0:
                yield f"{above}{name}"
        elif isinstance(value, dict):
            yield from _missing(value, found[name], f"{above}{name}.")


def _checked(config: ModelConfig, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file, which fit its configuration: floats as float32, integers as int64.

    Raises:
        ValueError: If a tensor is missing, unknown, or of another shape, another type or infinite values.
    """
    classes, shapes, checked = len(config.classnames), _shapes(config, found), {}
    needed = {"weights", "text_positive"}
    if found.keys() & {"keys", "labels", "key_weights"}:
        needed |= {"keys", "labels"}
    if missing := sorted(needed - found.keys()):
        raise ValueError(f"it lacks {', '.join(missing)}")
    for name, tensor in found.items():
        shape = shapes.get(name, shapes.get(f"{name.rpartition('.')[0]}.*"))
        if shape is None:
            raise ValueError(f"it holds an unknown tensor {name!r}")
        kind = "whole numbers" if name in WHOLE else "floats"
        if tuple(tensor.shape) != shape or tensor.is_floating_point() != (kind == "floats"):
            raise ValueError(f"{name} must be {list(shape)} of {kind}, got {list(tensor.shape)} of {tensor.dtype}")
        tensor = tensor.long() if name in WHOLE else tensor.float()
        if not tensor.isfinite().all():
            raise ValueError(f"{name} holds NaN or infinite values")
        if name.endswith("labels") and len(tensor) and not (0 <= tensor.min() and tensor.max() < classes):
            raise ValueError(f"{name} must lie in 0 ... {classes - 1}")
        if name == "labels" and not len(tensor):
            raise ValueError("labels are there, but none of an image")
        checked[name] = tensor
    return checked


def _shapes(config: ModelConfig, found: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that a folder may hold. `*` stands for any name."""
    classes, width = (len(config.classnames),), (config.width,)
    images, taught = (tuple(found[name].shape[:1]) if name in found else () for name in ("keys", f"{LABELLED}features"))
    square = width + width
    shapes = {"weights": classes + width, "text_positive": classes + width, "bias": classes, NODES: classes + width}
    shapes |= {f"{LABELLED}counts": classes, f"{LABELLED}sums": classes + width, f"{LABELLED}moment": square}
    shapes |= {f"{LABELLED}features": taught + width, f"{LABELLED}labels": taught}
    shapes |= {f"{LABELLED}positive": classes + width, f"{LABELLED}negative": classes + width}
    shapes |= {f"{STATE}bias.*": classes + width, f"{STATE}weight.*": square, f"{STATE}metapath.*": ()}
    shapes |= {"keys": images + width, "labels": images, "key_weights": images}
    if config.transfer.rule == "adapter":
        shapes |= {f"{TRANSFER}weight.*": square, f"{TRANSFER}metapath.*": ()}
        shapes |= {f"{MESSAGES}matrix": square, f"{MESSAGES}whitening": square}
        shapes |= {f"{MESSAGES}offset": width, f"{MESSAGES}mean": width}
    return shapes


def _lessons(config: ModelConfig, tensors: dict[str, Tensor]) -> Lessons | None:
    """What the model was taught; None where the folder does not say it.

    Raises:
        ValueError, KeyError: If a tensor of it is missing, or the ids are of other images.
    """
    if not any(f"{LABELLED}{name}" in tensors for name in TAUGHT):
        return None
    features, labels = (tensors[f"{LABELLED}{name}"] for name in TAUGHT)
    ids = torch.tensor(config.image_ids or [0] * len(labels), dtype=torch.long)
    if len(ids) != len(labels):
        raise ValueError(f"{len(ids)} image_ids for {len(labels)} images")
    return Lessons(
        np.array(config.classnames if config.labels is None else config.labels),
        config.classnames,
        features[None],
        labels,
        ids,
        positive=tensors.get(f"{LABELLED}positive"),
        negative=tensors.get(f"{LABELLED}negative"),
        state={name[len(STATE) :]: tensor for name, tensor in tensors.items() if name.startswith(STATE)},
    )


def _transfer(config: ModelConfig, tensors: dict[str, Tensor]) -> TransferableAdapter | None:
    """What reaches other classes.

    Raises:
        ValueError, KeyError: If a tensor of it is missing.
    """
    if not isinstance(config.transfer, AdapterTransfer):
        return None
    options, messages = config.transfer.options, None
    if options.has_closed_form or any(name.startswith(MESSAGES) for name in tensors):
        names = [field.name for field in fields(NewClassMessages)]
        messages = NewClassMessages(**{name: tensors[f"{MESSAGES}{name}"] for name in names})
    prefixes = (f"{TRANSFER}weight.", f"{TRANSFER}metapath.")
    parameters = {name[len(TRANSFER) :]: tensor for name, tensor in tensors.items() if name.startswith(prefixes)}
    adapter = TransferableAdapter(options, parameters, messages)
    if missing := adapter.missing_parameters():
        raise ValueError(f"it lacks {TRANSFER}{missing[0]}")
    return adapter


def find_model_folder(folder: Path) -> Path:
    """The model folder that a user means: the folder itself, or `model/` in the output folder of a run.

    Raises:
        UserError: If there is none; one of the runs below the folder is named.
    """
    try:
        for candidate in (folder, folder / "model"):
            if (candidate / CONFIG).is_file():
                return candidate
        what = f"holds no {CONFIG}" if folder.is_dir() else "is no folder" if folder.exists() else "is not there"
        below = [found for depth in range(1, LEVELS + 1) for found in folder.glob(f"{'*/' * depth}model/{CONFIG}")]
    except OSError as error:  # no permission, or a name that is too long
        raise UserError(f"cannot read the model folder {folder}: {first_line(error)}") from error
    example = min(below).parent if below else "OUTPUT_DIR/model"
    raise UserError(f"{folder} {what}; give the model folder of a run, such as {example}")


def model_files(folder: Path) -> list[Path]:
    """The files of a model folder, and of the run that it is given by, which no command may write over."""
    model = find_model_folder(folder)
    return [path for place in (folder, model, model / "thumbnails") for path in place.glob("*") if path.suffix in KEPT]


def own_file(folder: Path, name: str) -> Path | None:
    """A file of a model folder that may be shown or copied; None if it has none of that name.

    A link leads to it only within the folder, or to the files of huggingface_hub's cache, whose folders hold nothing
    but links. Any other link of a foreign folder might give away a file of this machine.
    """
    base = folder.resolve()
    path = (base / name).resolve()
    places = [base, base.parents[1] / "blobs"] if base.parent.name == "snapshots" else [base]
    if not path.is_file():
        return None
    if not any(path.is_relative_to(place) for place in places):
        logger.warning("%s is a link out of its folder, and is left out", folder / name)
        return None
    return path
