"""The model folder: `config.json`, `model.safetensors`, `README.md`.

Loading reads JSON and safetensors only, and nothing in the folder is run. Every field and every tensor is checked
before it is used, and the hash of the tensors in `config.json` says that the two files belong together.

Shapes: K classes, N cached images, d feature width.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import torch
from pydantic import Field, PlainSerializer, PlainValidator, ValidationError, create_model
from torch import Tensor

from ..method.cache import FoldedClassifier
from ..method.closed_form import NewClassMessages
from ..method.model import TransferableAdapter
from ..method.options import ClosedFormOptions, ModelOptions
from ..method.relations import metapath_defaults
from ..training.checkpoints import ADAPTER
from ..utils.errors import UserError, first_line
from ..utils.files import hash_content, write_json, write_tensors, writing_folder
from ..utils.option import option_of
from ..utils.reading import read_json, read_tensors, reading
from ..utils.schema import Finite, Part, Size
from .card import model_card
from .saved import Described, SavedModel

logger = logging.getLogger(__name__)

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
KEPT = (".json", ".safetensors", ".md", ".jpg", ".pt")
SINCE = {"known", "tensors", "ece", "ece_zero_shot", "unlabelled"}  # fields that folders of earlier versions lack


class Fusion(Part):
    """How the two classifiers are added: `alpha` weighs the cache, whose affinities have the sharpness `beta`."""

    alpha: Finite
    beta: Finite


def declared(holder: type, **others: Any) -> type[Part]:
    """The schema of a dataclass of options: each field with the type, and the choices, that it is declared with.

    Args:
        holder: The dataclass.
        others: The types of fields that are no options.
    """
    kinds: dict[str, Any] = get_type_hints(holder)
    for of_field in fields(holder):
        found = option_of(of_field)
        kind = Literal[found.choices] if found is not None and found.choices else kinds[of_field.name]
        kinds[of_field.name] = others.get(of_field.name, Finite if kind is float else kind)
    required: dict[str, Any] = {name: (kind, ...) for name, kind in kinds.items()}
    return create_model(holder.__name__, __base__=Part, **required)


ADAPTER_OPTIONS = declared(ModelOptions, metapath=dict[str, Finite], closed_form=declared(ClosedFormOptions))


def adapter_options(found: Any) -> ModelOptions:
    """The options of a model from their plain values, without those of earlier versions.

    Raises:
        ValueError: If one is missing, unknown or of another kind, or an earlier version's is not what this one does.
    """
    if isinstance(found, dict) and isinstance(found.get("closed_form"), dict):
        closed = found["closed_form"]
        weighed = closed if closed.get("omega") else {}  # without messages, nothing weighs them
        for name, value in REMOVED.items():
            if (came := (found | weighed).get(name, value)) != value:
                raise ValueError(f"the model was trained with {name} {came!r:.80}, this version knows {value!r} alone")
        found, closed = ({key: part[key] for key in part.keys() - REMOVED.keys()} for part in (found, closed))
        found["closed_form"] = closed
    try:
        values = ADAPTER_OPTIONS.model_validate(found).model_dump()
    except ValidationError as error:
        raise ValueError(first_line(error)) from error
    known, weights = metapath_defaults(), values["metapath"]
    # A relation that was added since has no key; one that is left out by default changes nothing
    if weights.keys() - known.keys() or any(known[key] for key in known.keys() - weights.keys()):
        raise ValueError(f"metapath must have the keys {', '.join(known)}")
    made = {"closed_form": ClosedFormOptions(**values["closed_form"]), "metapath": known | weights}
    return ModelOptions(**values | made)


class AdapterTransfer(Part):
    """Other classes are reached by message passing among text nodes with the trained `W`."""

    rule: Literal["adapter"]
    options: Annotated[Any, PlainValidator(adapter_options), PlainSerializer(asdict)]  # `ModelOptions`


class OtherTransfer(Part):
    """Other classes are reached as by zero-shot CLIP, or not at all."""

    rule: Literal["zero-shot", "none"]
    options: dict[str, Any]


class ModelConfig(Described):
    """All of `config.json`: what the model says of itself, and how its tensors are to be read.

    Attributes:
        width: d.
        tensors: `hash_content` of the tensors; None in folders of earlier versions.
    """

    format: Literal["hegraph-model"] = "hegraph-model"
    version: Literal[1] = 1
    width: Size
    fusion: Fusion
    transfer: AdapterTransfer | OtherTransfer = Field(discriminator="rule")
    tensors: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None


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
    tensors = _tensors(model)
    options = {} if model.transfer is None else asdict(model.transfer.options)
    config = ModelConfig.model_validate(
        {name: getattr(model, name) for name in Described.model_fields}
        | {
            "width": model.classifier.width,
            "fusion": {"alpha": model.classifier.alpha, "beta": model.classifier.beta},
            "transfer": {"rule": model.transfer_rule, "options": options},
            "tensors": hash_content(tensors),
        }
    )
    with writing_folder(folder) as temporary:
        write_tensors(temporary / TENSORS, tensors, {"format": config.format})
        (temporary / CARD).write_text(model_card(model), encoding="utf-8")
        write_json(temporary / CONFIG, config.model_dump(mode="json"))


def _tensors(model: SavedModel) -> dict[str, Tensor]:
    """The tensors of a folder, by name and in the order of the names."""
    classifier, keys, nodes = model.classifier, model.classifier.keys, model.class_nodes
    found = {
        "weights": classifier.weights,
        "bias": classifier.bias,
        "keys": keys.half() if keys is not None and model.method == "HeGraphAdapter" else keys,
        "labels": None if classifier.labels is None else classifier.labels.int(),
        "key_weights": classifier.key_weights,
        "text_positive": model.text_positive,
        NODES: None if nodes is None else nodes.half(),
    }
    if model.transfer is not None:
        found |= {f"{TRANSFER}{name}": tensor for name, tensor in model.transfer.parameters.items()}
        if model.transfer.messages is not None:
            found |= {f"{MESSAGES}{name}": tensor for name, tensor in asdict(model.transfer.messages).items()}
    return {name: tensor.detach().cpu() for name, tensor in sorted(found.items()) if tensor is not None}


def load_model(folder: Path | str) -> SavedModel:
    """Reads a model folder.

    Args:
        folder: The model folder, or the output folder of a run, whose `model/` is then read.

    Raises:
        UserError: If something is missing, damaged or contradicts something else; the message says what.
    """
    path = find_model_folder(Path(folder))
    config = _read_config(path / CONFIG)
    found, _ = read_tensors(path / TENSORS, "a model")
    with reading(path / TENSORS, f"the tensors of the {CONFIG} beside it"):
        if config.tensors not in (None, hash_content(dict(sorted(found.items())))):
            raise ValueError(f"its hash is not the one in {CONFIG}")
        tensors = dict(_checked(config, found))
        transfer = _transfer(config, tensors)
    if config.tensors is None:
        logger.warning("%s is of an earlier version, and does not say which tensors belong to it", path / CONFIG)
    return SavedModel(
        **{name: getattr(config, name) for name in Described.model_fields},
        classifier=FoldedClassifier(
            weights=tensors["weights"],
            bias=tensors.get("bias"),
            keys=tensors.get("keys"),
            labels=tensors.get("labels"),
            key_weights=tensors.get("key_weights"),
            alpha=config.fusion.alpha,
            beta=config.fusion.beta,
        ),
        text_positive=tensors["text_positive"],
        transfer=transfer,
        transfer_rule=config.transfer.rule,
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
        if (folder / ADAPTER).exists():
            raise UserError(
                f"{folder} holds {ADAPTER} and no model/: its run was cut off, or is of an earlier version; run its "
                "training again to get one (delete a result.json there first)"
            )
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


def _read_config(path: Path) -> ModelConfig:
    with reading(path, "the config.json of a model folder"):
        if (size := path.stat().st_size) > MAX_CONFIG_BYTES:
            raise ValueError(f"it has {size:,} bytes, and at most {MAX_CONFIG_BYTES:,} are read")
        config = ModelConfig.model_validate(read_json(path, finite=False))  # the schema says which field is not finite
        if missing := next(_left_out(config), ""):
            raise ValueError(f"{missing}: Field required")
    return config


def _left_out(part: Part, where: str = "") -> Iterator[str]:
    """The fields that a file lacks, though those who make a model may leave them out."""
    for name in type(part).model_fields:
        value = getattr(part, name)
        if name not in part.model_fields_set and name not in SINCE:
            yield f"{where}{name}"
        if isinstance(value, Part):
            yield from _left_out(value, f"{where}{name}.")


def _checked(config: ModelConfig, found: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file, which fit its configuration: floats as float32, integers as int64.

    Raises:
        ValueError: If a tensor is missing, unknown, or of another shape, another type or infinite values.
    """
    images = len(found["keys"]) if found.get("keys") is not None and found["keys"].dim() else 0
    shapes = _shapes(config, images)
    needed = {"weights", "text_positive"}
    if found.keys() & {"keys", "labels", "key_weights"}:
        needed |= {"keys", "labels"}
    if missing := sorted(needed - found.keys()):
        raise ValueError(f"it lacks {', '.join(missing)}")
    for name, tensor in found.items():
        shape = shapes.get(name, shapes.get(f"{name.rpartition('.')[0]}.*"))
        if shape is None:
            raise ValueError(f"it holds an unknown tensor {name!r}")
        allowed = INTEGERS if name == "labels" else FLOATS
        if tuple(tensor.shape) != shape or tensor.dtype not in allowed:
            types = ", ".join(map(str, allowed))
            raise ValueError(f"{name} must be {list(shape)} of {types}, got {list(tensor.shape)} of {tensor.dtype}")
        tensor = tensor.long() if name == "labels" else tensor.float()
        if not tensor.isfinite().all():
            raise ValueError(f"{name} holds NaN or infinite values")
        if name == "labels" and not (images and 0 <= tensor.min() and tensor.max() < len(config.classnames)):
            raise ValueError(f"labels must lie in 0 ... {len(config.classnames) - 1}, and there must be some")
        yield name, tensor


def _shapes(config: ModelConfig, images: int) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that a folder may hold, with so many cached images. `*` stands for any name."""
    classes, width = len(config.classnames), config.width
    shapes: dict[str, tuple[int, ...]] = {
        "weights": (classes, width),
        "text_positive": (classes, width),
        "bias": (classes,),
        "keys": (images, width),
        "labels": (images,),
        "key_weights": (images,),
        NODES: (classes, width),
    }
    if config.transfer.rule == "adapter":
        shapes |= {f"{TRANSFER}weight.*": (width, width), f"{TRANSFER}metapath.*": ()}
        shapes |= {f"{MESSAGES}matrix": (width, width), f"{MESSAGES}offset": (width,)}
        shapes |= {f"{MESSAGES}whitening": (width, width), f"{MESSAGES}mean": (width,)}
    return shapes


def _transfer(config: ModelConfig, tensors: dict[str, Tensor]) -> TransferableAdapter | None:
    """What reaches other classes.

    Raises:
        ValueError: If its options are none, or a tensor of it is missing.
    """
    if not isinstance(config.transfer, AdapterTransfer):
        return None
    made: ModelOptions = config.transfer.options
    names = {field.name: f"{MESSAGES}{field.name}" for field in fields(NewClassMessages)}
    messages = None
    if made.has_closed_form or any(name.startswith(MESSAGES) for name in tensors):
        messages = NewClassMessages(**{name: tensors[tensor] for name, tensor in names.items()})
    prefixes = (f"{TRANSFER}weight.", f"{TRANSFER}metapath.")
    parameters = {name[len(TRANSFER) :]: tensor for name, tensor in tensors.items() if name.startswith(prefixes)}
    adapter = TransferableAdapter(made, parameters, messages)
    if missing := adapter.missing_parameters():
        raise ValueError(f"it lacks {TRANSFER}{missing[0]}")
    return adapter
