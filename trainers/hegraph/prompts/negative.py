"""Negative prompts: sentences that say a class is not in the picture. They become the negative text nodes.

HeGraphAdapter, section 3.1.1, takes "a photo of no {class}" from CLIPN (Wang et al., ICCV 2023). The negative templates
of each data set mirror its positive ones and are in its entry of the registry.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..datasets.entry import DEFAULT_NEGATIVE_TEMPLATES
from ..datasets.registry import find_entry
from .positive import PromptGroup, fill_templates


def negative_templates(dataset: str) -> tuple[str, ...]:
    """The negative templates of a data set; those of one that is not in the registry are the default ones."""
    entry = find_entry(dataset)
    return entry.negative_templates if entry else DEFAULT_NEGATIVE_TEMPLATES


def negative_prompts(dataset: str, classnames: Sequence[str], templates: Sequence[str] = ()) -> PromptGroup:
    """The negative sentences of every class.

    Args:
        dataset: `DATASET.NAME`; selects the templates where none are given.
        classnames: The K class names in label order.
        templates: Templates with one `{}` that replace the data set's own.

    Returns:
        K lists of sentences. A node is the mean of the features of its class's sentences.

    Raises:
        UserError: If a template does not hold exactly one `{}`.
    """
    return fill_templates(templates or negative_templates(dataset), classnames)
