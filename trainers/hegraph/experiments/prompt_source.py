"""Source of the prompts of an encoder: none for an encoder of images only."""

from ..config import Config
from ..config_files import with_values
from ..features.backbones.identity import encodes_text
from ..features.options import AUTO_PROMPTS, NO_PROMPTS
from ..utils.errors import UserError
from ..utils.option import NODE

SOURCE = f"{NODE}.PROMPTS.SOURCE"


def images_only_backbone(cfg: Config) -> str:
    """Return the name of the configured backbone if it encodes images only, else ""."""
    name = cfg.backbone.name
    return "" if not name or encodes_text(name) else name


def with_prompt_source(cfg: Config, images_only: str) -> Config:
    """Return a configuration whose PROMPTS.SOURCE `auto` is `none` without text.

    Args:
        cfg: The configuration.
        images_only: Name of the encoder or the feature bank if it has no text, else "".

    Raises:
        UserError: If the configuration asks for prompts, and there is no text.
    """
    prompts = cfg.encoding
    if not images_only or not prompts.has_prompts:
        return cfg
    asked = f"PROMPTS.SOURCE {prompts.source}" if prompts.source != AUTO_PROMPTS else "PROMPTS.DESCRIPTIONS"
    if prompts.source != AUTO_PROMPTS or prompts.descriptions:
        problem = f"{asked} needs text, and {images_only} has features of images only"
        raise UserError(f"{problem}; leave the key out, or choose an encoder with text", "prompts.backbone")
    return with_values(cfg, {SOURCE: NO_PROMPTS})
