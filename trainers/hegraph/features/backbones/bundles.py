"""Bundles: configuration, weights and possibly a tokenizer of a model, in one folder or in one repository of the Hub.

Also the prefixes of names, each of which stands for a library and its format of files.
"""

import json
import os
from pathlib import Path
from typing import NamedTuple

from ...utils.errors import UserError
from ...utils.files import absolute
from .hub import cached_file, fetch_file, fetch_snapshot

# Prefixes of names. Without a prefix, and with the first two, the library is open_clip
HUB, FOLDER, TIMM, TRANSFORMERS = "hf-hub:", "local-dir:", "timm:", "transformers:"
PREFIXES = (HUB, FOLDER, TIMM, TRANSFORMERS)

CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")

JSON_CONFIG_NAME = "config.json"  # of timm and transformers
TIMM_WEIGHTS_NAMES = ("model.safetensors", "pytorch_model.bin")

SAFETENSORS, SHARDS = "model.safetensors", "model.safetensors.index.json"
PROCESSOR_NAMES = ("preprocessor_config.json", "processor_config.json")
ADAPTER = "adapter_config.json"  # of the package peft
VOCABULARY_NAMES = (  # the tokenizers of transformers read one of them
    "tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model",
)  # fmt: skip
MORE_TOKENIZER_NAMES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")
TOKENIZER_NAMES = VOCABULARY_NAMES + MORE_TOKENIZER_NAMES
TRANSFORMERS_NAMES = (
    JSON_CONFIG_NAME, SAFETENSORS, SHARDS, "model-*-of-*.safetensors", *PROCESSOR_NAMES, *TOKENIZER_NAMES,
)  # fmt: skip

# Remedies in messages. A command sets the backbone by keys or by flags
USE_NAME = "set MODEL.BACKBONE.NAME (or --backbone) to {}FOLDER"
USE_FOLDER = USE_NAME.format(FOLDER)
USE_WEIGHTS = "set MODEL.BACKBONE.PRETRAINED (or --pretrained) to its path"


class Bundle(NamedTuple):
    """Files of a model with its own configuration and weights.

    Attributes:
        title: Name of the repository or folder, for records.
        config: Configuration file.
        weights: Weights file, or the index of several ones.
        others: All other files on which features depend: tokenizer, image processor, and the weights files of an index.
    """

    title: str
    config: Path
    weights: Path
    others: tuple[Path, ...] = ()


def place_of(name: str) -> str:
    """Name without its prefix."""
    return name.partition(":")[2]


def is_bundle(name: str) -> bool:
    """Whether a model is a bundle. "timm:NAME" without a slash is in timm's list of models, and is no bundle."""
    if name.startswith(TIMM):
        return "/" in name or os.sep in name
    return name.startswith(PREFIXES)


def folder_of(name: str) -> Path | None:
    """Folder of a bundle on this machine; None for a bundle on the Hub and for other models."""
    folder = absolute(place_of(name))
    if name.startswith(FOLDER):
        return folder
    if name.startswith(HUB) or not is_bundle(name) or not folder.is_dir():
        return None
    return folder


def repository_of(name: str) -> str | None:
    """Repository of a bundle on the Hub; None for a bundle in a folder."""
    return place_of(name) if folder_of(name) is None else None


def find_bundle(name: str) -> Bundle:
    """Files of a bundle; those on the Hub are downloaded if they are not cached.

    Raises:
        UserError: If a file is missing or cannot be downloaded, or a folder has several weights files.
    """
    _refuse_missing_folder(name)
    if name.startswith(TRANSFORMERS):
        return _transformers_bundle(name)
    if name.startswith(TIMM):
        return _timm_bundle(name)
    return _open_clip_bundle(name)


def local_bundle_weights(name: str) -> Path | None:
    """Weights file of a bundle on this machine; None if it has to be downloaded.

    Raises:
        UserError: If a folder is incomplete.
    """
    _refuse_missing_folder(name)
    if folder_of(name) is not None:
        return find_bundle(name).weights
    filenames = WEIGHTS_NAMES
    if name.startswith(TIMM):
        filenames = TIMM_WEIGHTS_NAMES
    if name.startswith(TRANSFORMERS):
        filenames = (SAFETENSORS, SHARDS)
    return cached_file(place_of(name), filenames)


def _refuse_missing_folder(name: str) -> None:
    """Raise UserError if a name has the form of a path, which no repository of the Hub has, and is no folder."""
    place = place_of(name)
    if folder_of(name) is None and place.startswith(("./", "../", "/")):
        expected = f"{name} must name a folder, or a repository ORGANISATION/NAME of the Hub"
        raise UserError(f"{expected}; there is no folder {place!r}")


def find_open_clip_config(name: str) -> Path:
    """Configuration file of a bundle of open_clip, downloaded if necessary. In a folder, it may be missing.

    Raises:
        UserError: If it cannot be downloaded.
    """
    folder = folder_of(name)
    return _fetch_open_clip_file(name, (CONFIG_NAME,)) if folder is None else folder / CONFIG_NAME


def _fetch_open_clip_file(name: str, filenames: tuple[str, ...]) -> Path:
    needed = f"{CONFIG_NAME} and {WEIGHTS_NAMES[0]}"
    return fetch_file(place_of(name), filenames, name, needed, f"put them into a folder, {USE_FOLDER}")


def _open_clip_bundle(name: str) -> Bundle:
    folder = folder_of(name)
    if folder is None:
        config = find_open_clip_config(name)
        weights = _fetch_open_clip_file(name, WEIGHTS_NAMES)
        return Bundle(place_of(name), config, weights, _tokenizer_on_hub(name, config))
    files = [file for file in sorted(folder.glob("*")) if file.suffix in WEIGHTS_SUFFIXES and file.is_file()]
    known = [folder / filename for filename in WEIGHTS_NAMES if folder / filename in files]
    if not (folder / CONFIG_NAME).is_file() or not (known or len(files) == 1):
        raise UserError(f"{name} must be a folder with {CONFIG_NAME} and {WEIGHTS_NAMES[0]} or one other weights file")
    tokenizer = _files(folder, TOKENIZER_NAMES)
    return Bundle(folder.resolve().name, folder / CONFIG_NAME, (known or files)[0], tokenizer)


def _tokenizer_on_hub(name: str, config: Path) -> tuple[Path, ...]:
    """Files of the tokenizer of transformers that the configuration of open_clip names; () if it names none."""
    from ...utils.reading import read_json

    content = read_json(config)
    model = content.get("model_cfg") if isinstance(content, dict) else None
    text = model.get("text_cfg") if isinstance(model, dict) else None
    repository = text.get("hf_tokenizer_name") if isinstance(text, dict) else None
    if not isinstance(repository, str) or not repository:
        return ()
    vocabulary = cached_file(repository, VOCABULARY_NAMES)
    if vocabulary is not None and cached_file(repository, ("tokenizer_config.json",)):
        return _files(vocabulary.parent, TOKENIZER_NAMES)
    what = f"the tokenizer of {name}"
    needed = "tokenizer.json and tokenizer_config.json"
    use = f"put them beside {CONFIG_NAME} and the weights, {USE_FOLDER}"
    return _files(fetch_snapshot(repository, TOKENIZER_NAMES, what, needed, use), TOKENIZER_NAMES)


def _timm_bundle(name: str) -> Bundle:
    folder = folder_of(name)
    needed = f"{JSON_CONFIG_NAME} and {TIMM_WEIGHTS_NAMES[0]}"
    if folder is None:
        place = place_of(name)
        use = f"put them into a folder, {USE_NAME.format(TIMM)}"
        config = fetch_file(place, (JSON_CONFIG_NAME,), name, needed, use)
        return Bundle(f"timm/{place}", config, fetch_file(place, TIMM_WEIGHTS_NAMES, name, needed, use))
    weights = _files(folder, TIMM_WEIGHTS_NAMES)
    if not weights or not (folder / JSON_CONFIG_NAME).is_file():
        raise UserError(f"{name} must be a folder with {needed}, as timm writes them")
    return Bundle(f"timm/{folder.resolve().name}", folder / JSON_CONFIG_NAME, weights[0])


def _transformers_bundle(name: str) -> Bundle:
    folder = folder_of(name)
    needed = f"{JSON_CONFIG_NAME}, {SAFETENSORS}, {PROCESSOR_NAMES[0]} and, for text, the tokenizer"
    place = place_of(name)
    if folder is None:
        cached = [cached_file(place, names) for names in ((JSON_CONFIG_NAME,), (SAFETENSORS, SHARDS), PROCESSOR_NAMES)]
        if cached[0] is not None and None not in cached:
            folder = cached[0].parent
        else:
            use = f"put them into a folder, {USE_NAME.format(TRANSFORMERS)}"
            folder = fetch_snapshot(place, TRANSFORMERS_NAMES, name, needed, use)
    else:
        place = folder.resolve().name
    weights = _files(folder, (SAFETENSORS, SHARDS))
    if not weights:
        safe = "other formats of weights are not read, because they may run code"
        raise UserError(f"{name} has no {SAFETENSORS}, and {safe}; save it again with transformers")
    if not _files(folder, (JSON_CONFIG_NAME,)) or not _files(folder, PROCESSOR_NAMES):
        raise UserError(f"{name} must have {needed}, as transformers writes them")
    if (folder / ADAPTER).exists():  # transformers would load it only where the package peft is installed
        raise UserError(f"{name} has {ADAPTER}: merge the adapter into the weights, and remove its files")
    others = _files(folder, PROCESSOR_NAMES + TOKENIZER_NAMES)
    if weights[0].name == SHARDS:
        others += _shards(weights[0])
    return Bundle(f"transformers/{place}", folder / JSON_CONFIG_NAME, weights[0], others)


def _shards(index: Path) -> tuple[Path, ...]:
    """Weights files of an index, sorted by name; UserError if it is damaged or a file is missing."""
    from ...utils.reading import read_json

    content = read_json(index)
    try:
        filenames = sorted(set(content["weight_map"].values()))
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"expected an index of weights files in {index}, got {json.dumps(content)[:80]}") from error
    shards = _files(index.parent, [Path(filename).name for filename in filenames])
    if len(shards) < len(filenames):
        raise UserError(f"{index.parent} lacks some of the weights files {', '.join(filenames)}")
    return shards


def _files(folder: Path, filenames: tuple[str, ...] | list[str]) -> tuple[Path, ...]:
    """Files of a folder with some names, in the order of the names."""
    return tuple(folder / filename for filename in filenames if (folder / filename).is_file())
