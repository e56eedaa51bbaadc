"""The result of a benchmark: a table to read, and the figures that must meet a bar."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Report:
    """The result of a benchmark.

    Attributes:
        title: What was measured.
        columns: The heads of the table's columns.
        rows: The cells of the table, one list per row.
        bars: Name of a figure -> {"value": the figure, "bar": its limit, "ok": whether it keeps to the limit}.
    """

    title: str
    columns: list[str]
    rows: list[list] = field(default_factory=list)
    bars: dict[str, dict] = field(default_factory=dict)

    def at_most(self, name: str, value: float, bar: float) -> None:
        """Adds a figure that must not be above its bar."""
        self.bars[name] = {"value": value, "bar": bar, "ok": value <= bar}

    def at_least(self, name: str, value: float, bar: float) -> None:
        """Adds a figure that must not be below its bar."""
        self.bars[name] = {"value": value, "bar": bar, "ok": value >= bar}

    def as_dict(self) -> dict:
        """The report as `--json` writes it."""
        return {"title": self.title, "columns": self.columns, "rows": self.rows, "bars": self.bars}

    def __str__(self) -> str:
        lines = [self.title, "", _line(self.columns), _line(["---"] * len(self.columns)), *map(_line, self.rows), ""]
        for name, bar in self.bars.items():
            lines.append(f"{name}: {_cell(bar['value'])}, bar {_cell(bar['bar'])}: {'met' if bar['ok'] else 'MISSED'}")
        return "\n".join(lines)


def _line(cells: list) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
