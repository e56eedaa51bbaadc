"""Table of published models whose format loads, by field. This module imports no library of models.

`known_models.csv` is the only source of `hegraph backbones --list` and of the table in docs/reference/backbones.md.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ...utils.errors import UserError
from .bundles import TIMM, TRANSFORMERS

TABLE = Path(__file__).with_name("known_models.csv")
HEADER = ("field", "name", "weights", "width", "size", "input", "licence", "source")
INCLUDED = "included"  # weights that come with the name
TO_CONVERT = "to convert"  # weights that may not be in `.safetensors` files
NOT_TRIED = "None of these weights was tried here, because they could not be downloaded."


class KnownModel(NamedTuple):
    """Row of the table.

    Attributes:
        field: Field of the images, such as "pathology".
        name: Name, as in `load_backbone`.
        weights: Tag of open_clip or file, as `pretrained` in `load_backbone`; or `INCLUDED` or `TO_CONVERT`.
        width: Feature width.
        size: Height and width of input images in pixels.
        input: "images and text" or "images only".
        licence: Licence of the weights, or "see its page".
        source: Paper "arXiv:NUMBER", or the address of a repository without "https://".
    """

    field: str
    name: str
    weights: str
    width: str
    size: str
    input: str
    licence: str
    source: str

    @property
    def library(self) -> str:
        """Library of the model."""
        prefixes = {TIMM: "timm", TRANSFORMERS: "transformers"}
        return next((library for prefix, library in prefixes.items() if self.name.startswith(prefix)), "open_clip")

    @property
    def link(self) -> str:
        """Address of the source."""
        kind, _, number = self.source.partition(":")
        return f"https://arxiv.org/abs/{number}" if kind == "arXiv" else f"https://{self.source}"


def known_models(words: Sequence[str] = ()) -> list[KnownModel]:
    """Models of the table that contain all words, in any case, in their field, name, weights, library or source.

    Raises:
        UserError: If no model contains them.
    """
    with TABLE.open(encoding="utf-8", newline="") as file:
        models = [KnownModel(**row) for row in csv.DictReader(file)]
    matching = []
    for model in models:
        text = " ".join([model.field, model.name, model.weights, model.library, model.source]).lower()
        if all(word.lower() in text for word in words):
            matching.append(model)
    if not matching:
        fields = ", ".join(dict.fromkeys(model.field for model in models))
        expected = f"expected words in a name, library or source, or a field ({fields})"
        raise UserError(f"{expected}, got {' '.join(words)!r:.80}, which no listed backbone has")
    return matching
