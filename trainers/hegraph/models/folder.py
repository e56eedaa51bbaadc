"""Model folder: `config.json`, `model.safetensors`, `README.md`, and optional thumbnails of the cached images.

Loading reads JSON and safetensors only, and runs no code. Every field and tensor is validated before use. The hash of
the tensors in `config.json` shows that the two files belong together. `thumbnails.py` writes the thumbnails.

One lock protects a folder against all its writers (`ModelWriter`). Readers need no lock, because a folder is replaced
atomically.
"""

import json
import os
import shutil
from contextlib import ExitStack
from dataclasses import asdict, fields
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ..datasets.images import is_image
from ..method.cache import FoldedClassifier
from ..method.head.closed_form import NewClassMessages
from ..method.model import TransferableAdapter
from ..method.options import ModelOptions
from ..method.unlabelled import ClassSums
from ..utils.errors import UserError
from ..utils.files import file_version, hash_content, whole_folder, write_json, write_tensors, writing_folder
from ..utils.locks import WAIT, lock_replacement
from ..utils.option import OUR_METHOD
from ..utils.reading import Finite, Size, StrictModel, read_json, read_tensors, reading
from .package import write_endpoint
from .saved import ModelMetadata, SavedModel
from .support_set import SupportSet

FORMAT: Literal["hegraph-model"] = "hegraph-model"
CONFIG, TENSORS, CARD, THUMBNAILS = "config.json", "model.safetensors", "README.md", "thumbnails"
TRANSFER, MESSAGES = "transfer.", "transfer.messages."  # prefixes of `TransferableAdapter` and `NewClassMessages`
LABELLED, STATE = "labelled.", "labelled.state."  # prefixes of `SupportSet` and its trained parameters
CLASSIFIER = ("weights", "bias", "keys", "labels", "key_weights")  # tensors of `FoldedClassifier`
FEATURES = "labelled.features"
UNLABELLED = "unlabelled.features"
# Names of tensors by shape: K classes, N cached images, T images of the support set, M unlabelled images, d width
SHAPES = {
    "K": ("bias", "labelled.counts", "thresholds"),
    "Kd": ("weights", "text_positive", "class_nodes", "labelled.sums", "labelled.positive", "labelled.negative"),
    "N": ("labels", "key_weights"),
    "Nd": ("keys",),
    "T": ("labelled.labels",),
    "Td": (FEATURES,),
    "Md": (UNLABELLED,),
    "d": ("transfer.messages.offset", "transfer.messages.mean"),
    "dd": ("labelled.moment", "transfer.messages.matrix", "transfer.messages.whitening"),
}
# Shapes of trained parameters by prefix
PARAMETERS = {f"{TRANSFER}weight": "dd", f"{TRANSFER}metapath": ""}
PARAMETERS |= {f"{STATE}weight": "dd", f"{STATE}bias": "Kd", f"{STATE}metapath": ""}
INTEGERS = ("labels", "labelled.labels")
MODEL_FILE_TYPES = (".json", ".safetensors", ".md", ".jpg", ".pt")
SAVE_WAIT = 10.0  # seconds that `save_model` waits for another process that saves the same model
CHANGED = "model.changed"  # code of errors


class Fusion(StrictModel):
    """Weight `alpha` and sharpness `beta` of the cache (Eq. 8)."""

    alpha: Finite
    beta: Finite


class AdapterTransfer(StrictModel):
    """Transfer to unseen classes by message passing among text nodes with the trained `W`."""

    rule: Literal["adapter"]
    options: ModelOptions


class OtherTransfer(StrictModel):
    """Transfer to unseen classes by zero-shot CLIP, or none."""

    rule: Literal["zero-shot", "none"]
    options: dict[str, Any]


class ModelConfig(ModelMetadata):
    """Schema of `config.json`: metadata of the model, and the width, the hash and the meaning of its tensors.

    Attributes:
        image_groups: `SupportSet.groups`; None without groups.
    """

    format: Literal["hegraph-model"] = FORMAT
    version: Literal[1] = 1
    image_groups: tuple[int, ...] | None = None
    width: Size
    fusion: Fusion
    transfer: AdapterTransfer | OtherTransfer = Field(discriminator="rule")
    tensors: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


def save_model(model: SavedModel, folder: Path, endpoint: bool = False) -> None:
    """Write a model folder, completely or not at all.

    An existing model folder is replaced. Its thumbnails are removed, because they may show images of another cache. Its
    other files stay, such as those of an endpoint or of a Git repository.

    Cache keys of HeGraphAdapter are rounded to float16. Those of other methods stay in float32, because rounding
    changed the predictions of single images.

    Args:
        model: The model.
        folder: The folder.
        endpoint: Whether to add the files of an inference endpoint (`endpoint.py`).

    Raises:
        UserError: If the folder cannot be written, exists and is not a model folder, or another process changes it.
    """
    check_place(folder)
    with ModelWriter(folder, SAVE_WAIT) as writer:
        writer.save(model, endpoint)


class ModelWriter:
    """Right to change a model folder, which one object of one process has at a time.

    Args:
        folder: The folder, which may be missing.
        wait: Seconds to wait for another process that has the right.

    Raises:
        Locked: If another process still has the right after this time.
        UserError: If the folder that contains it cannot be written.
    """

    def __init__(self, folder: Path, wait: float = WAIT) -> None:
        self.folder = folder
        self._lock = ExitStack()
        self._lock.enter_context(lock_replacement(folder, wait))
        self._version = self._current_version()

    def __enter__(self) -> "ModelWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock."""
        self._lock.close()

    def _current_version(self) -> tuple[Path, int, int] | None:
        """Version of the model on disk; None if there is none."""
        try:
            return file_version(self.folder / CONFIG)
        except OSError:
            return None

    def check_unchanged(self) -> None:
        """Raise UserError if another program, which ignores the lock, changed, moved or removed the folder."""
        version = self._current_version()
        if version != self._version:
            change = "changed" if version else "moved or removed"
            problem = f"{self.folder} was {change} by another program since it was read"
            raise UserError(f"{problem}; start the command again", CHANGED)

    def save(self, model: SavedModel, endpoint: bool = False) -> None:
        """Write the folder as `save_model` does.

        Raises:
            UserError: If another program changed the folder, or it cannot be written.
        """
        tensors = _tensors(model)
        groups = None if model.support_set is None else model.support_set.groups
        config = ModelConfig.model_validate(
            {name: getattr(model, name) for name in ModelMetadata.model_fields}
            | {
                "image_groups": None if groups is None else tuple(groups.tolist()),
                "width": model.classifier.width,
                "fusion": {"alpha": model.classifier.alpha, "beta": model.classifier.beta},
                "transfer": {"rule": model.transfer_rule, "options": model.transfer.options if model.transfer else {}},
                "tensors": hash_content(tensors),
            }
        )
        with writing_folder(self.folder) as temporary:
            write_tensors(temporary / TENSORS, tensors, {"format": config.format})
            from .card import model_card  # jinja2 and huggingface_hub are slow to import

            (temporary / CARD).write_text(model_card(model), encoding="utf-8")
            if endpoint:
                write_endpoint(temporary, model.backbone.model)
            _copy_other_files(self.folder, temporary)
            write_json(temporary / CONFIG, config.model_dump(mode="json"))
            self.check_unchanged()
        self._version = self._current_version()


def check_place(folder: Path) -> None:
    """Raise UserError if a folder exists that is neither empty nor a model folder."""
    config = folder / CONFIG
    is_model = config.is_file() and FORMAT in config.read_text(encoding="utf-8", errors="replace")
    if folder.exists() and not is_model and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"expected a model folder or a new path, got {folder}, which is not overwritten; use another")


def _copy_other_files(folder: Path, target: Path) -> None:
    """Copy the files of an old model folder that the new one neither has nor makes invalid."""
    for path in folder.glob("*"):
        if path.name in (CONFIG, THUMBNAILS) or (target / path.name).exists():
            continue
        if path.is_symlink():
            shutil.copy2(path, target / path.name, follow_symlinks=False)
        elif path.is_dir():
            shutil.copytree(path, target / path.name, symlinks=True, copy_function=_link_or_copy)
        else:
            _link_or_copy(path, target / path.name)


def _link_or_copy(source: str | Path, target: str | Path) -> None:
    """Link a file to a second name; copy it if the file system has no such links.

    A learning server replaces its folder for every label, and the folder may be a clone with a large `.git`.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _tensors(model: SavedModel) -> dict[str, Tensor]:
    """Tensors of a model by name, sorted."""
    tensors = {name: getattr(model.classifier, name) for name in CLASSIFIER}
    tensors |= {name: getattr(model, name) for name in ("text_positive", "class_nodes", "thresholds")}
    if model.transfer is not None:
        tensors |= {f"{TRANSFER}{name}": tensor for name, tensor in model.transfer.parameters.items()}
        if model.transfer.messages is not None:
            tensors |= {f"{MESSAGES}{name}": tensor for name, tensor in asdict(model.transfer.messages).items()}
    if model.labelled is not None:
        tensors |= {f"{LABELLED}{name}": tensor.float() for name, tensor in asdict(model.labelled).items()}
    if (support_set := model.support_set) is not None:
        # The views are images of the closed-form head; other variants need their means
        keeps_views = model.variant == "training_free" and len(support_set.features) > 1
        features = support_set.features if keeps_views else support_set.keys()
        tensors |= {FEATURES: features, f"{LABELLED}labels": support_set.labels}
        tensors |= {f"{LABELLED}{name}": getattr(support_set, name) for name in ("positive", "negative")}
        tensors |= {f"{STATE}{name}": tensor for name, tensor in support_set.state.items()}
        if model.unlabelled_features is not None:
            tensors[UNLABELLED] = model.unlabelled_features
    dtypes = {**dict.fromkeys(INTEGERS, torch.int32), "class_nodes": torch.float16}
    if model.support_set is not None and model.support_set.multilabel:
        dtypes["labelled.labels"] = torch.uint8  # indicators
    if model.method == OUR_METHOD:
        dtypes["keys"] = torch.float16
    return {
        name: tensor.detach().cpu().to(dtypes.get(name, tensor.dtype), copy=True)
        for name, tensor in sorted(tensors.items())
        if tensor is not None
    }


def load_model(folder: Path | str) -> SavedModel:
    """Read a model folder, or `model/` in the output folder of a run.

    Raises:
        UserError: If a part is missing, damaged or inconsistent; the message names it.
    """
    path = find_model_folder(Path(folder))
    with reading(path / CONFIG, "the config.json of a model folder"):
        # In JSON mode, lists become tuples
        config = ModelConfig.model_validate_json(json.dumps(read_json(path / CONFIG)))
    tensors, _ = read_tensors(path / TENSORS, "a model")
    with reading(path / TENSORS, f"the tensors of {path / CONFIG}"):
        if config.tensors != hash_content(dict(sorted(tensors.items()))):
            raise ValueError(f"its hash differs from the one in {CONFIG}")
        return _model(config, _checked(config, tensors))


def _checked(config: ModelConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Check tensors against the configuration; floats become float32, integers int64.

    Raises:
        ValueError: If a tensor is unknown, has a wrong shape or type, or is not finite.
    """
    sizes = {"K": len(config.classnames), "d": config.width}
    checked = {}
    for letter, name in (("N", "keys"), ("M", UNLABELLED)):
        sizes[letter] = len(tensors[name]) if name in tensors else 0
    features = tensors.get(FEATURES)
    sizes["T"] = features.shape[-2] if features is not None and features.ndim > 1 else 0
    shape_of = {name: shape for shape, names in SHAPES.items() for name in names}
    if "thresholds" in tensors:
        shape_of["labelled.labels"] = "TK"  # indicators
    if features is not None and features.ndim == 3:
        sizes["V"] = len(features)
        shape_of[FEATURES] = "VTd"
    for name, tensor in tensors.items():
        letters = shape_of.get(name, PARAMETERS.get(name.rpartition(".")[0]))
        if letters is None or (name.startswith(TRANSFER) and config.transfer.rule != "adapter"):
            raise ValueError(f"unknown tensor {name!r}")
        shape = [sizes[letter] for letter in letters]
        kind = "integers" if name in INTEGERS else "floats"
        if [*tensor.shape] != shape or tensor.is_floating_point() != (kind == "floats"):
            raise ValueError(f"expected {kind} of shape {shape} in {name}, got {tensor.dtype} {list(tensor.shape)}")
        tensor = tensor.long() if name in INTEGERS else tensor.float()
        if not tensor.isfinite().all():
            raise ValueError(f"{name} has NaN or infinite values")
        largest = 1 if letters == "TK" else sizes["K"] - 1
        if name in INTEGERS and len(tensor) and not (0 <= tensor.min() and tensor.max() <= largest):
            raise ValueError(f"{name} must be from 0 to {largest}")
        checked[name] = tensor
    if UNLABELLED in tensors and sizes["M"] != config.unlabelled:
        raise ValueError(f"{sizes['M']} rows of {UNLABELLED} for {config.unlabelled} unlabelled images")
    if checked.keys() & {"keys", "labels"} and not (sizes["N"] and "labels" in checked):
        raise ValueError("a cache needs both keys and labels, of at least one image")
    return checked


def _model(config: ModelConfig, tensors: dict[str, Tensor]) -> SavedModel:
    """Assemble the model of a folder; raises an exception if a tensor or an image id is missing."""
    classifier = {name: tensors[name] for name in CLASSIFIER if name in tensors}
    labelled = _with_prefix(LABELLED, tensors)
    return SavedModel(
        **{name: getattr(config, name) for name in ModelMetadata.model_fields},
        classifier=FoldedClassifier(**classifier, alpha=config.fusion.alpha, beta=config.fusion.beta),
        text_positive=tensors["text_positive"],
        transfer=_transfer(config, tensors),
        transfer_rule=config.transfer.rule,
        class_nodes=tensors.get("class_nodes"),
        labelled=ClassSums(*(labelled[f.name].double() for f in fields(ClassSums))) if "counts" in labelled else None,
        support_set=_support_set(config, labelled) if "features" in labelled else None,
        unlabelled_features=tensors.get(UNLABELLED),
        thresholds=tensors.get("thresholds"),
    )


def _with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors whose names have a prefix, by the rest of the name."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _support_set(config: ModelConfig, labelled: dict[str, Tensor]) -> SupportSet:
    """Support set of a model.

    Raises an exception if a part is missing, and ValueError for another number of ids or groups.
    """
    labels = labelled["labels"].bool() if labelled["labels"].ndim == 2 else labelled["labels"]
    features = labelled["features"]
    ids = torch.tensor(config.image_ids or [0] * len(labels), dtype=torch.long)
    if len(ids) != len(labels):
        raise ValueError(f"{len(ids)} image_ids for {len(labels)} images")
    groups = None if config.image_groups is None else torch.tensor(config.image_groups, dtype=torch.long)
    if groups is not None and len(groups) != len(labels):
        raise ValueError(f"{len(groups)} image_groups for {len(labels)} images")
    classes = np.array(config.classnames if config.labels is None else config.labels)
    return SupportSet(
        classes,
        config.classnames,
        features if features.ndim == 3 else features[None],
        labels,
        ids,
        labelled.get("positive"),
        labelled.get("negative"),
        _with_prefix("state.", labelled),
        groups,
    )


def _transfer(config: ModelConfig, tensors: dict[str, Tensor]) -> TransferableAdapter | None:
    """Adapter for unseen classes, if the model has one; ValueError if it lacks a parameter."""
    if not isinstance(config.transfer, AdapterTransfer):
        return None
    options = config.transfer.options
    messages = NewClassMessages(**_with_prefix(MESSAGES, tensors)) if options.has_closed_form else None
    parameters = _with_prefix(TRANSFER, {name: t for name, t in tensors.items() if not name.startswith(MESSAGES)})
    adapter = TransferableAdapter(options, parameters, messages)
    if missing := adapter.missing_parameters():
        raise ValueError(f"it lacks {TRANSFER}{missing[0]}")
    return adapter


def find_model_folder(folder: Path) -> Path:
    """Find the model folder: the folder itself, or `model/` in the output folder of a run; UserError if none."""
    for candidate in map(whole_folder, (folder, folder / "model")):
        if (candidate / CONFIG).is_file():
            return candidate
    problem = f"has no {CONFIG}" if folder.exists() else "does not exist"
    if any(is_image(path.name) for path in (folder, *islice(folder.glob("*"), 100), *islice(folder.glob("*/*"), 100))):
        problem = "holds images and no model, which comes before them"
    raise UserError(f"{folder} {problem}; pass the model folder of a run, such as OUTPUT_DIR/model")


def model_files(folder: Path) -> list[Path]:
    """Files of a model folder, and of its run, which no command may overwrite."""
    model = find_model_folder(folder)
    files = chain.from_iterable(place.glob("*") for place in (folder, model, model / THUMBNAILS))
    return [path for path in files if path.suffix in MODEL_FILE_TYPES]
