"""Source of the prompts of a backbone: none for a backbone that encodes images only."""

from ..config import Config
from ..config_files import with_values
from ..features.backbones.identity import encodes_text
from ..features.options import AUTO_PROMPTS, NO_PROMPTS
from ..utils.errors import UserError
from ..utils.option import NODE

SOURCE = f"{NODE}.PROMPTS.SOURCE"


def with_prompt_source(cfg: Config) -> Config:
    """Return a configuration whose PROMPTS.SOURCE `auto` is `none` if its backbone encodes images only.

    Raises:
        UserError: If the configuration asks for prompts, and its backbone encodes images only.
    """
    name = cfg.backbone.name
    prompts = cfg.encoding
    if not prompts.has_prompts or not name or encodes_text(name):
        return cfg
    asked = f"PROMPTS.SOURCE {prompts.source}" if prompts.source != AUTO_PROMPTS else "PROMPTS.DESCRIPTIONS"
    if prompts.source != AUTO_PROMPTS or prompts.descriptions:
        problem = f"{name} encodes images only, so that it cannot encode the text of {asked}"
        raise UserError(f"{problem}; leave the key out, or choose a backbone with text", "prompts.backbone")
    return with_values(cfg, {SOURCE: NO_PROMPTS})
