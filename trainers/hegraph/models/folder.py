"""The model folder: `config.json`, `model.safetensors`, `README.md`.

Loading reads JSON and safetensors only, and nothing in the folder is run. Every field and every tensor is checked
before it is used.

Shapes: K classes, N cached images, d feature width.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from ..method.cache import FoldedClassifier
from ..method.closed_form import NewClassMessages
from ..method.options import ClosedFormOptions, ModelOptions
from ..method.relations import metapath_defaults
from ..method.transfer import TransferableAdapter
from ..training.checkpoints import ADAPTER
from ..training.rejection import KnownScores
from ..utils.errors import UserError
from ..utils.files import read_json, read_tensors, write_json, write_tensors, writing_folder
from ..utils.schema import first_problem
from .card import model_card
from .saved import SavedModel
from .schema import AdapterOptions, Fusion, Known, ModelConfig, Transfer

CONFIG, TENSORS, CARD = "config.json", "model.safetensors", "README.md"
TRANSFER = "transfer."  # prefix of the tensors that reach other classes
MESSAGES = f"{TRANSFER}messages."  # of those, the messages in closed form
NODES = "class_nodes"  # in the whitened space of those messages
LEVELS = 4  # folders between output/ and a run: data set, method, configuration, seed
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.int32, torch.int64)
# Options of earlier versions, each with what this version does
REMOVED = {"activation": "tanh", "weight_per": "target", "gamma": 1.0, "omega_new": 0.05, "prior": 4.0}
MAX_CONFIG_BYTES = 2**28  # a thousand times what the prompts of ImageNet take


def save_model(model: SavedModel, folder: Path) -> None:
    """Writes a model folder, whole or not at all; an older one in its place is replaced.

    Args:
        model: What to write. HeGraphAdapter's cache keys are rounded to float16. The keys of other methods stay in
            float32, since rounding them changed the prediction of single images.
        folder: The model folder.

    Raises:
        UserError: If the folder cannot be written, or something else than a model folder is in its place.
    """
    if folder.exists() and not (folder / CONFIG).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is no model folder, and is not overwritten; choose another")
    with writing_folder(folder) as temporary:
        config = _config(model)
        write_json(temporary / CONFIG, config.model_dump(exclude=_not_known(config)))
        write_tensors(temporary / TENSORS, _tensors(model), {"format": config.format})
        (temporary / CARD).write_text(model_card(model), encoding="utf-8")


def load_model(folder: Path | str) -> SavedModel:
    """Reads a model folder.

    Args:
        folder: The model folder, or the output folder of a run, whose `model/` is then read.

    Raises:
        UserError: If something is missing, damaged or contradicts something else; the message says what.
    """
    path = find_model_folder(Path(folder))
    config = _read_config(path / CONFIG)
    tensors = _read_tensors(path / TENSORS, config)
    classifier = FoldedClassifier(
        weights=tensors["weights"],
        bias=tensors.get("bias"),
        keys=tensors.get("keys"),
        labels=tensors.get("labels"),
        key_weights=tensors.get("key_weights"),
        alpha=config.fusion.alpha,
        beta=config.fusion.beta,
    )
    return SavedModel(
        classifier=classifier,
        text_positive=tensors["text_positive"],
        classnames=tuple(config.classnames),
        class_ids=tuple(config.class_ids),
        method=config.method,
        variant=config.variant,
        logit_scale=config.logit_scale,
        temperature=config.temperature,
        backbone=config.backbone,
        preprocessing=config.preprocessing,
        prompts=config.prompts,
        transfer=_transfer(path, config, tensors),
        transfer_rule=config.transfer.rule,
        trained_on=config.trained_on,
        scores=config.scores,
        labels=None if config.labels is None else tuple(config.labels),
        known=_known(config),
        class_nodes=tensors.get(NODES),
    )


def find_model_folder(folder: Path) -> Path:
    """The model folder that a user means: the folder itself, or `model/` in the output folder of a run.

    Raises:
        UserError: If there is none.
    """
    try:
        for candidate in (folder, folder / "model"):
            if (candidate / CONFIG).is_file():
                return candidate
        trained = (folder / ADAPTER).exists()
    except OSError as error:  # no permission, or a name that is too long
        raise UserError(f"cannot read the model folder {folder}: {error.strerror}") from error
    if trained:
        raise UserError(
            f"{folder} holds {ADAPTER} and no model/: its run was cut off, or is of an earlier version; run its "
            "training again to get one (delete a result.json there first)"
        )
    what = "is not there" if not folder.exists() else "is no folder" if not folder.is_dir() else f"holds no {CONFIG}"
    raise UserError(f"{folder} {what}; give the model folder of a run, such as {_model_below(folder)}")


def _model_below(folder: Path) -> str:
    """A model folder of a run below a folder, for a message to name: scripts put runs some folders deep."""
    for depth in range(1, LEVELS + 1):
        if found := sorted(folder.glob(f"{'*/' * depth}model/{CONFIG}")):
            return str(found[0].parent)
    return "OUTPUT_DIR/model"


def _config(model: SavedModel) -> ModelConfig:
    options = asdict(model.transfer.options) if model.transfer is not None else {}
    return ModelConfig(
        format="hegraph-model",
        version=1,
        method=model.method,
        variant=model.variant,
        classnames=list(model.classnames),
        class_ids=list(model.class_ids),
        width=model.classifier.width,
        logit_scale=model.logit_scale,
        temperature=model.temperature,
        fusion=Fusion(alpha=model.classifier.alpha, beta=model.classifier.beta),
        backbone=model.backbone,
        preprocessing=model.preprocessing,
        prompts=model.prompts,
        transfer=Transfer(rule=model.transfer_rule, options=options),  # type: ignore[arg-type]  # checked by pydantic
        trained_on=model.trained_on,
        scores=model.scores,
        labels=None if model.labels is None else list(model.labels),
        known=None if model.known is None else _checked(model.known),
    )


def _not_known(config: ModelConfig) -> dict[str, Any]:
    """The entries that are left out where they are not known, as they are in folders of earlier versions."""
    missing: dict[str, Any] = {} if config.known else {"known": True}
    if config.scores.ece is None:
        missing["scores"] = {"ece", "ece_zero_shot"}
    return missing


def _checked(known: KnownScores) -> Known:
    return Known(**asdict(known) | {"quantiles": list(known.quantiles)})


def _known(config: ModelConfig) -> KnownScores | None:
    if config.known is None:
        return None
    found = config.known.model_dump()
    return KnownScores(**found | {"quantiles": tuple(found["quantiles"])})


def _keys_to_keep(model: SavedModel) -> Tensor | None:
    keys = model.classifier.keys
    return keys.half() if keys is not None and model.method == "HeGraphAdapter" else keys


def _tensors(model: SavedModel) -> dict[str, Tensor]:
    classifier = model.classifier
    found = {
        "weights": classifier.weights,
        "bias": classifier.bias,
        "keys": _keys_to_keep(model),
        "labels": None if classifier.labels is None else classifier.labels.int(),
        "key_weights": classifier.key_weights,
        "text_positive": model.text_positive,
        NODES: None if model.class_nodes is None else model.class_nodes.half(),
    }
    parameters = {} if model.transfer is None else model.transfer.parameters
    found |= {f"{TRANSFER}{name}": tensor for name, tensor in parameters.items()}
    if model.transfer is not None and model.transfer.messages is not None:
        messages = asdict(model.transfer.messages)
        found |= {f"{MESSAGES}{name}": tensor for name, tensor in messages.items()}
    return {name: tensor.detach().cpu() for name, tensor in found.items() if tensor is not None}


def _read_config(path: Path) -> ModelConfig:
    try:
        size = path.stat().st_size
        if size > MAX_CONFIG_BYTES:
            raise UserError(f"{path} is damaged: it has {size:,} bytes, and at most {MAX_CONFIG_BYTES:,} are read")
        found = read_json(path, finite=False)  # the schema says which field is not
        config = ModelConfig.model_validate(found)
    except ValidationError as error:
        raise UserError(f"{path} is damaged: {first_problem(error)}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    for part in ("fusion", "backbone", "transfer"):  # some of their fields have defaults, for those who make them
        for name in type(getattr(config, part)).model_fields:
            if name not in found[part]:
                raise UserError(f"{path} is damaged: {part}.{name}: Field required")
    return config


def _read_tensors(path: Path, config: ModelConfig) -> dict[str, Tensor]:
    """All tensors, checked against the configuration; floats as float32, integers as int64."""
    found, _ = read_tensors(path, "the model")
    _check_names(path, config, found)
    shapes = _shapes(config, len(found["keys"]) if "keys" in found and found["keys"].dim() else 0)
    tensors = {}
    for name, tensor in found.items():
        shape, allowed = shapes.get(name, _transfer_shape(name, config)), INTEGERS if name == "labels" else FLOATS
        if list(tensor.shape) != shape:
            raise UserError(f"{path}: {name} has shape {list(tensor.shape)}, but {CONFIG} says {shape}")
        if tensor.dtype not in allowed:
            known = ", ".join(_dtype(dtype) for dtype in allowed)
            raise UserError(f"{path}: {name} must be of type {known}; got {_dtype(tensor.dtype)}")
        tensors[name] = tensor.long() if name == "labels" else tensor.float()
        if not tensors[name].isfinite().all():
            raise UserError(f"{path}: {name} holds NaN or infinite values; the model is damaged")
    _check_labels(path, config, tensors)
    return tensors


def _check_names(path: Path, config: ModelConfig, tensors: dict[str, Tensor]) -> None:
    """Checks that no tensor is missing and none is unknown."""
    missing = [name for name in ("weights", "text_positive") if name not in tensors]
    if ("keys" in tensors) != ("labels" in tensors):
        missing.append("labels" if "keys" in tensors else "keys")
    elif "key_weights" in tensors and "keys" not in tensors:
        missing += ["keys", "labels"]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; the model is damaged")
    prefixes = (f"{TRANSFER}weight.", f"{TRANSFER}metapath.", MESSAGES) if config.transfer.rule == "adapter" else ()
    for name in tensors:
        if name not in _shapes(config, 0) and not name.startswith(prefixes):
            raise UserError(f"{path} holds an unknown tensor {name!r}; the model is of another version or damaged")


def _shapes(config: ModelConfig, images: int) -> dict[str, list[int]]:
    """The shapes of all tensors but those of the transfer, with so many cached images."""
    classes, width = len(config.classnames), config.width
    return {
        "weights": [classes, width],
        "text_positive": [classes, width],
        "bias": [classes],
        "keys": [images, width],
        "labels": [images],
        "key_weights": [images],
        NODES: [classes, width],
    }


def _transfer_shape(name: str, config: ModelConfig) -> list[int]:
    if name in (f"{MESSAGES}offset", f"{MESSAGES}mean"):
        return [config.width]
    return [config.width, config.width] if name.startswith((f"{TRANSFER}weight.", MESSAGES)) else []


def _check_labels(path: Path, config: ModelConfig, tensors: dict[str, Tensor]) -> None:
    if "labels" not in tensors:
        return
    labels, classes = tensors["labels"], len(config.classnames)
    if not len(labels):
        raise UserError(f"{path}: keys and labels are empty; the model is damaged")
    if not (0 <= int(labels.min()) and int(labels.max()) < classes):
        raise UserError(f"{path}: labels must lie in 0 ... {classes - 1}; the model is damaged")


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _transfer(path: Path, config: ModelConfig, tensors: dict[str, Tensor]) -> TransferableAdapter | None:
    if config.transfer.rule != "adapter":
        return None
    found = {name: tensor for name, tensor in tensors.items() if name.startswith(TRANSFER)}
    messages = {name[len(MESSAGES) :]: found.pop(name) for name in list(found) if name.startswith(MESSAGES)}
    parameters = {name[len(TRANSFER) :]: tensor for name, tensor in found.items()}
    try:
        options = AdapterOptions.model_validate(_without_removed(path, config.transfer.options)).model_dump()
    except ValidationError as error:
        raise UserError(f"{path / CONFIG} is damaged: transfer.options.{first_problem(error)}") from error
    known, weights = metapath_defaults(), options["metapath"]
    # A relation that was added since has no key; one that is left out by default changes nothing
    if weights.keys() - known.keys() or any(known[key] for key in known.keys() - weights.keys()):
        raise UserError(f"{path / CONFIG} is damaged: transfer.options.metapath must have the keys {', '.join(known)}")
    options["metapath"] = known | weights
    options["closed_form"] = ClosedFormOptions(**options["closed_form"])
    made = ModelOptions(**options)
    if made.has_closed_form or messages:
        names = [field.name for field in fields(NewClassMessages)]
        if lacking := [name for name in names if name not in messages]:
            raise UserError(f"{path / TENSORS} lacks {MESSAGES}{lacking[0]}; the model is damaged")
        if unknown_names := sorted(messages.keys() - set(names)):
            raise UserError(f"{path / TENSORS} holds an unknown tensor '{MESSAGES}{unknown_names[0]}'")
    adapter = TransferableAdapter(made, parameters, NewClassMessages(**messages) if messages else None)
    if missing := adapter.missing_parameters():
        raise UserError(f"{path / TENSORS} lacks {TRANSFER}{missing[0]}; the model is damaged")
    return adapter


def _without_removed(path: Path, options: dict[str, Any]) -> dict[str, Any]:
    """The options of an adapter without those of earlier versions, which must be what this version does.

    Raises:
        UserError: Otherwise.
    """
    closed = options.get("closed_form")
    closed = closed if isinstance(closed, dict) else {}
    found = options | (closed if closed.get("omega") else {})  # without messages, nothing weighs them
    for name, value in REMOVED.items():
        if found.get(name, value) != value:
            raise UserError(
                f"{path / CONFIG}: the model was trained with {name} {found[name]!r:.80}, and this version knows "
                f"{value!r} alone"
            )
    kept = {name: value for name, value in options.items() if name not in REMOVED}
    if closed:
        kept["closed_form"] = {name: value for name, value in closed.items() if name not in REMOVED}
    return kept
