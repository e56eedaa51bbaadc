"""Positive, negative and descriptive prompts for each class, as strings; `features` encodes them.

The negative template "a photo of no {}." is from HeGraphAdapter, section 3.1.1, after CLIPN (Wang et al., ICCV 2023).
Negative templates of a data set mirror its positive ones.
"""

import unicodedata
from collections.abc import Sequence
from pathlib import Path

from ...datasets.registry import ENTRIES, Entry, find_entry
from ...utils.command_line import command
from ...utils.errors import UserError
from ...utils.reading import Name, read_json, validate

DESCRIPTIONS = Path(__file__).parent / "descriptions"

# Prompts of each class, in label order; the features of a class's prompts are averaged
PromptGroup = list[list[str]]


def positive_prompts(
    dataset: str,
    classnames: Sequence[str],
    source: str = "templates",
    templates: Sequence[str] = (),
    descriptions: str = "",
) -> list[PromptGroup]:
    """Return the positive prompts of every class, in label order.

    Args:
        dataset: Name of the data set, which selects the default `templates` and `descriptions`.
        source: "templates", "descriptions" or "both".
        templates: Templates with one `{}` for the class name.
        descriptions: Path of a description file.

    Returns:
        One group per source, each of K lists of prompts. The features of each group are averaged first, then the
        groups, so that many descriptions do not outweigh few templates.

    Raises:
        UserError: If a template does not have exactly one `{}`, or the data set or a class has no description.
    """
    groups = []
    if source in ("templates", "both"):
        groups.append(fill_templates(templates or dataset_entry(dataset).templates, classnames))
    if source in ("descriptions", "both"):
        groups.append(read_descriptions(description_file(dataset, descriptions), classnames))
    return groups


def negative_prompts(dataset: str, classnames: Sequence[str], templates: Sequence[str] = ()) -> PromptGroup:
    """Return the negative prompts of every class, as K lists; arguments and errors as in `positive_prompts`."""
    return fill_templates(templates or dataset_entry(dataset).negative_templates, classnames)


def resolve_source(dataset: str, source: str, descriptions: str = "") -> str:
    """Return the source of prompts for a data set: `source`, or the meaning of "auto".

    "auto" is "both" if the user gives a description file, or if the data set's entry uses its packaged one by default.
    Otherwise it is "templates".
    """
    if source != "auto":
        return source
    entry = dataset_entry(dataset)
    return "both" if descriptions or (entry.descriptions and entry.describe_by_default) else "templates"


def description_file(dataset: str, descriptions: str = "") -> Path:
    """Return the path of the descriptions of a data set: `descriptions` if given, else the packaged file.

    Raises:
        UserError: If neither exists.
    """
    if descriptions:
        return Path(descriptions)
    entry = dataset_entry(dataset)
    if not entry.descriptions:
        known = sorted(entry.name for entry in ENTRIES.values() if entry.descriptions)
        raise UserError(
            f"no descriptions for the data set {dataset!r} (available for: {', '.join(known)}); set "
            f"PROMPTS.DESCRIPTIONS FILE.json (written by {command('describe')}), or PROMPTS.SOURCE templates"
        )
    return DESCRIPTIONS / f"{entry.descriptions}.json"


def dataset_entry(dataset: str) -> Entry:
    """Return the registry entry of a data set; for an unknown name, such as a user's, an entry with defaults."""
    return find_entry(dataset) or Entry(name=dataset)


def fill_templates(templates: Sequence[str], classnames: Sequence[str]) -> PromptGroup:
    """Insert every class name into every template.

    As in CoOp, an `_` in a class name becomes a space.

    Raises:
        UserError: If a template does not have exactly one `{}`.
    """
    for template in templates:
        if template.count("{}") != 1:
            raise UserError(f"a prompt template needs exactly one {{}} for the class name, got {template!r}")
    sentences = []
    for name in classnames:
        words = name.replace("_", " ")
        sentences.append([template.replace("{}", words) for template in templates])
    return sentences


def read_descriptions(path: Path, classnames: Sequence[str]) -> PromptGroup:
    """Read a description file in CuPL's format, `{class name: [sentence, ...]}`.

    A class has the sentences of the key that equals its name, else those of a key with the same `normalise_name`.

    Raises:
        UserError: If the file has another structure, or a class has no sentence.
    """
    table = validate(dict[str, list[Name]], read_json(path), f"{path} must hold {{class name: [sentence, ...]}}")
    by_name = {normalise_name(name): sentences for name, sentences in table.items()}
    by_class = {name: table.get(name) or by_name.get(normalise_name(name), []) for name in classnames}
    missing = [name for name in classnames if not by_class[name]]
    if missing:
        problem = f"{path} has no description for {len(missing)} of {len(classnames)} classes"
        raise UserError(f"{problem}: {', '.join(missing[:10])}{', ...' if len(missing) > 10 else ''}")
    return [list(by_class[name]) for name in classnames]


def normalise_name(name: str) -> str:
    """Normalise a class name for comparison: lower case, with a single space for each run of spaces, `_` and `-`."""
    text = unicodedata.normalize("NFC", name)  # macOS file names store accents as separate characters
    return " ".join(text.lower().replace("_", " ").replace("-", " ").split())
