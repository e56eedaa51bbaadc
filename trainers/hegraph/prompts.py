"""Positive prompts: sentences that say a class is in the picture. Strings only, no features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .errors import UserError
from .files import read_json

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
        dataset: `DATASET.NAME`; selects the templates where none are given.
        classnames: The K class names in label order.
        source: "templates", "descriptions" or "both".
        templates: Templates with one `{}` that replace the data set's own.
        descriptions: Path of a description file, needed unless `source` is "templates".

    Returns:
        One group per source, each of K lists of sentences. A node is the mean of its groups' features, each
        group averaged first, so that many descriptions do not outvote few templates.

    Raises:
        UserError: On a template without exactly one `{}`, or a class without a description.
    """
    groups = []
    if source in ("templates", "both"):
        groups.append(fill_templates(templates or TEMPLATES.get(dataset, DEFAULT_TEMPLATES), classnames))
    if source in ("descriptions", "both"):
        if not descriptions:
            raise UserError(f"PROMPTS.SOURCE {source!r} needs PROMPTS.DESCRIPTIONS, a JSON file; none is set")
        groups.append(read_descriptions(Path(descriptions), classnames))
    return groups


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
    by_name = {_normalise(name): sentences for name, sentences in table.items()}
    missing = [name for name in classnames if not by_name.get(_normalise(name))]
    if missing:
        raise UserError(
            f"{path} has no description for {len(missing)} of {len(classnames)} classes: "
            f"{', '.join(missing[:10])}{', ...' if len(missing) > 10 else ''}"
        )
    return [list(by_name[_normalise(name)]) for name in classnames]


def _normalise(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())
