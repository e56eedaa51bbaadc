"""Write the tables of docs/reference/configuration.md from the options: `python -m tools.options_page`.

A table stands between `<!-- options: NAME ... -->` and `<!-- /options -->`, where each NAME is a dataclass of options.
"""

import re
import sys
from pathlib import Path

from trainers.hegraph.config import BY_SHOTS, FILLED_BY_SHOTS, HOLDERS
from trainers.hegraph.method.options import ClosedFormOptions
from trainers.hegraph.utils.option import Option, options_of

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "configuration.md"
TABLE = re.compile(r"(<!-- options: ([\w ]+) -->\n).*?(<!-- /options -->)", re.DOTALL)


def filled(page: str) -> str:
    """Fill the tables of a page from the declarations."""
    return TABLE.sub(lambda found: f"{found[1]}{table(found[2].split())}{found[3]}", page)


def table(names: list[str]) -> str:
    """Table of the options of some dataclasses, or of the values by shots."""
    if names == ["BY_SHOTS"]:
        return values_by_shots()
    inner = {option.key for option in options_of(ClosedFormOptions)} if "ClosedFormOptions" not in names else set()
    holders = {holder.__name__: holder for holder in (*HOLDERS, ClosedFormOptions)}
    options = [option for name in names for option in options_of(holders[name]) if option.key not in inner]
    heads = ["key", "default (allowed)", "meaning"]
    lines = [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *map(cells, options))]
    return "\n".join(lines) + "\n"


def cells(option: Option) -> list[str]:
    """Row of the table for one option."""
    default = "see below" if option.default == BY_SHOTS else f"`{option.default if option.default != '' else repr('')}`"
    values = allowed(option)
    return [f"`{option.key}`", f"{default} ({values})" if values else default, option.meaning]


def allowed(option: Option) -> str:
    """Allowed values of an option, as the page shows them."""
    if len(option.choices) == 1:
        return "the only value"
    bounds = {"from": option.least, "above": option.above}
    text = option.allowed or ", ".join(f"`{choice}`" for choice in option.choices)
    text = text or next((f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None), "")
    if not text and isinstance(option.default, float):
        text = "a number"
    return f"{text}, or -1" if option.filled else text


def values_by_shots() -> str:
    """Table of the values that `BY_SHOTS` fills in."""
    keys = [f"`{key}`" for key in FILLED_BY_SHOTS]
    lines = [f"| shots, from | {' | '.join(keys)} |", "|---" * (len(keys) + 1) + "|"]
    lines += [f"| {shots} | {' | '.join(f'{value:g}' for value in pairs[1::2])} |" for shots, pairs in BY_SHOTS]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(filled(text), encoding="utf-8")
    sys.exit(0)
