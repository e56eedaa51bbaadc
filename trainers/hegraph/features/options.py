"""What encoding needs to know of the configuration, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from yacs.config import CfgNode


@dataclass(frozen=True)
class EncodingOptions:
    """How images and sentences are encoded. `encoding_options` reads them from a configuration.

    Attributes:
        views: Augmented views of each training image.
        transforms: The augmentation: any of "random_resized_crop", "random_flip" and "normalize".
        crop_scale: The least and the largest fraction of the area that a random resized crop keeps.
        interpolation: "bicubic" or "bilinear", of that crop.
        batch_size: Images that the backbone encodes at once.
        num_workers: Processes that read images; 0 reads them in this one.
        source: Of positive sentences: "templates", "descriptions", "both" or "auto" (see `prompts.positive`).
        templates: Positive templates with one `{}` each; () takes those of the data set.
        negative_templates: Negative templates with one `{}` each; () takes those of the data set.
        descriptions: A file of descriptions; "" takes the one that ships for the data set.
    """

    views: int
    transforms: Sequence[str]
    crop_scale: Sequence[float]
    interpolation: str
    batch_size: int
    num_workers: int
    source: str
    templates: Sequence[str]
    negative_templates: Sequence[str]
    descriptions: str


def encoding_options(cfg: CfgNode) -> EncodingOptions:
    """The options of encoding that a configuration holds."""
    ours = cfg.TRAINER.HEGRAPHADAPTER
    return EncodingOptions(
        views=ours.FEATURES.VIEWS,
        transforms=cfg.INPUT.TRANSFORMS,
        crop_scale=cfg.INPUT.RRCROP_SCALE,
        interpolation=cfg.INPUT.INTERPOLATION,
        batch_size=cfg.DATALOADER.TEST.BATCH_SIZE,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        source=ours.PROMPTS.SOURCE,
        templates=ours.PROMPTS.TEMPLATES,
        negative_templates=ours.PROMPTS.NEGATIVE_TEMPLATES,
        descriptions=ours.PROMPTS.DESCRIPTIONS,
    )
