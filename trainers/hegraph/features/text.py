"""Sentences about the classes -> text nodes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backbones.clip import Backbone
from ..prompts.negative import negative_prompts
from ..prompts.positive import PromptGroup, positive_prompts, resolve_source
from ..utils import processes
from ..utils.files import hash_json
from .options import EncodingOptions
from .parts import CODE_VERSION, Tensors, kept_part, read_part, write_part


def class_prompts(
    dataset: str, classnames: Sequence[str], options: EncodingOptions
) -> tuple[list[PromptGroup], PromptGroup]:
    """The positive sentences of K classes, in groups that are averaged first, and the negative ones.

    Raises:
        UserError: On a class without a sentence.
    """
    source = resolve_source(dataset, options.source, options.descriptions)
    positive = positive_prompts(dataset, classnames, source, options.templates, options.descriptions)
    return positive, negative_prompts(dataset, classnames, options.negative_templates)


def encode_prompts(
    backbone: Backbone, dataset: str, classnames: Sequence[str], options: EncodingOptions, folder: Path
) -> Tensors:
    """The text nodes of K classes, encoded or read from disk.

    Args:
        backbone: The frozen CLIP.
        dataset: `DATASET.NAME`, by which templates and descriptions are found.
        classnames: The K class names in label order.
        options: Where sentences come from.
        folder: Where the features are kept.

    Returns:
        "positive" and "negative", each of unit norm and shape `[K, d]`; and "norms", shape `[K]`. A norm is that of the
        mean of what the text tower gives for the positive sentences of a class, which TaskRes and CLAP train; where
        sentences are in groups, of the mean of the groups' means.

    Raises:
        UserError: On a class without a sentence, or a folder that cannot be written.
    """
    positive, negative = class_prompts(dataset, classnames, options)

    key = hash_json({"positive": positive, "negative": negative, "code": CODE_VERSION} | backbone.fingerprint)

    def encode(path: Path) -> None:
        if processes.rank():
            return  # the first process encodes the sentences alone: they are few
        groups = [_encode_group(backbone, group) for group in positive]
        text = {
            "positive": F.normalize(torch.stack([unit for unit, _ in groups]).mean(dim=0), dim=-1),
            "negative": _encode_group(backbone, negative)[0],
            "norms": torch.stack([mean for _, mean in groups]).mean(dim=0).norm(dim=-1),
        }
        write_part(path, text, key)

    return read_part(kept_part(folder, "text", key, encode))


def _encode_group(backbone: Backbone, group: PromptGroup) -> tuple[Tensor, Tensor]:
    """Two mean features of each class's sentences, each of shape `[K, d]`.

    Returns:
        The re-normalised mean of unit features, and the mean of features with the norm that the text tower gives them.
    """
    features = backbone.encode_text([sentence for sentences in group for sentence in sentences], normalize=False)
    counts = [len(sentences) for sentences in group]

    def means(rows: Tensor) -> Tensor:
        return torch.stack([of_class.mean(dim=0) for of_class in rows.split(counts)])

    return F.normalize(means(F.normalize(features, dim=-1)), dim=-1), means(features)
