"""What encoding needs to know. No configuration tree reaches it: `config.encoding_options` makes this of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class EncodingOptions:
    """How images and sentences are encoded.

    Attributes:
        views: Augmented views of each training image.
        transforms: The augmentation: any of "random_resized_crop", "random_flip" and "normalize".
        crop_scale: The least and the largest fraction of the area that a random resized crop keeps.
        interpolation: "bicubic" or "bilinear", of that crop.
        batch_size: Images that the backbone encodes at once.
        num_workers: Processes that read images; 0 reads them in this one.
        source: Of positive sentences: "templates", "descriptions", "both" or "auto" (see `prompts.sentences`).
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
