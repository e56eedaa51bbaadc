"""Sentences about the classes -> text nodes, and the norms that the text tower gives them.

TaskRes, GraphAdapter and CLAP train what they add to a text feature, or the text feature itself. How far a step turns
it depends on its norm, and their authors take the text tower's output as it is.

Shapes: K classes, d feature width.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..prompts.sentences import PromptGroup, negative_prompts, positive_prompts, resolve_source
from ..utils import processes
from ..utils.files import hash_json
from .bank import FeatureBank
from .kept import CODE_VERSION, kept_part, write_part
from .options import EncodingOptions

if TYPE_CHECKING:
    from ..backbones.clip import Backbone

logger = logging.getLogger(__name__)

# The mean norm of 1,606 text features of OpenAI's ViT-B/32; their standard deviation is 0.7
OPENAI_VIT_B32_NORM = 9.9
OPENAI_VIT_B32 = re.compile(r"ViT-B[-/]32(-quickgelu)?/openai", re.IGNORECASE)  # how such backbones are called in banks


def class_prompts(
    dataset: str, classnames: Sequence[str], options: EncodingOptions
) -> tuple[list[PromptGroup], PromptGroup]:
    """The positive sentences of K classes, in groups that are averaged first, and the negative ones; UserError on a
    class without a sentence.
    """
    source = resolve_source(dataset, options.source, options.descriptions)
    positive = positive_prompts(dataset, classnames, source, options.templates, options.descriptions)
    return positive, negative_prompts(dataset, classnames, options.negative_templates)


def encode_prompts(
    backbone: Backbone, dataset: str, classnames: Sequence[str], options: EncodingOptions, folder: Path
) -> dict[str, Tensor]:
    """The text nodes of K classes, encoded or read from `folder`; `dataset` is `DATASET.NAME`.

    Returns:
        "positive" and "negative", each of unit norm and shape `[K, d]`; and "norms", shape `[K]`: of the mean of the
        text tower's output for the positive sentences of a class or, where they are in groups, of the groups' means.

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

    return kept_part(folder, "text", key, encode)


def _encode_group(backbone: Backbone, group: PromptGroup) -> tuple[Tensor, Tensor]:
    """The re-normalised mean of each class's unit features, and the mean of features as they are, each `[K, d]`."""
    features = backbone.encode_text([sentence for sentences in group for sentence in sentences], normalize=False)
    counts = [len(sentences) for sentences in group]

    def means(rows: Tensor) -> Tensor:
        return torch.stack([of_class.mean(dim=0) for of_class in rows.split(counts)])

    return F.normalize(means(F.normalize(features, dim=-1)), dim=-1), means(features)


def text_norms(bank: FeatureBank) -> Tensor:
    """The norm of each class's text feature before it was normalised, shape `[K]`. Where the bank does not know it, 9.9
    is taken for every class if the backbone is OpenAI's ViT-B/32, and otherwise 1; that is logged.
    """
    if bank.text_norms is not None:
        return bank.text_norms
    known = OPENAI_VIT_B32.fullmatch(bank.backbone)
    norm = OPENAI_VIT_B32_NORM if known else 1.0
    why = "the mean of OpenAI's ViT-B/32" if known else f"since that of {bank.backbone!r} is not known"
    logger.info("the bank of %s holds no norms of its text features: %s is taken for all, %s", bank.dataset, norm, why)
    return bank.text_positive.new_full((len(bank.text_positive),), norm)


def text_with_norm(bank: FeatureBank) -> Tensor:
    """The positive text features of the bank, each with its `text_norms`, shape `[K, d]`."""
    return text_norms(bank)[:, None] * bank.text_positive
