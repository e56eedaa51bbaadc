"""Theme of the pages and the report: one style sheet, which a page reads or a file contains."""

from pathlib import Path

THEME_CSS = (Path(__file__).parent / "theme.css").read_text(encoding="utf-8")
