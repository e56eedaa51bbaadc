"""Identity of a backbone: model name, weights (tag or hash) and precision.

A run stores the identity of its backbone, so that a finished run is recognised without loading CLIP. This module
therefore imports none of the libraries of models, which take seconds.
"""

import os
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ...utils.errors import UserError, unknown
from ...utils.files import file_version, hash_file
from .bundles import TIMM, TRANSFORMERS, find_bundle, is_bundle
from .transformers_classes import CLASSES

MINI_NAME = "hegraph-mini"
MINI_ALIAS = "mini"  # name of its configuration file
MINI_CONFIG = Path(__file__).parent / "mini" / f"{MINI_NAME}.json"
MINI_WEIGHTS = MINI_CONFIG.with_suffix(".safetensors")

AUTO = "auto"  # `pretrained`: weights that come with the model, else OpenAI's; `precision`: the fastest
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "amp")
CPU_INFO = Path("/proc/cpuinfo")
FAST_FLAGS = {"avx512_bf16", "amx_bf16"}  # CPU flags: bfloat16 products at least twice as fast as float32


class BackboneName(NamedTuple):
    """Name of a backbone: model, weights and configuration file."""

    model: str
    weights: str
    config: str  # in configs/trainers/HeGraphAdapter


DEFAULT_BACKBONE = BackboneName("ViT-B-16-quickgelu", "openai", "vit_b16")


def canonical_name(name: str) -> str:
    """Name under which a backbone is loaded and recorded; "mini" becomes `MINI_NAME`."""
    return MINI_NAME if name == MINI_ALIAS else name


def method_config(name: str) -> str:
    """Name of the configuration file of the method for a backbone; keys replace the backbone that it names."""
    return MINI_ALIAS if canonical_name(name) == MINI_NAME else DEFAULT_BACKBONE.config


@cache  # pages ask at every update, and the answer is in a file
def encodes_text(name: str) -> bool:
    """Whether a backbone encodes text as well as images, without loading it.

    Raises:
        UserError: If the files of a model of transformers are missing or cannot be downloaded.
    """
    if name.startswith(TIMM):
        return False
    if not name.startswith(TRANSFORMERS):
        return True
    from ...utils.reading import read_json

    config = read_json(find_bundle(name).config)
    kind = config.get("model_type") if isinstance(config, dict) else None
    return kind not in CLASSES or CLASSES[kind].has_text


def backbone_identity(name: str, pretrained: str, precision: str, device: str) -> dict[str, str]:
    """Identity of a backbone, which changes whenever its features change, without loading the model.

    Files are identified by SHA-256, weights in the lists of open_clip and timm by tag. Files of a bundle on the Hub are
    downloaded if they are not cached, to hash them. Arguments as in `loading.load_backbone`.

    Raises:
        UserError: If the precision is unknown, or files are missing, damaged or cannot be downloaded. Unknown models
            and tags of open_clip and timm are not detected.
    """
    precision = resolve_precision(precision, name, device)
    pretrained = resolve_pretrained(name, pretrained)
    if is_bundle(name):
        bundle = find_bundle(name)
        identity = {"model": _hash(bundle.config), "weights": _hash(bundle.weights)}
        identity.update({file.name: _hash(file) for file in bundle.others})
    else:
        file = weights_file(pretrained)
        identity = {"model": name, "weights": _hash(file) if file else pretrained}
    return identity if precision == "fp32" else {**identity, "precision": precision}


def resolve_precision(precision: str, name: str, device: str) -> str:
    """Replace "auto" by "bf16" on devices with fast bfloat16 products, else by "fp32".

    "auto" is always "fp32" for the embedded model, which is small and whose results are published.

    Raises:
        UserError: If `precision` is not one of `PRECISIONS`.
    """
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    if precision != AUTO:
        return precision
    return "bf16" if name != MINI_NAME and has_fast_bfloat16(device) else "fp32"


@cache
def has_fast_bfloat16(device: str) -> bool:
    """Whether a device multiplies bfloat16 at least 1.5 times as fast as float32.

    Decided from the device's type, not by measuring, so that features do not depend on the load of the machine.
    """
    import torch

    if device != "cpu":
        return torch.cuda.get_device_capability(device)[0] >= 8  # Ampere and later
    flags = re.search(r"^flags\s*:(.*)$", CPU_INFO.read_text() if CPU_INFO.exists() else "", re.MULTILINE)  # Linux
    return flags is not None and not FAST_FLAGS.isdisjoint(flags[1].split()) and torch.backends.mkldnn.is_available()


def resolve_pretrained(name: str, pretrained: str) -> str:
    """Replace `pretrained` "auto" or "" by a tag or a file; by "" for a bundle.

    Raises:
        UserError: If `name` is empty, or weights are specified for a bundle.
    """
    if not name:
        raise UserError("MODEL.BACKBONE.NAME is empty; give --config-file NAME, such as vit_b16 or mini")
    if pretrained in ("", AUTO):
        pretrained = default_weights(name)
    if is_bundle(name) and pretrained:
        raise UserError(f"{name} brings its weights along: set MODEL.BACKBONE.PRETRAINED to '', not {pretrained!r}")
    if name == MINI_NAME and not pretrained:
        return str(MINI_WEIGHTS)
    return pretrained


def default_weights(name: str) -> str:
    """Weights of a model that the user did not choose: "" for those that come with the model, else OpenAI's."""
    return "" if name == MINI_NAME or name.startswith(TIMM) or is_bundle(name) else "openai"


def weights_file(pretrained: str) -> Path | None:
    """Weights file at the path `pretrained`; None if no such file exists, so that `pretrained` is a tag."""
    return Path(pretrained) if os.path.isfile(pretrained) else None


def describe_transform(transform: object) -> str:
    """Text of a transform that is equal in every process: its `repr` without the addresses of functions."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(transform))


def _hash(file: Path) -> str:
    from ...utils.reading import reading

    with reading(file, "a file of a model"):
        return _hash_version(*file_version(file))


@cache  # weights may have gigabytes, and every run of a sweep hashes them
def _hash_version(file: Path, size: int, changed: int) -> str:
    """Hash of a file; size and time of the last change (nanoseconds) are keys of the cache."""
    return hash_file(file)
