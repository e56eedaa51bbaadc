"""Positive prompts: sentences that say a class is in the picture. Strings only, no features."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

from ..utils.errors import UserError
from ..utils.files import read_json

DEFAULT_TEMPLATES = ("a photo of a {}.",)

# CoOp's template of each data set (trainers/zsclip.py), and ours for the embedded one
TEMPLATES: dict[str, tuple[str, ...]] = {
    "OxfordPets": ("a photo of a {}, a type of pet.",),
    "OxfordFlowers": ("a photo of a {}, a type of flower.",),
    "FGVCAircraft": ("a photo of a {}, a type of aircraft.",),
    "DescribableTextures": ("{} texture.",),
    "EuroSAT": ("a centered satellite photo of {}.",),
    "StanfordCars": ("a photo of a {}.",),
    "Food101": ("a photo of {}, a type of food.",),
    "SUN397": ("a photo of a {}.",),
    "Caltech101": ("a photo of a {}.",),
    "UCF101": ("a photo of a person doing {}.",),
    "ImageNet": ("a photo of a {}.",),
    "ImageNetSketch": ("a photo of a {}.",),
    "ImageNetV2": ("a photo of a {}.",),
    "ImageNetA": ("a photo of a {}.",),
    "ImageNetR": ("a photo of a {}.",),
    "Digits": ('a photo of the number: "{}".', "a photo of a handwritten {}.", "a photo of a {}."),
}
TEMPLATES.update(dict.fromkeys(("DigitsLow", "DigitsHigh"), TEMPLATES["Digits"]))

DESCRIPTIONS = Path(__file__).parent / "descriptions"
# The description file of each data set; ImageNet's variants have ImageNet's classes, or some of them
SHIPPED: dict[str, str] = {
    "OxfordPets": "oxford_pets",
    "OxfordFlowers": "oxford_flowers",
    "FGVCAircraft": "fgvc_aircraft",
    "DescribableTextures": "dtd",
    "EuroSAT": "eurosat",
    "StanfordCars": "stanford_cars",
    "Food101": "food101",
    "SUN397": "sun397",
    "Caltech101": "caltech101",
    "UCF101": "ucf101",
    "ImageNet": "imagenet",
    "ImageNetSketch": "imagenet",
    "ImageNetV2": "imagenet",
    "ImageNetA": "imagenet",
    "ImageNetR": "imagenet",
    "Digits": "digits",
}

# One group of prompts holds, for each class, the sentences that are averaged into its feature.
PromptGroup = list[list[str]]


def positive_prompts(
    dataset: str,
    classnames: Sequence[str],
    source: str = "templates",
    templates: Sequence[str] = (),
    descriptions: str = "",
) -> list[PromptGroup]:
    """The positive sentences of every class.

    Args:
        dataset: `DATASET.NAME`; selects templates and descriptions where none are given.
        classnames: The K class names in label order.
        source: "templates", "descriptions" or "both".
        templates: Templates with one `{}` that replace the data set's own.
        descriptions: Path of a description file; "" takes the one that ships for the data set.

    Returns:
        One group per source, each of K lists of sentences. A node is the mean of its groups' features, each
        group averaged first, so that many descriptions do not outvote few templates.

    Raises:
        UserError: On a template without exactly one `{}`, a class without a description, or a data set without any.
    """
    groups = []
    if source in ("templates", "both"):
        groups.append(fill_templates(templates or TEMPLATES.get(dataset, DEFAULT_TEMPLATES), classnames))
    if source in ("descriptions", "both"):
        groups.append(read_descriptions(description_file(dataset, descriptions), classnames))
    return groups


def resolve_source(dataset: str, source: str, descriptions: str = "") -> str:
    """What `PROMPTS.SOURCE` "auto" means: both, where descriptions are given or ship for the data set.

    Of the digits it means templates: mini, the backbone made for them, has read captions only, and on the digits' val
    rows descriptions cost it 1.5 points (71.5 with templates, 70.0 with both).
    """
    if source != "auto":
        return source
    return "both" if descriptions or (dataset in SHIPPED and dataset != "Digits") else "templates"


def description_file(dataset: str, descriptions: str = "") -> Path:
    """Where the descriptions of a data set are.

    Args:
        dataset: `DATASET.NAME`.
        descriptions: `PROMPTS.DESCRIPTIONS`, a file of the user's, which goes first.

    Raises:
        UserError: If none is given and none ships for the data set.
    """
    if descriptions:
        return Path(descriptions)
    if dataset not in SHIPPED:
        raise UserError(
            f"no descriptions ship for the data set {dataset!r} (known: {', '.join(sorted(SHIPPED))}); set "
            "PROMPTS.DESCRIPTIONS FILE.json (made by python -m trainers.hegraph.describe), or PROMPTS.SOURCE templates"
        )
    return DESCRIPTIONS / f"{SHIPPED[dataset]}.json"


def fill_templates(templates: Sequence[str], classnames: Sequence[str]) -> PromptGroup:
    """Puts every class name into every template, with `_` read as a space, as CoOp does.

    Raises:
        UserError: If a template does not hold exactly one `{}`.
    """
    for template in templates:
        if template.count("{}") != 1:
            raise UserError(f"a prompt template needs exactly one {{}} for the class name, got {template!r}")
    return [[template.replace("{}", name.replace("_", " ")) for template in templates] for name in classnames]


def read_descriptions(path: Path, classnames: Sequence[str]) -> PromptGroup:
    """Reads a description file in CuPL's format, `{class name: [sentence, ...]}`.

    Keys match class names whatever their case, and with `_`, `-` and runs of spaces alike.

    Raises:
        UserError: If the file has another structure or a class has no sentence; the message names it.
    """
    table = read_json(path)
    well_formed = isinstance(table, dict) and all(
        isinstance(sentences, list) and all(isinstance(s, str) for s in sentences) for sentences in table.values()
    )
    if not well_formed:
        raise UserError(f"{path} must hold {{class name: [sentence, ...]}}")
    by_name = {normalise_name(name): sentences for name, sentences in table.items()}
    missing = [name for name in classnames if not by_name.get(normalise_name(name))]
    if missing:
        raise UserError(
            f"{path} has no description for {len(missing)} of {len(classnames)} classes: "
            f"{', '.join(missing[:10])}{', ...' if len(missing) > 10 else ''}"
        )
    return [list(by_name[normalise_name(name)]) for name in classnames]


def normalise_name(name: str) -> str:
    """A name as it is compared: whatever its case, and with `_`, `-` and runs of spaces alike."""
    text = unicodedata.normalize("NFC", name)  # macOS spells accents in file names in another way
    return " ".join(text.lower().replace("_", " ").replace("-", " ").split())
