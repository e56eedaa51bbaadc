"""Options of encoding images and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..utils.option import NODE, is_fraction_range, is_strings, option

TRANSFORMS = ("random_resized_crop", "random_flip", "normalize")


def _templates(key: str, meaning: str) -> Any:
    form, allowed = "a list of strings", "strings with one `{}`"
    return option([], f"{NODE}.PROMPTS.{key}", meaning, allows=is_strings, form=form, allowed=allowed)


@dataclass(frozen=True)
class EncodingOptions:
    """Options of encoding; each has a description."""

    views: int = option(10, f"{NODE}.FEATURES.VIEWS", "number of augmented views per training image in a bank", least=1)
    transforms: Sequence[str] = option(
        TRANSFORMS,
        "INPUT.TRANSFORMS",
        "augmentation of training images; without a crop, images are resized as for testing (`--transforms`)",
        choices=TRANSFORMS,
        allowed="some of these",
    )
    crop_scale: Sequence[float] = option(
        (0.08, 1.0),
        "INPUT.RRCROP_SCALE",
        "smallest and largest area of a random resized crop, as fractions of the image",
        form="two fractions, minimum and maximum, such as (0.08, 1.0)",
        allows=is_fraction_range,
        allowed="two fractions",
    )
    interpolation: str = option(
        "bicubic", "INPUT.INTERPOLATION", "interpolation of the random resized crop", choices=("bicubic", "bilinear")
    )
    batch_size: int = option(
        256, "DATALOADER.TEST.BATCH_SIZE", "number of images in an encoding batch", least=1, shapes_run=False
    )
    num_workers: int = option(
        0, "DATALOADER.NUM_WORKERS", "number of threads that read images; 0: one per core", least=0, shapes_run=False
    )
    source: str = option(
        "auto",
        f"{NODE}.PROMPTS.SOURCE",
        "source of the positive prompts; `auto`: both, if descriptions are included for the data set (other than the "
        "digits) or a file is named, else templates",
        choices=("auto", "templates", "descriptions", "both"),
    )
    templates: Sequence[str] = _templates("TEMPLATES", "positive templates instead of the data set's own")
    negative_templates: Sequence[str] = _templates(
        "NEGATIVE_TEMPLATES", "negative templates instead of the data set's own"
    )
    descriptions: str = option(
        "",
        f"{NODE}.PROMPTS.DESCRIPTIONS",
        "descriptions instead of the included ones, see [data.md](../guides/data.md#descriptions-of-classes)",
        allowed="a JSON file",
    )
