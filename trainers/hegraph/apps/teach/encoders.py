"""Image encoders as the page names them: a title that people know, and the kind of images that they know."""

from typing import Annotated, NamedTuple

from pydantic import AfterValidator

from ...datasets.groups import PATTERN_RULE, is_group_pattern
from ...features.backbones.identity import MINI_NAME, encodes_text
from ...features.backbones.schema import BackboneConfig

ORIGINS = {
    "openai": "OpenAI", "datacomp_xl_s13b_b90k": "DataComp", "datacompdr": "DataCompDR", "webli": "WebLI",
    "laion2b_s34b_b79k": "LAION-2B", "laion2b_s34b_b88k": "LAION-2B", "laion400m_e32": "LAION-400M",
}  # fmt: skip


def check_pattern(pattern: str) -> str:
    """Return the pattern of groups, "" for none; ValueError for a malformed one."""
    if pattern and not is_group_pattern(pattern):
        raise ValueError(f"{PATTERN_RULE}, got {pattern!r}")
    return pattern


class StoredEncoder(BackboneConfig):
    """Image encoder of a project, whether its models use class names, and the pattern of its groups.

    The next session reads it.
    """

    uses_names: bool = True
    group_pattern: Annotated[str, AfterValidator(check_pattern)] = ""


class Encoder(NamedTuple):
    """An image encoder.

    Attributes:
        title: Name for people, such as "CLIP ViT-B/16 (OpenAI)".
        knowledge: Kind of images that it was trained on.
    """

    title: str
    knowledge: str

    @classmethod
    def of(cls, name: str, tag: str) -> "Encoder":
        """Describe an encoder by its name and the tag of its weights, as in `load_backbone`."""
        if name == MINI_NAME:
            return cls("mini", "digits and letters only")
        if not encodes_text(name):
            return cls(name.partition(":")[2].rpartition("/")[2], "images, but no text")
        architecture = name.removesuffix("-quickgelu").rpartition("/")[2]
        for size in ("16", "32", "14"):
            architecture = architecture.replace(f"B-{size}", f"B/{size}").replace(f"L-{size}", f"L/{size}")
        family = "" if "CLIP" in architecture else "CLIP "
        origin = f" ({ORIGINS.get(tag, tag)})" if tag else ""
        return cls(f"{family}{architecture}{origin}", "photos of all kinds")
