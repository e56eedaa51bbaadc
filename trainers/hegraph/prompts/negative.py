"""Negative prompts: sentences that say a class is not in the picture. They become the negative text nodes.

HeGraphAdapter, section 3.1.1, takes "a photo of no {class}" from CLIPN (Wang et al., ICCV 2023). The
templates here mirror the positive ones of each data set in `prompts.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from .positive import PromptGroup, fill_templates

DEFAULT_NEGATIVE_TEMPLATES = ("a photo of no {}.",)

NEGATIVE_TEMPLATES: dict[str, tuple[str, ...]] = {
    "OxfordPets": ("a photo of no {}, a type of pet.",),
    "OxfordFlowers": ("a photo of no {}, a type of flower.",),
    "FGVCAircraft": ("a photo of no {}, a type of aircraft.",),
    "DescribableTextures": ("no {} texture.",),
    "EuroSAT": ("a centered satellite photo of no {}.",),
    "Food101": ("a photo of no {}, a type of food.",),
    "UCF101": ("a photo of a person not doing {}.",),
    "Digits": ('a photo of the number: no "{}".', "a photo of no handwritten {}.", "a photo of no {}."),
}
NEGATIVE_TEMPLATES.update(dict.fromkeys(("DigitsLow", "DigitsHigh"), NEGATIVE_TEMPLATES["Digits"]))


def negative_prompts(dataset: str, classnames: Sequence[str], templates: Sequence[str] = ()) -> PromptGroup:
    """The negative sentences of every class.

    Args:
        dataset: `DATASET.NAME`; selects the templates where none are given.
        classnames: The K class names in label order.
        templates: Templates with one `{}` that replace the data set's own.

    Returns:
        K lists of sentences; a node is the mean of its sentences' features.

    Raises:
        UserError: If a template does not hold exactly one `{}`.
    """
    return fill_templates(templates or NEGATIVE_TEMPLATES.get(dataset, DEFAULT_NEGATIVE_TEMPLATES), classnames)
