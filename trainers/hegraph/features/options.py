"""How images and sentences are encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..utils.option import NODE, is_fraction_range, is_strings, option

TRANSFORMS = ("random_resized_crop", "random_flip", "normalize")


def _templates(key: str, meaning: str) -> Any:
    said = {"form": "a list of strings", "allowed": "strings with one `{}`"}
    return option([], f"{NODE}.PROMPTS.{key}", meaning, allows=is_strings, **said)


@dataclass(frozen=True)
class EncodingOptions:
    """Options of encoding; each says what it means."""

    views: int = option(10, f"{NODE}.FEATURES.VIEWS", "augmented views of each training image in a bank", least=1)
    transforms: Sequence[str] = option(
        TRANSFORMS,
        "INPUT.TRANSFORMS",
        "augmentation of training images; without a crop they are resized as test images are (`--transforms`)",
        choices=TRANSFORMS,
        allowed="some of these",
    )
    crop_scale: Sequence[float] = option(
        (0.08, 1.0),
        "INPUT.RRCROP_SCALE",
        "least and most area that a random resized crop keeps",
        form="two fractions, least and most, such as (0.08, 1.0)",
        allows=is_fraction_range,
        allowed="two fractions",
    )
    interpolation: str = option(
        "bicubic", "INPUT.INTERPOLATION", "of the random resized crop", choices=("bicubic", "bilinear")
    )
    batch_size: int = option(
        256, "DATALOADER.TEST.BATCH_SIZE", "images that are encoded at once", least=1, shapes_run=False
    )
    num_workers: int = option(
        0, "DATALOADER.NUM_WORKERS", "threads that read images; 0: one for each core", least=0, shapes_run=False
    )
    source: str = option(
        "auto",
        f"{NODE}.PROMPTS.SOURCE",
        "what makes the positive text nodes; `auto`: both where descriptions ship for the data set (the digits "
        "excepted) or a file is given, else templates",
        choices=("auto", "templates", "descriptions", "both"),
    )
    templates: Sequence[str] = _templates("TEMPLATES", "positive templates in place of the data set's own")
    negative_templates: Sequence[str] = _templates(
        "NEGATIVE_TEMPLATES", "negative templates in place of the data set's own"
    )
    descriptions: str = option(
        "",
        f"{NODE}.PROMPTS.DESCRIPTIONS",
        "descriptions in place of those that ship, see [data.md](data.md#descriptions-of-classes)",
        allowed="a JSON file",
    )
