"""Sentences about the classes: that one is in the picture, that it is not, and what it looks like.

Prompts are strings; `features` encodes them. The negative template "a photo of no {}." is that of
HeGraphAdapter, section 3.1.1, after CLIPN (Wang et al., ICCV 2023). Those of a data set mirror its positive ones.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

from ..datasets.registry import ENTRIES, Entry, find_entry
from ..utils.errors import UserError, command
from ..utils.reading import Name, check, read_json

DESCRIPTIONS = Path(__file__).parent / "descriptions"

# For each class, in label order, the sentences whose features are averaged
PromptGroup = list[list[str]]


def positive_prompts(
    dataset: str,
    classnames: Sequence[str],
    source: str = "templates",
    templates: Sequence[str] = (),
    descriptions: str = "",
) -> list[PromptGroup]:
    """The positive sentences of every class, in label order.

    `dataset` is `DATASET.NAME`, which selects `templates` and the file of `descriptions` where none are given; `source`
    is "templates", "descriptions" or "both".

    Returns:
        One group per source, each of K lists of sentences. Each group is averaged first and a node is the mean of its
        groups, so that many descriptions do not outweigh few templates.

    Raises:
        UserError: On a template without exactly one `{}`, a class without a description, or a data set without any.
    """
    groups = []
    if source in ("templates", "both"):
        groups.append(fill_templates(templates or entry_of(dataset).templates, classnames))
    if source in ("descriptions", "both"):
        groups.append(read_descriptions(description_file(dataset, descriptions), classnames))
    return groups


def negative_prompts(dataset: str, classnames: Sequence[str], templates: Sequence[str] = ()) -> PromptGroup:
    """The negative sentences of every class, as K lists; arguments and errors as of `positive_prompts`."""
    return fill_templates(templates or entry_of(dataset).negative_templates, classnames)


def resolve_source(dataset: str, source: str, descriptions: str = "") -> str:
    """The source that a value of `PROMPTS.SOURCE` means for a data set: "auto" is "both" where the user gives
    descriptions, or where some ship that the data set's entry uses by default, and else "templates".
    """
    if source != "auto":
        return source
    entry = entry_of(dataset)
    return "both" if descriptions or (entry.descriptions and entry.describe_by_default) else "templates"


def description_file(dataset: str, descriptions: str = "") -> Path:
    """The file of the descriptions of a data set: `PROMPTS.DESCRIPTIONS`, if there is one, else the one that
    ships. Raises UserError if none does.
    """
    if descriptions:
        return Path(descriptions)
    entry = entry_of(dataset)
    if not entry.descriptions:
        known = sorted(entry.name for entry in ENTRIES.values() if entry.descriptions)
        raise UserError(
            f"no descriptions ship for the data set {dataset!r} (known: {', '.join(known)}); set "
            f"PROMPTS.DESCRIPTIONS FILE.json (made by {command('describe')}), or PROMPTS.SOURCE templates"
        )
    return DESCRIPTIONS / f"{entry.descriptions}.json"


def entry_of(dataset: str) -> Entry:
    """The entry of a data set; of one that is not known, such as the user's, with what an entry has by default."""
    return find_entry(dataset) or Entry(name=dataset)


def fill_templates(templates: Sequence[str], classnames: Sequence[str]) -> PromptGroup:
    """Puts every class name into every template, each of which holds one `{}`. An `_` in a name becomes a space, as in
    CoOp.
    """
    for template in templates:
        if template.count("{}") != 1:
            raise UserError(f"a prompt template needs exactly one {{}} for the class name, got {template!r}")
    return [[template.replace("{}", name.replace("_", " ")) for template in templates] for name in classnames]


def read_descriptions(path: Path, classnames: Sequence[str]) -> PromptGroup:
    """Reads a description file in CuPL's format, `{class name: [sentence, ...]}`; a key belongs to the class with the
    same `normalise_name`. UserError if the file has another structure, and names classes without a sentence.
    """
    table = check(dict[str, list[Name]], read_json(path), f"{path} must hold {{class name: [sentence, ...]}}")
    by_name = {normalise_name(name): sentences for name, sentences in table.items()}
    missing = [name for name in classnames if not by_name.get(normalise_name(name))]
    if missing:
        raise UserError(
            f"{path} has no description for {len(missing)} of {len(classnames)} classes: "
            f"{', '.join(missing[:10])}{', ...' if len(missing) > 10 else ''}"
        )
    return [list(by_name[normalise_name(name)]) for name in classnames]


def normalise_name(name: str) -> str:
    """A class name as it is compared: in lower case, with one space for every run of spaces, `_` and `-`."""
    text = unicodedata.normalize("NFC", name)  # file names of macOS have accents as characters of their own
    return " ".join(text.lower().replace("_", " ").replace("-", " ").split())
