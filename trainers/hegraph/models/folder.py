"""The model folder: `config.json`, `model.safetensors`, `README.md`, and maybe small pictures of the cached images.

Loading reads JSON and safetensors only, and nothing in the folder is run. Every field and every tensor is checked
before it is used, and the hash of the tensors in `config.json` says that the two files belong together. The pictures,
`thumbnails/00000.jpg` and so on in the order of the cache, show which training images an image resembles.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field, field_validator
from torch import Tensor

from ..method.cache import FoldedClassifier
from ..method.closed_form import NewClassMessages
from ..method.model import TransferableAdapter
from ..method.options import ModelOptions, metapath_defaults
from ..method.unlabelled import ClassSums
from ..utils.errors import UserError
from ..utils.files import hash_content, whole_folder, write_json, write_tensors, writing_folder
from ..utils.option import OUR_METHOD, option_of
from ..utils.reading import Finite, Size, StrictModel, read_json, read_tensors, reading
from .card import model_card
from .saved import ModelMetadata, SavedModel
from .support_set import SupportSet

logger = logging.getLogger(__name__)

CONFIG, TENSORS, CARD, THUMBNAILS = "config.json", "model.safetensors", "README.md", "thumbnails"
TRANSFER, MESSAGES = "transfer.", "transfer.messages."  # prefixes of what reaches other classes
LABELLED, STATE = "labelled.", "labelled.state."  # prefixes of what was taught, and of the parameters of `Lessons`
CLASSIFIER = ("weights", "bias", "keys", "labels", "key_weights")  # tensors of `FoldedClassifier`
UNLABELLED = "unlabelled.features"
# Shape of a tensor -> its names, and of a trained parameter: K classes, N cached images, T taught ones, M unlabelled
# ones, d the width
SHAPES = {
    "K": ("bias", "labelled.counts"),
    "Kd": ("weights", "text_positive", "class_nodes", "labelled.sums", "labelled.positive", "labelled.negative"),
    "N": ("labels", "key_weights"),
    "Nd": ("keys",),
    "T": ("labelled.labels",),
    "Td": ("labelled.features",),
    "Md": (UNLABELLED,),
    "d": ("transfer.messages.offset", "transfer.messages.mean"),
    "dd": ("labelled.moment", "transfer.messages.matrix", "transfer.messages.whitening"),
}
PARAMETERS = {f"{TRANSFER}weight": "dd", f"{TRANSFER}metapath": ""}
PARAMETERS |= {f"{STATE}weight": "dd", f"{STATE}bias": "Kd", f"{STATE}metapath": ""}
WHOLE = ("labels", "labelled.labels")  # tensors of whole numbers
MODEL_FILE_TYPES = (".json", ".safetensors", ".md", ".jpg", ".pt")
MAX_SIDE = 64  # pixels of a thumbnail
MAX_BYTES = 32_768  # of its file; JPEGs of this size have about 3,000


class Fusion(StrictModel):
    """How the two classifiers are added: `alpha` weighs the cache, whose affinities have the sharpness `beta`."""

    alpha: Finite
    beta: Finite


class AdapterTransfer(StrictModel):
    """Other classes are reached by message passing among text nodes with the trained `W`."""

    rule: Literal["adapter"]
    options: ModelOptions

    @field_validator("options")
    @classmethod
    def allowed(cls, found: ModelOptions) -> ModelOptions:
        """Check every value against its option, and the names of the meta-path weights."""
        for holder in (found, found.closed_form):
            for of_field in fields(holder):
                if (declared := option_of(of_field)) is not None:
                    declared.check(getattr(holder, of_field.name))
        known = metapath_defaults()
        if found.metapath.keys() != known.keys():
            raise ValueError(f"metapath must have the keys {', '.join(known)}, got {', '.join(sorted(found.metapath))}")
        return found


class OtherTransfer(StrictModel):
    """Other classes are reached as by zero-shot CLIP, or not at all."""

    rule: Literal["zero-shot", "none"]
    options: dict[str, Any]


class ModelConfig(ModelMetadata):
    """Schema of `config.json`: metadata of the model, and the width, the hash and the meaning of its tensors."""

    format: Literal["hegraph-model"] = "hegraph-model"
    version: Literal[1] = 1
    width: Size
    fusion: Fusion
    transfer: AdapterTransfer | OtherTransfer = Field(discriminator="rule")
    tensors: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


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
        {name: getattr(model, name) for name in ModelMetadata.model_fields}
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


def _tensors(model: SavedModel) -> dict[str, Tensor]:
    """The tensors of a folder, by name and in the order of the names."""
    found = {name: getattr(model.classifier, name) for name in CLASSIFIER}
    found |= {"text_positive": model.text_positive, "class_nodes": model.class_nodes}
    if model.transfer is not None:
        found |= {f"{TRANSFER}{name}": tensor for name, tensor in model.transfer.parameters.items()}
        if model.transfer.messages is not None:
            found |= {f"{MESSAGES}{name}": tensor for name, tensor in asdict(model.transfer.messages).items()}
    if model.labelled is not None:
        found |= {f"{LABELLED}{name}": tensor.float() for name, tensor in asdict(model.labelled).items()}
    if (support_set := model.support_set) is not None:
        found |= {f"{LABELLED}features": support_set.keys(), f"{LABELLED}labels": support_set.labels}
        found |= {f"{LABELLED}{name}": getattr(support_set, name) for name in ("positive", "negative")}
        found |= {f"{STATE}{name}": tensor for name, tensor in support_set.state.items()}
        if model.unlabelled_features is not None:
            found[UNLABELLED] = model.unlabelled_features
    kinds = {**dict.fromkeys(WHOLE, torch.int32), "class_nodes": torch.float16}
    if model.method == OUR_METHOD:
        kinds["keys"] = torch.float16
    there = {name: tensor.detach().cpu() for name, tensor in sorted(found.items()) if tensor is not None}
    return {name: tensor.to(kinds.get(name, tensor.dtype), copy=True) for name, tensor in there.items()}


def load_model(folder: Path | str) -> SavedModel:
    """Reads a model folder, or `model/` in the output folder of a run.

    Raises:
        UserError: If something is missing, damaged or contradicts something else; the message says what.
    """
    path = find_model_folder(Path(folder))
    with reading(path / CONFIG, "the config.json of a model folder"):
        said = read_json(path / CONFIG)
        config = ModelConfig.model_validate_json(json.dumps(said))  # as JSON, whose lists may become tuples
        if missing := next(_missing(config.model_dump(mode="json"), said), ""):
            raise ValueError(f"{missing}: Field required")
    found, _ = read_tensors(path / TENSORS, "a model")
    with reading(path / TENSORS, f"the tensors of the {CONFIG} beside it"):
        if config.tensors != hash_content(dict(sorted(found.items()))):
            raise ValueError(f"its hash is not the one in {CONFIG}")
        return _model(config, _checked(config, found))


def _missing(whole: dict[str, Any], found: dict[str, Any], above: str = "") -> Iterator[str]:
    """The fields that a file lacks, though those who make a model may leave them out."""
    for name, value in whole.items():
        if name not in found:
            yield f"{above}{name}"
        elif isinstance(value, dict):
            yield from _missing(value, found[name], f"{above}{name}.")


def _checked(config: ModelConfig, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file, which fit its configuration: floats as float32, integers as int64.

    Raises:
        ValueError: If a tensor is unknown, or of another shape, another type or infinite values.
    """
    sizes, checked = {"K": len(config.classnames), "d": config.width}, {}
    for letter, name in (("N", "keys"), ("T", "labelled.features"), ("M", UNLABELLED)):
        sizes[letter] = len(found[name]) if name in found else 0
    shape_of = {name: shape for shape, names in SHAPES.items() for name in names}
    for name, tensor in found.items():
        letters = shape_of.get(name, PARAMETERS.get(name.rpartition(".")[0]))
        if letters is None or (name.startswith(TRANSFER) and config.transfer.rule != "adapter"):
            raise ValueError(f"it holds an unknown tensor {name!r}")
        shape = [sizes[letter] for letter in letters]
        kind = "whole numbers" if name in WHOLE else "floats"
        if [*tensor.shape] != shape or tensor.is_floating_point() != (kind == "floats"):
            raise ValueError(f"{name} must be {shape} of {kind}, got {list(tensor.shape)} of {tensor.dtype}")
        tensor = tensor.long() if name in WHOLE else tensor.float()
        if not tensor.isfinite().all():
            raise ValueError(f"{name} holds NaN or infinite values")
        if name in WHOLE and len(tensor) and not (0 <= tensor.min() and tensor.max() < sizes["K"]):
            raise ValueError(f"{name} must lie in 0 ... {sizes['K'] - 1}")
        checked[name] = tensor
    if UNLABELLED in found and sizes["M"] != config.unlabelled:
        raise ValueError(f"{sizes['M']} rows of {UNLABELLED} for {config.unlabelled} unlabelled images")
    if checked.keys() & {"keys", "labels"} and not (sizes["N"] and "labels" in checked):
        raise ValueError("keys and labels of a cache must be there together, of an image or more")
    return checked


def _model(config: ModelConfig, tensors: dict[str, Tensor]) -> SavedModel:
    """The model of a folder; raises an exception if a tensor is missing, or image ids are of other images."""
    of_classifier = {name: tensors[name] for name in CLASSIFIER if name in tensors}
    taught = _below(LABELLED, tensors)
    return SavedModel(
        **{name: getattr(config, name) for name in ModelMetadata.model_fields},
        classifier=FoldedClassifier(**of_classifier, alpha=config.fusion.alpha, beta=config.fusion.beta),
        text_positive=tensors["text_positive"],
        transfer=_transfer(config, tensors),
        transfer_rule=config.transfer.rule,
        class_nodes=tensors.get("class_nodes"),
        labelled=ClassSums(*(taught[of.name].double() for of in fields(ClassSums))) if "counts" in taught else None,
        support_set=_support_set(config, taught) if "features" in taught else None,
        unlabelled_features=tensors.get(UNLABELLED),
    )


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names have a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _support_set(config: ModelConfig, taught: dict[str, Tensor]) -> SupportSet:
    """What the model was taught; errors as of `_model`."""
    labels = taught["labels"]
    ids = torch.tensor(config.image_ids or [0] * len(labels), dtype=torch.long)
    if len(ids) != len(labels):
        raise ValueError(f"{len(ids)} image_ids for {len(labels)} images")
    classes = np.array(config.classnames if config.labels is None else config.labels)
    text = taught.get("positive"), taught.get("negative")
    return SupportSet(
        classes, config.classnames, taught["features"][None], labels, ids, *text, _below("state.", taught)
    )


def _transfer(config: ModelConfig, tensors: dict[str, Tensor]) -> TransferableAdapter | None:
    """What reaches other classes; errors as of `_model`."""
    if not isinstance(config.transfer, AdapterTransfer):
        return None
    options = config.transfer.options
    messages = NewClassMessages(**_below(MESSAGES, tensors)) if options.has_closed_form else None
    parameters = _below(TRANSFER, {name: t for name, t in tensors.items() if not name.startswith(MESSAGES)})
    adapter = TransferableAdapter(options, parameters, messages)
    if missing := adapter.missing_parameters():
        raise ValueError(f"it lacks {TRANSFER}{missing[0]}")
    return adapter


def find_model_folder(folder: Path) -> Path:
    """The model folder that a user means: the folder itself, or `model/` in the output folder of a run.

    Raises:
        UserError: If there is none.
    """
    for candidate in map(whole_folder, (folder, folder / "model")):
        if (candidate / CONFIG).is_file():
            return candidate
    what = f"holds no {CONFIG}" if folder.exists() else "is not there"
    raise UserError(f"{folder} {what}; give the model folder of a run, such as OUTPUT_DIR/model")


def model_files(folder: Path) -> list[Path]:
    """The files of a model folder, and of the run that it is given by, which no command may write over."""
    model = find_model_folder(folder)
    return [
        path
        for place in (folder, model, model / THUMBNAILS)
        for path in place.glob("*")
        if path.suffix in MODEL_FILE_TYPES
    ]


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


def write_thumbnails(folder: Path, images: Iterable[Image.Image]) -> None:
    """Writes the thumbnails of a model folder, all or none: of one image for each key of the cache, in the same order.

    Only the pixels are written: what else an image file holds, such as the place where a photo was taken, is left out.

    Raises:
        UserError: If the folder cannot be written.
    """
    with writing_folder(folder / THUMBNAILS) as temporary:
        for position, image in enumerate(images):
            small = image.convert("RGB")
            small.thumbnail((MAX_SIDE, MAX_SIDE))
            small.info.clear()
            small.save(temporary / thumbnail_name(position), quality=85)


def read_thumbnail(folder: Path, position: int) -> Image.Image | None:
    """The thumbnail of the cached image at a position from 0, as RGB of at most 64x64 pixels; None if there is none.

    A file that is larger than a thumbnail, or no JPEG, is not shown either, and that is logged.
    """
    path = own_file(folder, f"{THUMBNAILS}/{thumbnail_name(position)}")
    if path is None:
        return None
    try:
        with Image.open(path, formats=["JPEG"]) as image:
            if max(image.size) > MAX_SIDE or path.stat().st_size > MAX_BYTES:
                raise ValueError(f"it is larger than a thumbnail of {MAX_SIDE}x{MAX_SIDE} pixels")
            return image.convert("RGB")
    except Exception as error:  # on damaged bytes, Pillow raises whatever they lead to
        logger.warning("%s is not shown: %s", path, error)
        return None


def thumbnail_name(position: int) -> str:
    """The file of one cached image, in `THUMBNAILS`."""
    return f"{position:05d}.jpg"
