"""Finds a model and its weights among open_clip's models, its tags, files and bundles. Loads nothing yet."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import open_clip

from ..utils.errors import UserError, unknown
from .hub import fetch_file
from .identity import FOLDER, HUB, MINI_CONFIG, MINI_NAME, WEIGHTS_NAMES, find_bundle, is_bundle, weights_file


class Source(NamedTuple):
    """What to build and what to load into it.

    Attributes:
        name: The model as the user named it.
        title: The model and its weights, for records.
        model: What open_clip builds: one of its names, or "local-dir:FOLDER".
        weights: The weights file; None leaves the random initialisation.
        tag: open_clip's name of the weights; "" if they are a file of the user's.
    """

    name: str
    title: str
    model: str
    weights: Path | None
    tag: str = ""


def find_source(name: str, pretrained: str | None) -> Source:
    """Finds a model and its weights, and downloads them if only the Hugging Face hub has them.

    Args:
        name: As of `loading.load_backbone`.
        pretrained: A tag or a file as `identity.resolve_pretrained` gives it; None for no weights.

    Raises:
        UserError: If the model or the weights are unknown, cannot be downloaded, or were trained with another
            activation than the model has.
    """
    if is_bundle(name):
        bundle = find_bundle(name)
        return Source(name, bundle.title, f"{FOLDER}{bundle.config.parent}", bundle.weights)
    if MINI_NAME not in open_clip.list_models():
        open_clip.add_model_config(MINI_CONFIG)
    if name not in open_clip.list_models():
        raise unknown("backbone", name, open_clip.list_models())
    if pretrained is None:
        return Source(name, name, name, None)
    if file := weights_file(pretrained):
        return Source(name, f"{name}/{file.stem}", name, file)
    return _find_tag(name, pretrained)


def hub_repository(name: str, pretrained: str) -> str | None:
    """The repository of the Hugging Face Hub that holds the weights of a model; None if none is known to hold them.

    Args:
        name: As of `loading.load_backbone`.
        pretrained: A tag or a file as `identity.resolve_pretrained` gives it.
    """
    if name.startswith(HUB):
        return name[len(HUB) :]
    if is_bundle(name) or weights_file(pretrained):
        return None
    return _tag_config(name, pretrained).get("hf_hub", "").rpartition("/")[0] or None


def _tag_config(name: str, tag: str) -> dict[str, Any]:
    """What open_clip says of a tag; {} if it does not know it for this model."""
    # Tags of models with QuickGELU are listed under the plain name as well, and some are listed there alone
    return open_clip.get_pretrained_cfg(re.sub("-quickgelu$", "", name), tag)


def _find_tag(name: str, tag: str) -> Source:
    """The weights that open_clip knows by a tag, from the hub."""
    known = _tag_config(name, tag)
    if known:
        check_activation(name, bool(known.get("quick_gelu")), f"the weights {tag!r}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag not in tags:
        raise unknown(f"weights of {name}: neither a file nor a tag:", tag, tags)
    repository, _, filename = known["hf_hub"].rpartition("/")
    filenames = (re.sub(r"\.\w+$", ".safetensors", filename), filename) if filename else WEIGHTS_NAMES
    use = "give its path in place of the tag"
    file = fetch_file(repository, filenames, f"{name} with the weights {tag!r}", " or ".join(filenames), use)
    return Source(name, f"{name}/{tag}", name, file, tag)


def check_activation(model: str, quick: bool, what: str) -> None:
    """Refuses weights whose activation is not the model's: open_clip warns at most, and the features would be wrong.

    Args:
        model: What open_clip builds, as `Source.model`.
        quick: Whether the weights were trained with QuickGELU.
        what: The weights, for the message.

    Raises:
        UserError: With the model that fits the weights.
    """
    plain = re.sub("-quickgelu$", "", model)
    right = f"{plain}-quickgelu" if quick else plain
    if bool(open_clip.get_model_config(model).get("quick_gelu")) != quick and right != model:
        use = f"{right!r}, not {model!r}" if right in open_clip.list_models() else 'a configuration with "quick_gelu"'
        raise UserError(f"{what} were trained with{'' if quick else 'out'} QuickGELU: use {use}")
