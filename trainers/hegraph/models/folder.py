"""The model folder: `config.json`, `model.safetensors`, `README.md`.

Loading reads JSON and safetensors only, and nothing in the folder is run. Every field and every tensor is checked
before it is used.

Shapes: K classes, N cached images, d feature width.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from ..method.classifier import FoldedClassifier
from ..method.options import ModelOptions
from ..method.transfer import TransferableAdapter
from ..utils.errors import UserError
from ..utils.files import read_json, read_tensors, write_json, write_tensors, writing_folder
from .card import model_card
from .saved import SavedModel
from .schema import Fusion, ModelConfig, Transfer, first_problem

CONFIG, TENSORS, CARD = "config.json", "model.safetensors", "README.md"
TRANSFER = "transfer."  # prefix of the tensors that reach other classes
OLD_ADAPTER = "adapter.safetensors"


def save_model(model: SavedModel, folder: Path) -> None:
    """Writes a model folder, whole or not at all; an older one in its place is replaced.

    Args:
        model: What to write. The cache's keys are rounded to float16.
        folder: The model folder.

    Raises:
        UserError: If the folder cannot be written, or something else than a model folder is in its place.
    """
    if folder.exists() and not (folder / CONFIG).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is no model folder, and is not overwritten; choose another")
    with writing_folder(folder) as temporary:
        config = _config(model)
        write_json(temporary / CONFIG, config.model_dump())
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
    try:
        config = ModelConfig.model_validate(read_json(path / CONFIG))
    except ValidationError as error:
        raise UserError(f"{path / CONFIG} is damaged: {first_problem(error)}") from error
    tensors, _ = read_tensors(path / TENSORS, "the model")
    _check_tensors(path / TENSORS, config, tensors)
    keys = tensors.get("keys")
    classifier = FoldedClassifier(
        weights=tensors["weights"],
        bias=tensors.get("bias"),
        keys=None if keys is None else keys.float(),
        labels=tensors["labels"].long() if keys is not None else None,
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
    )


def find_model_folder(folder: Path) -> Path:
    """The model folder that a user means: the folder itself, or `model/` in the output folder of a run.

    Raises:
        UserError: If there is none.
    """
    for candidate in (folder, folder / "model"):
        if (candidate / CONFIG).is_file():
            return candidate
    if (folder / OLD_ADAPTER).exists():
        raise UserError(
            f"{folder} holds {OLD_ADAPTER} of an earlier version and no model/; run its training again (delete "
            f"{folder}/result.json first) to get one"
        )
    what = "is not there" if not folder.exists() else "is no folder" if not folder.is_dir() else f"holds no {CONFIG}"
    raise UserError(f"{folder} {what}; give the model folder of a run, such as OUTPUT_DIR/model")


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
    )


def _tensors(model: SavedModel) -> dict[str, Tensor]:
    classifier = model.classifier
    found = {
        "weights": classifier.weights,
        "bias": classifier.bias,
        "keys": None if classifier.keys is None else classifier.keys.half(),
        "labels": None if classifier.labels is None else classifier.labels.int(),
        "key_weights": classifier.key_weights,
        "text_positive": model.text_positive,
    }
    parameters = {} if model.transfer is None else model.transfer.parameters
    found |= {f"{TRANSFER}{name}": tensor for name, tensor in parameters.items()}
    return {name: tensor.detach().cpu() for name, tensor in found.items() if tensor is not None}


def _check_tensors(path: Path, config: ModelConfig, tensors: dict[str, Tensor]) -> None:
    """Checks names, shapes, types and values of all tensors but those of the transfer."""
    classes, width = len(config.classnames), config.width
    missing = [name for name in ("weights", "text_positive") if name not in tensors]
    if ("keys" in tensors) != ("labels" in tensors):
        missing.append("labels" if "keys" in tensors else "keys")
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; the model is damaged")
    images = len(tensors["keys"]) if "keys" in tensors else 0
    shapes = {
        "weights": [classes, width], "text_positive": [classes, width], "bias": [classes],
        "keys": [images, width], "labels": [images], "key_weights": [images],
    }  # fmt: skip
    for name, tensor in tensors.items():
        if name.startswith(TRANSFER):
            continue
        if name not in shapes:
            raise UserError(f"{path} holds an unknown tensor {name!r}; the model is of another version or damaged")
        if list(tensor.shape) != shapes[name]:
            raise UserError(f"{path}: {name} has shape {list(tensor.shape)}, but {CONFIG} says {shapes[name]}")
        integer = name == "labels"
        if tensor.is_floating_point() == integer or tensor.is_complex() or tensor.dtype == torch.bool:
            raise UserError(f"{path}: {name} must hold {'integers' if integer else 'floats'}, got {tensor.dtype}")
        if not integer and not tensor.isfinite().all():
            raise UserError(f"{path}: {name} holds NaN or infinite values; the model is damaged")
    if images and not (0 <= int(tensors["labels"].min()) and int(tensors["labels"].max()) < classes):
        raise UserError(f"{path}: labels must lie in 0 ... {classes - 1}; the model is damaged")


def _transfer(path: Path, config: ModelConfig, tensors: dict[str, Tensor]) -> TransferableAdapter | None:
    if config.transfer.rule != "adapter":
        return None
    parameters = {name[len(TRANSFER) :]: tensor for name, tensor in tensors.items() if name.startswith(TRANSFER)}
    square = [config.width, config.width]
    for name, tensor in parameters.items():
        wanted = square if name.startswith("weight.") else []
        if list(tensor.shape) != wanted or not tensor.isfinite().all():
            raise UserError(f"{path / TENSORS}: {TRANSFER}{name} must be finite and of shape {wanted}")
    try:
        return TransferableAdapter(ModelOptions(**config.transfer.options), parameters)
    except TypeError as error:
        raise UserError(f"{path / CONFIG} is damaged: transfer.options: {error}") from error
