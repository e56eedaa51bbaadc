"""Write the table of docs/reference/published-backbones.md from `known_models.csv`: `python -m tools.backbones_page`.

The table stands between `<!-- backbones -->` and `<!-- /backbones -->`.
"""

import re
from pathlib import Path

from trainers.hegraph.features.backbones.known_models import NOT_TRIED, known_models
from trainers.hegraph.results.table import markdown_table
from trainers.hegraph.utils.files import atomic_path

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "published-backbones.md"
TABLE = re.compile(r"(<!-- backbones -->\n).*?(<!-- /backbones -->)", re.DOTALL)
HEADS = ("field", "`NAME`", "`PRETRAINED`", "width", "input", "licence", "source")


def table() -> str:
    """Table of the models; the field stands in its first row only."""
    rows = []
    field = ""
    for model in known_models():
        first = model.field if model.field != field else ""
        field = model.field
        weights = model.weights if " " in model.weights or model.weights == "included" else f"`{model.weights}`"
        taken = f"{model.size}²" if model.input == "images and text" else f"{model.size}², {model.input}"
        source = f"[{model.source}]({model.link})"
        rows.append([first, f"`{model.name}`", weights, model.width, taken, model.licence, source])
    return f"{NOT_TRIED}\n\n{markdown_table(HEADS, rows, len(HEADS))}"


def filled(page: str) -> str:
    """Fill the table of a page."""
    return TABLE.sub(lambda found: f"{found[1]}{table()}{found[2]}", page)


if __name__ == "__main__":
    text = filled(PAGE.read_text(encoding="utf-8"))
    with atomic_path(PAGE) as path:
        path.write_text(text, encoding="utf-8")
