"""Options of encoding images and prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..datasets.decoding import DECODINGS, REDUCED
from ..utils.option import is_positive, is_strings, option

# Values of PROMPTS.SOURCE: by the data set, and for classes without text
AUTO_PROMPTS, NO_PROMPTS = "auto", "none"
TRANSFORMS = ("random_resized_crop", "random_flip", "normalize")


def is_fraction_range(value: Sequence[float]) -> bool:
    """Whether a list is a range of fractions `[low, high]` with 0 < low <= high <= 1."""
    return len(value) == 2 and all(map(is_positive, value)) and value[0] <= value[1] <= 1


def _templates(key: str, meaning: str) -> Any:
    form, allowed = "a list of strings", "strings with one `{}`"
    return option([], f".PROMPTS.{key}", meaning, allows=is_strings, form=form, allowed=allowed)


@dataclass(frozen=True)
class EncodingOptions:
    """Options of encoding images and prompts."""

    views: int = option(10, ".FEATURES.VIEWS", "number of augmented views per training image", least=1)
    transforms: Sequence[str] = option(
        TRANSFORMS,
        "INPUT.TRANSFORMS",
        "augmentation of training images (`--transforms`)",
        choices=TRANSFORMS,
        allowed="a list of these",
    )
    crop_scale: Sequence[float] = option(
        (0.08, 1.0),
        "INPUT.RRCROP_SCALE",
        "area of a random crop, as fractions of the image",
        form="two fractions, minimum and maximum, such as (0.08, 1.0)",
        allows=is_fraction_range,
        allowed="two fractions",
    )
    interpolation: str = option(
        "bicubic", "INPUT.INTERPOLATION", "interpolation of the random crop", choices=("bicubic", "bilinear")
    )
    decode: str = option(
        REDUCED,
        "INPUT.DECODE",
        "decoding of your own JPEG files; `auto`: [at the scale that the backbone needs](../guides/data.md#photos), "
        "`full`: at full size, as always for data sets of CoOp",
        choices=DECODINGS,
    )
    batch_size: int = option(256, "DATALOADER.TEST.BATCH_SIZE", "number of images per batch", least=1, shapes_run=False)
    num_workers: int = option(
        0, "DATALOADER.NUM_WORKERS", "number of threads that read images; 0: one per core", least=0, shapes_run=False
    )
    source: str = option(
        AUTO_PROMPTS,
        ".PROMPTS.SOURCE",
        "source of positive prompts; `auto`: `both` for data sets with descriptions (not the digits), else "
        "`templates`, and `none` for backbones without text; `none`: "
        "[class names are not used](../guides/names.md#no-names)",
        choices=(AUTO_PROMPTS, "templates", "descriptions", "both", NO_PROMPTS),
    )
    templates: Sequence[str] = _templates("TEMPLATES", "positive templates (default: the data set's)")
    negative_templates: Sequence[str] = _templates("NEGATIVE_TEMPLATES", "negative templates (default: the data set's)")
    descriptions: str = option(
        "",
        ".PROMPTS.DESCRIPTIONS",
        "[descriptions of classes](../guides/data.md#descriptions-of-classes) (default: the included ones)",
        allowed="a JSON file",
    )

    @property
    def has_prompts(self) -> bool:
        """Whether class names are encoded as text."""
        return self.source != NO_PROMPTS
