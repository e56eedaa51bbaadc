"""Identity of a backbone: model name, weights (tag or hash) and precision. Also its files, local or on the Hub.

A run stores the identity of its backbone, so that a finished run is recognised without loading CLIP. This module
therefore does not import open_clip or torchvision, which take seconds, and imports huggingface_hub inside functions.
"""

import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ...utils.errors import UserError, first_line, unknown
from ...utils.files import absolute, file_version, hash_file

MINI_NAME = "hegraph-mini"
MINI_ALIAS = "mini"  # name of its configuration file
MINI_CONFIG = Path(__file__).parent / "mini" / f"{MINI_NAME}.json"
MINI_WEIGHTS = MINI_CONFIG.with_suffix(".safetensors")

AUTO = "auto"  # `pretrained`: weights that come with the model, else OpenAI's; `precision`: the fastest
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "amp")
CPU_INFO = Path("/proc/cpuinfo")
FAST_FLAGS = {"avx512_bf16", "amx_bf16"}  # CPU flags: bfloat16 products at least twice as fast as float32

# Prefixes of bundles: configuration, weights and possibly a tokenizer in one repository or folder
HUB, FOLDER = "hf-hub:", "local-dir:"
IMAGES_ONLY = ("timm:",)  # prefixes of models without text
CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
TOKENIZER_NAMES = ("tokenizer.json", "tokenizer_config.json", "spiece.model")
TIMEOUT = 5  # seconds to wait for the Hub
# Remedies in messages. A command sets the backbone by keys or by flags
USE_FOLDER = f"set MODEL.BACKBONE.NAME (or --backbone) to {FOLDER}FOLDER"
USE_WEIGHTS = "set MODEL.BACKBONE.PRETRAINED (or --pretrained) to its path"


class BackboneName(NamedTuple):
    """Name of a backbone: model, weights and configuration file."""

    model: str
    weights: str
    config: str  # in configs/trainers/HeGraphAdapter


DEFAULT_BACKBONE = BackboneName("ViT-B-16-quickgelu", "openai", "vit_b16")


class Bundle(NamedTuple):
    """Files of a model with its own configuration and weights.

    Attributes:
        title: Name of the repository or folder, for records.
        tokenizer: Tokenizer files of a folder; empty for a repository of the Hub.
    """

    title: str
    config: Path
    weights: Path
    tokenizer: tuple[Path, ...] = ()


def encodes_text(name: str) -> bool:
    """Whether a backbone encodes text as well as images, without loading it."""
    return not name.startswith(IMAGES_ONLY)


def canonical_name(name: str) -> str:
    """Name under which a backbone is loaded and recorded; "mini" becomes `MINI_NAME`."""
    return MINI_NAME if name == MINI_ALIAS else name


def backbone_identity(name: str, pretrained: str, precision: str, device: str) -> dict[str, str]:
    """Identity of a backbone, which changes whenever its features change, without loading the model.

    Files are identified by SHA-256, open_clip's weights by tag. Files of an "hf-hub:" name are downloaded if they are
    not cached, to hash them. Arguments as in `loading.load_backbone`.

    Raises:
        UserError: If the precision is unknown, or files are missing, damaged or cannot be downloaded. Unknown models
            and tags of open_clip are not detected.
    """
    precision = resolve_precision(precision, name, device)
    pretrained = resolve_pretrained(name, pretrained)
    if is_bundle(name):
        bundle = find_bundle(name)
        identity = {"model": _hash(bundle.config), "weights": _hash(bundle.weights)}
        identity.update({file.name: _hash(file) for file in bundle.tokenizer})
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
    return "" if name == MINI_NAME or is_bundle(name) else "openai"


def weights_file(pretrained: str) -> Path | None:
    """Weights file at the path `pretrained`; None if no such file exists, so that `pretrained` is a tag."""
    return Path(pretrained) if os.path.isfile(pretrained) else None


def is_bundle(name: str) -> bool:
    """Whether a model is a bundle, "hf-hub:ORGANISATION/NAME" or "local-dir:FOLDER"."""
    return name.startswith((HUB, FOLDER))


def find_bundle(name: str) -> Bundle:
    """Files of a bundle; those of "hf-hub:" are downloaded if they are not cached.

    Raises:
        UserError: If a file is missing, or a folder has several weights files.
    """
    place = name.partition(":")[2]
    if name.startswith(HUB):
        needed = f"{CONFIG_NAME} and {WEIGHTS_NAMES[0]}"
        use = f"put them into a folder, {USE_FOLDER}"
        config, weights = (fetch_file(place, names, name, needed, use) for names in ((CONFIG_NAME,), WEIGHTS_NAMES))
        return Bundle(place, config, weights)
    folder = absolute(place)
    files = [file for file in sorted(folder.glob("*")) if file.suffix in WEIGHTS_SUFFIXES and file.is_file()]
    known = [folder / filename for filename in WEIGHTS_NAMES if folder / filename in files]
    if not (folder / CONFIG_NAME).is_file() or not (known or len(files) == 1):
        raise UserError(f"{name} must be a folder with {CONFIG_NAME} and {WEIGHTS_NAMES[0]} or one other weights file")
    tokenizer = tuple(folder / filename for filename in TOKENIZER_NAMES if (folder / filename).is_file())
    return Bundle(folder.resolve().name, folder / CONFIG_NAME, (known or files)[0], tokenizer)


def cached_file(repository: str, filenames: Sequence[str]) -> Path | None:
    """First file of a repository "ORGANISATION/NAME" in the cache, or None; UserError for an invalid name."""
    from huggingface_hub import constants, try_to_load_from_cache

    try:
        paths = [try_to_load_from_cache(repository, filename) for filename in filenames]
    except ValueError as error:
        expected = f"expected the name of a repository of {constants.ENDPOINT}, ORGANISATION/NAME"
        raise UserError(f"{expected}, got {repository!r}: {first_line(error)}") from error
    return next((Path(path) for path in paths if isinstance(path, str)), None)


def fetch_file(repository: str, filenames: Sequence[str], what: str, needed: str, use: str) -> Path:
    """First file that is in the cache, or else in the repository, which is then downloaded.

    `filenames` have the same content, the preferred one first. Other arguments as in `require_hub`.

    Raises:
        UserError: If the Hub cannot be reached, or the file cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download

    if path := cached_file(repository, filenames):
        return path
    require_hub(repository, what, needed, use)
    for filename in filenames:
        try:
            return Path(hf_hub_download(repository, filename))
        except Exception as error:  # type depends on the version of huggingface_hub
            reason = first_line(error)
    raise UserError(f"cannot download {' or '.join(filenames)} of {repository}: {reason}")


def require_hub(repository: str, what: str, needed: str, use: str) -> None:
    """Check once that the Hub answers within `TIMEOUT`; huggingface_hub itself would try for a minute.

    Raises:
        UserError: If it does not answer. The message names `what` is being loaded, the files `needed`, and how to `use`
            them after a download on another machine.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT)
    except Exception as error:  # type depends on the version of huggingface_hub
        page = f"{constants.ENDPOINT}/{repository}"  # at the start, because long messages are shortened in the middle
        problem = f"{what} needs {needed} from {page}, which cannot be reached: download elsewhere, {use}"
        raise UserError(f"{problem}; {MINI_NAME} needs no download") from error


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
