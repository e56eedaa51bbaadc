"""Load a backbone by its name, which also names the library of the model.

Each library has a module with the functions `load`, `local_weights` and `hub_repository`.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from ...utils.devices import choose_device
from ...utils.garbage import without_garbage_search
from ...utils.reading import validate
from . import identity
from .bundles import TIMM, TRANSFORMERS
from .extras import require_extra

if TYPE_CHECKING:
    from .base import Backbone  # imports torchvision, which `library_of` does faster


def load_backbone(name: str, pretrained: str = "", device: str = "cpu", precision: str = "fp32") -> Backbone:
    """Load a frozen encoder.

    Args:
        name: An open_clip model name, "hf-hub:ORGANISATION/NAME" or "local-dir:FOLDER" in open_clip's format,
            "transformers:ORGANISATION/NAME", "transformers:FOLDER", "timm:NAME.TAG", "timm:ORGANISATION/NAME", or
            "mini".
        pretrained: A weights file (`.safetensors`, a PyTorch state dict, or one of OpenAI's TorchScript archives), or
            an open_clip weights tag if no such file exists. "" and "auto" take the weights that come with the model
            (all names with a prefix, mini), or "openai".
        device: Device, such as "cpu" or "cuda".
        precision: One of `identity.PRECISIONS`; "auto" takes "bf16" on devices with fast bfloat16 products.

    Raises:
        UserError: If the model, tag, device or precision is unknown, the activation does not match the weights, or the
            weights cannot be downloaded, are damaged or belong to another model.

    Examples:
        >>> from hegraph import load_backbone
        >>> load_backbone("mini", device="cpu")  # or ViT-B-32-quickgelu, which is downloaded
        Backbone(name='hegraph-mini/hegraph-mini', precision='fp32')
    """
    device = choose_device(device, "device")
    name = identity.canonical_name(validate(str, name, "name"))
    pretrained = validate(str, pretrained, "pretrained")
    precision = identity.resolve_precision(validate(str, precision, "precision"), name, device)
    return library_of(name).load(name, pretrained, device, precision)


def local_weights(name: str, pretrained: str) -> Path | None:
    """Weights file of a model on this machine; None if the weights have to be downloaded, or the tag is unknown.

    Arguments as in `load_backbone`. Unknown models have no weights.

    Raises:
        UserError: If a bundle is incomplete.
    """
    return library_of(name).local_weights(name, pretrained)


def hub_repository(name: str, pretrained: str) -> str | None:
    """Repository of weights on the Hub, None if unknown; `pretrained` is from `identity.resolve_pretrained`."""
    return library_of(name).hub_repository(name, pretrained)


def library_of(name: str) -> ModuleType:
    """Module of the library of a model. It is imported here, because each library takes seconds to import.

    Raises:
        UserError: If the library is not installed; the message names the extra.
    """
    with without_garbage_search():
        if name.startswith(TIMM):
            require_extra("timm", name)
            from . import timm_models

            return timm_models
        if name.startswith(TRANSFORMERS):
            require_extra("transformers", name)
            from . import transformers_models

            return transformers_models
        from . import open_clip_models

        return open_clip_models


def extras_of(name: str) -> tuple[str, ...]:
    """Extras of this package that a model needs, without loading it.

    Raises:
        UserError: If the configuration of a bundle of open_clip is missing, damaged or cannot be downloaded.
    """
    if name.startswith(TIMM):
        return ("timm",)
    if name.startswith(TRANSFORMERS):
        return ("transformers",)
    from . import open_clip_models

    return ("transformers",) if open_clip_models.uses_transformers(name) else ()
