"""What tells one backbone from another: the model's name, its weights (by tag or by hash) and what it computes in; and
where its files are: on this machine, or on the Hugging Face hub.

A run keeps the identity of its backbone, so that a finished run is recognised before CLIP is loaded. This file
therefore imports neither open_clip nor torchvision, which take seconds to import, and huggingface_hub where it is used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ..utils.errors import UserError, first_line, unknown
from ..utils.files import file_version, hash_file

MINI_NAME = "hegraph-mini"
MINI_ALIAS = "mini"  # as its configuration file is called
MINI_CONFIG = Path(__file__).parent / "mini" / f"{MINI_NAME}.json"
MINI_WEIGHTS = MINI_CONFIG.with_suffix(".safetensors")

AUTO = "auto"  # of `pretrained`: the weights that come with the model, or else OpenAI's; of `precision`: the fast one
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "amp")
CPU_INFO = Path("/proc/cpuinfo")
FAST_FLAGS = {"avx512_bf16", "amx_bf16"}  # of a CPU that multiplies bfloat16 twice as fast as float32, or faster

# Names that begin so stand for a bundle: configuration, weights and maybe a tokenizer in one repository or folder
HUB, FOLDER = "hf-hub:", "local-dir:"
CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
TOKENIZER_NAMES = ("tokenizer.json", "tokenizer_config.json", "spiece.model")
TIMEOUT = 5  # seconds that the hub has to answer
# Phrases of messages, for commands that take keys and for those that take flags
USE_FOLDER = f"set MODEL.BACKBONE.NAME (or --backbone) to {FOLDER}FOLDER"
USE_WEIGHTS = "set MODEL.BACKBONE.PRETRAINED (or --pretrained) to its path"


class Named(NamedTuple):
    """A backbone as users name it: the model and its weights."""

    model: str
    weights: str
    config: str  # name of the configuration file that ships


DEFAULT_BACKBONE = Named("ViT-B-16-quickgelu", "openai", "vit_b16")  # of every command and page


class Bundle(NamedTuple):
    """The files of a model that brings its configuration and its weights along, and the name of its repository or
    folder, for records. Tokenizer files are those of a folder, and none of a repository of the hub.
    """

    title: str
    config: Path
    weights: Path
    tokenizer: tuple[Path, ...] = ()


def canonical_name(name: str) -> str:
    """The name under which a backbone is loaded and recorded: "mini" is short for `MINI_NAME`."""
    return MINI_NAME if name == MINI_ALIAS else name


def backbone_identity(name: str, pretrained: str, precision: str, device: str) -> dict[str, str]:
    """Plain values that change whenever the features of the backbone would. Loads nothing.

    A file is known by the SHA-256 of its bytes, and open_clip's weights by their tag. The files of an "hf-hub:" name
    are downloaded if they are not on this machine, since they have to be hashed. Arguments and errors are as of
    `loading.load_backbone`; but whether open_clip knows the model and the tag is only seen when it is loaded.
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
    """What a model computes in: "auto" is "bf16" where the device multiplies that faster, and else "fp32"; so is the
    embedded model, which is small, and whose numbers are published. UserError for none of `PRECISIONS`.
    """
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    if precision != AUTO:
        return precision
    return "bf16" if name != MINI_NAME and multiplies_bfloat16(device) else "fp32"


@cache
def multiplies_bfloat16(device: str) -> bool:
    """Whether a device multiplies bfloat16 at least 1.5 times as fast as float32.

    It is asked what it is, and nothing is measured: so a machine gives the same features however busy it is.
    """
    import torch

    if device != "cpu":
        return torch.cuda.get_device_capability(device)[0] >= 8  # Ampere, the first GPUs that do
    said = re.search(r"^flags\s*:(.*)$", CPU_INFO.read_text() if CPU_INFO.exists() else "", re.MULTILINE)  # of Linux
    return said is not None and not FAST_FLAGS.isdisjoint(said[1].split()) and torch.backends.mkldnn.is_available()


def resolve_pretrained(name: str, pretrained: str) -> str:
    """The weights that `pretrained` stands for: "auto" and "" become a tag or a file; "" is left for a bundle.

    UserError if no model is named, or a bundle with weights.
    """
    if not name:
        raise UserError("MODEL.BACKBONE.NAME is empty; give --config-file configs/trainers/HeGraphAdapter/NAME.yaml")
    if pretrained in ("", AUTO):
        pretrained = "" if name == MINI_NAME or is_bundle(name) else "openai"
    if is_bundle(name) and pretrained:
        raise UserError(f"{name} brings its weights along: set MODEL.BACKBONE.PRETRAINED to '', not {pretrained!r}")
    if name == MINI_NAME and not pretrained:
        return str(MINI_WEIGHTS)
    return pretrained


def weights_file(pretrained: str) -> Path | None:
    """The file that `pretrained` names, or None if it is a tag. An existing file goes before a tag of that name."""
    return Path(pretrained) if os.path.isfile(pretrained) else None


def is_bundle(name: str) -> bool:
    """Whether a model's name stands for a bundle, "hf-hub:ORGANISATION/NAME" or "local-dir:FOLDER"."""
    return name.startswith((HUB, FOLDER))


def find_bundle(name: str) -> Bundle:
    """The files of a bundle; those of "hf-hub:" are downloaded if they are not on this machine. UserError if one is
    missing, or a folder leaves open which weights to take.
    """
    place = name.partition(":")[2]
    if name.startswith(HUB):
        needed, use = f"{CONFIG_NAME} and {WEIGHTS_NAMES[0]}", f"put them into a folder, {USE_FOLDER}"
        config, weights = (fetch_file(place, names, name, needed, use) for names in ((CONFIG_NAME,), WEIGHTS_NAMES))
        return Bundle(place, config, weights)
    folder = Path(place)
    files = [file for file in sorted(folder.glob("*")) if file.suffix in WEIGHTS_SUFFIXES and file.is_file()]
    known = [folder / filename for filename in WEIGHTS_NAMES if folder / filename in files]
    if not (folder / CONFIG_NAME).is_file() or not (known or len(files) == 1):
        raise UserError(f"{name} must be a folder with {CONFIG_NAME} and {WEIGHTS_NAMES[0]} or one other weights file")
    tokenizer = tuple(folder / filename for filename in TOKENIZER_NAMES if (folder / filename).is_file())
    return Bundle(folder.resolve().name, folder / CONFIG_NAME, (known or files)[0], tokenizer)


def cached_file(repository: str, filenames: Sequence[str]) -> Path | None:
    """The first of the files that the cache holds of "ORGANISATION/NAME", or None; UserError for another name."""
    from huggingface_hub import constants, try_to_load_from_cache

    try:
        paths = [try_to_load_from_cache(repository, filename) for filename in filenames]
    except ValueError as error:
        raise UserError(f"{repository!r} is no repository of {constants.ENDPOINT}: {first_line(error)}") from error
    return next((Path(path) for path in paths if isinstance(path, str)), None)


def fetch_file(repository: str, filenames: Sequence[str], what: str, needed: str, use: str) -> Path:
    """The first of the files that the cache holds, or else the first that the repository has, downloaded.

    `filenames` are of the same content, the preferred one first; the rest, and what is raised, as of `require_hub`.
    """
    from huggingface_hub import hf_hub_download

    if path := cached_file(repository, filenames):
        return path
    require_hub(repository, what, needed, use)
    for filename in filenames:
        try:
            return Path(hf_hub_download(repository, filename))
        except Exception as error:  # of huggingface_hub, requests or httpx: it depends on the version
            reason = first_line(error)
    raise UserError(f"cannot download {' or '.join(filenames)} of {repository}: {reason}")


def require_hub(repository: str, what: str, needed: str, use: str) -> None:
    """Check once that the hub answers within `TIMEOUT`; huggingface_hub itself would try for a minute.

    Raises:
        UserError: If it does not. The message says that `what` needs the files `needed`, and how to `use` them after a
            download on another machine.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT)
    except Exception as error:  # of requests or httpx: it depends on the version
        page = f"{constants.ENDPOINT}/{repository}"  # at the start, since long messages lose their middle
        raise UserError(
            f"{what} needs {needed} from {page}, which cannot be reached: download elsewhere, {use}; {MINI_NAME} needs "
            "no download"
        ) from error


def describe_transform(transform: object) -> str:
    """What a transform does, as text that is the same in every process: the `repr` of a function holds its address."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(transform))


def _hash(file: Path) -> str:
    from ..utils.reading import reading

    with reading(file, "a file of a model"):
        return _hash_version(*file_version(file))


@cache  # weights may be gigabytes, and every run of a sweep asks for them
def _hash_version(file: Path, size: int, changed: int) -> str:
    """Hash of a file of this size that was changed last at this time, in nanoseconds."""
    return hash_file(file)
