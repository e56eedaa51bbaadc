"""Load image encoders of timm, which have no text.

A name is "timm:NAME.TAG" (a model and its weights in timm's list), "timm:ORGANISATION/NAME" (a repository of the Hub in
timm's format) or "timm:FOLDER" (its files). Only tensors are read from weights files (`weights_files.py`), and only
plain values of `model_args` reach timm.
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
from timm.data import create_transform, resolve_model_data_config
from timm.models import get_pretrained_cfg
from torch import Tensor, nn
from torchvision import transforms as T

from ...utils.errors import UserError, unknown
from ...utils.reading import read_json
from . import bundles, hub, identity
from .base import DTYPES, Backbone, check_encodes
from .random_weights import WithoutRandomWeights
from .transforms import Preprocess, channels
from .weights_files import describe_failure, read_weights

logger = logging.getLogger(__name__)

# Last part of the names of weights that depend on the size of images, and that timm resizes to the size of a model
POSITIONS = ("pos_embed", "relative_position_bias_table")


INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")  # of timm's test transform


class Source(NamedTuple):
    """Architecture and weights of a model.

    Attributes:
        title: Model and weights, for records.
        model: Name that timm builds, or "local-dir:FOLDER".
        classifier: Names of the layers that classify, whose weights are not loaded.
        weights: Weights file.
    """

    title: str
    model: str
    classifier: tuple[str, ...]
    weights: Path


class TimmEncoder(nn.Module):
    """Image encoder of timm as an `Encoder` without text.

    Args:
        network: Model of timm without a classifier, from `[B, 3, H, W]` to `[B, d]`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def encode_image(self, image: Tensor) -> Tensor:
        """Encode normalised images `[B, 3, H, W]` as features `[B, d]` of any norm."""
        return self.network(image)


def load(name: str, pretrained: str, device: str, precision: str) -> Backbone:
    """Load a model of timm; arguments and errors as in `load_backbone`, with a resolved precision."""
    source = find_source(name, pretrained)
    fingerprint = identity.backbone_identity(name, pretrained, precision, device)
    network, resized = build(source)
    config = resolve_model_data_config(network)
    network = network.to(device, DTYPES.get(precision)).eval().requires_grad_(False)
    steps = transform_steps(config, source.title)
    fingerprint["preprocess"] = identity.describe_transform(T.Compose(steps))
    backbone = Backbone(
        name=source.title,
        model=TimmEncoder(network),
        tokenizer=None,
        preprocess=Preprocess(steps),
        mean=tuple(steps[-1].mean),
        std=tuple(steps[-1].std),
        input_size=tuple(config["input_size"][1:]),
        fingerprint=fingerprint,
        precision=precision,
    )
    check_encodes(backbone, name)
    if resized:
        logger.warning("the position embeddings of %s are resized %s, its input size", source.title, resized)
    return backbone


def transform_steps(config: Mapping[str, Any], name: str) -> list[Any]:
    """Steps of timm's test transform for a data configuration of `resolve_model_data_config`.

    Raises:
        UserError: If the interpolation, the mean or the deviation is not valid.
    """
    if config["interpolation"] not in INTERPOLATIONS:
        raise unknown(f"interpolation of {name}:", str(config["interpolation"]), INTERPOLATIONS)
    mean = channels(config["mean"], f"mean of {name}")
    std = channels(config["std"], f"std of {name}")
    steps = list(create_transform(**{**config, "mean": mean, "std": std}, is_training=False).transforms)
    steps[-1] = T.Normalize(mean, std)  # timm's has tensors, whose text depends on torch's settings
    return steps


def build(source: Source) -> tuple[Any, str]:
    """Build a model without a classifier in float32 on the CPU, and load its weights.

    Returns:
        The model, and `describe_resizing` of its weights.

    Raises:
        UserError: If the model cannot be built, or the weights are damaged or belong to another model.
    """
    state = read_weights(source.weights)
    layers = tuple(f"{layer}." for layer in source.classifier)
    state = {key: value for key, value in state.items() if not key.startswith(layers)}
    # timm loads weights strictly if the number of classes is the one of the file
    own = {"state_dict": state, "source": "", "num_classes": 0, "classifier": None}
    try:
        with WithoutRandomWeights():
            network: Any = timm.create_model(source.model, pretrained=True, num_classes=0, pretrained_cfg_overlay=own)
    except Exception as error:  # timm and torch raise any type on files of other models
        raise UserError(
            f"cannot load {source.title} with weights {source.weights}: {describe_failure(error)}"
        ) from error
    size = resolve_model_data_config(network)["input_size"][1:]
    if getattr(network, "dynamic_img_size", False):
        network.set_input_size(size)  # resizes positions once, which ONNX cannot do for each image
    return network, describe_resizing(state, network, size)


def describe_resizing(state: Mapping[str, Tensor], network: nn.Module, size: Sequence[int]) -> str:
    """Sizes of images before and after a resizing of position embeddings, as text; "" if none was resized.

    Args:
        state: Weights as in the file.
        network: The model with these weights.
        size: Height and width of its input images.
    """
    own = network.state_dict()
    for name, values in state.items():
        is_resized = name in own and own[name].shape != values.shape
        if is_resized and name.rpartition(".")[2] in POSITIONS:
            return f"from {describe_positions(values, network)} to {in_pixels(size)} images"
    return ""


def describe_positions(positions: Tensor, network: Any) -> str:
    """Size of the images of position embeddings as text, square ones as in timm; the shape if the size is unknown."""
    patch_size = getattr(getattr(network, "patch_embed", None), "patch_size", None)
    if positions.ndim != 3 or patch_size is None:  # not [1, T, D]
        return f"shape {list(positions.shape)}"
    tokens = positions.shape[1]
    if not getattr(network, "no_embed_class", False):
        tokens -= getattr(network, "num_prefix_tokens", 1)
    patches = math.isqrt(tokens)
    return in_pixels([patches * side for side in patch_size])


def in_pixels(size: Sequence[int]) -> str:
    """Height and width as text, such as "224x224"."""
    return "x".join(map(str, size))


def find_source(name: str, pretrained: str) -> Source:
    """Find a model and its weights, which are downloaded if necessary; arguments as in `load_backbone`.

    Raises:
        UserError: If the model is unknown, or the weights are missing or cannot be downloaded.
    """
    pretrained = identity.resolve_pretrained(name, pretrained)
    if bundles.is_bundle(name):
        bundle = bundles.find_bundle(name)
        config = read_config(bundle.config)
        return Source(bundle.title, f"local-dir:{bundle.config.parent}", classifier_of(config), bundle.weights)
    model = bundles.place_of(name)
    entry = pretrained_entry(model)
    file = identity.weights_file(pretrained)
    if file is not None:
        return Source(f"timm/{model}/{file.stem}", model, classifier_of(entry), file)
    if pretrained:
        raise UserError(f"weights of {name}: expected a file, got {pretrained!r}; the name contains timm's tag")
    repository, filenames = hub_files(name, entry)
    file = hub.fetch_file(repository, filenames, name, filenames[0], bundles.USE_WEIGHTS)
    return Source(f"timm/{model}", model, classifier_of(entry), file)


def pretrained_entry(model: str) -> dict[str, Any]:
    """timm's entry for a model with or without a tag.

    Raises:
        UserError: If timm has no such model.
    """
    architecture, _, tag = model.partition(".")
    if not timm.is_model(architecture):
        raise unknown("model of timm", architecture, timm.list_models())
    tags = [listed.partition(".")[2] for listed in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise unknown(f"weights of timm:{architecture}", tag, tags)
    entry = get_pretrained_cfg(model)
    return {} if entry is None else entry.to_dict()


def hub_files(name: str, entry: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Repository of a model's weights on the Hub and the names of its weights file, the preferred one first.

    Raises:
        UserError: If the name has no tag, or timm knows no repository of its weights.
    """
    architecture, _, tag = bundles.place_of(name).partition(".")
    if not tag:
        listed = timm.list_pretrained(f"{architecture}.*")
        example = f", such as timm:{listed[0]}" if listed else f": none of {architecture} in timm {timm.__version__}"
        raise UserError(f"{name} names no weights: expected timm:NAME.TAG{example}; or {bundles.USE_WEIGHTS}")
    repository = entry.get("hf_hub_id")
    if not repository:
        raise UserError(f"the Hub has no weights of {name}; {bundles.USE_WEIGHTS}")
    filename = entry.get("hf_hub_filename")
    if filename is None:
        return repository, bundles.TIMM_WEIGHTS_NAMES
    return repository, (filename,)


def read_config(path: Path) -> dict[str, Any]:
    """Configuration of a model in timm's format.

    Raises:
        UserError: If the file is damaged, timm has no such model, the input size is no size, or `model_args` have
            other than plain values.
    """
    config = read_json(path)
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        raise UserError(f'expected a model of timm in {path}, with the key "architecture"')
    if not timm.is_model(config["architecture"]):
        raise unknown(f"model of timm in {path}:", config["architecture"], timm.list_models())
    size = (config.get("pretrained_cfg") or config).get("input_size", [3, 1, 1])
    if not isinstance(size, list) or len(size) != 3 or not all(isinstance(each, int) and each > 0 for each in size):
        raise UserError(f"{path}: expected input_size [3, HEIGHT, WIDTH], got {json.dumps(size)}")
    arguments = config.get("model_args") or {}
    if refused := [key for key, value in arguments.items() if isinstance(value, dict)]:
        raise UserError(f"{path}: expected plain values in model_args, got {json.dumps(refused)}")
    return config


def classifier_of(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the layers that classify, of timm's entry or of a configuration."""
    layers = (entry.get("pretrained_cfg") or entry).get("classifier") or ()
    return (layers,) if isinstance(layers, str) else tuple(layers)


def local_weights(name: str, pretrained: str) -> Path | None:
    """Weights file of a model on this machine, as in `loading.local_weights`."""
    if bundles.is_bundle(name):
        return bundles.local_bundle_weights(name)
    file = identity.weights_file(identity.resolve_pretrained(name, pretrained))
    if file is not None:
        return file
    entry = pretrained_entry(bundles.place_of(name))
    return hub.cached_file(*hub_files(name, entry))


def hub_repository(name: str, pretrained: str) -> str | None:
    """Repository of weights on the Hub, as in `loading.hub_repository`."""
    if bundles.is_bundle(name):
        return bundles.repository_of(name)
    if pretrained:
        return None
    return pretrained_entry(bundles.place_of(name)).get("hf_hub_id")
