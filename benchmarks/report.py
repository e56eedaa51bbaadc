"""What a benchmark gives back: a table for people, and figures with their bars."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Report:
    """A table and bars.

    Attributes:
        title: What was measured.
        columns: Heads of the columns.
        rows: Cells, one list per row.
        bars: Row -> {"value": measured, "bar": what was asked for, "ok": whether it is met}.
    """

    title: str
    columns: list[str]
    rows: list[list] = field(default_factory=list)
    bars: dict[str, dict] = field(default_factory=dict)

    def at_most(self, row: str, value: float, bar: float) -> None:
        self.bars[row] = {"value": value, "bar": bar, "ok": value <= bar}

    def at_least(self, row: str, value: float, bar: float) -> None:
        self.bars[row] = {"value": value, "bar": bar, "ok": value >= bar}

    def as_dict(self) -> dict:
        return {"title": self.title, "columns": self.columns, "rows": self.rows, "bars": self.bars}

    def __str__(self) -> str:
        lines = [self.title, "", _line(self.columns), _line(["---"] * len(self.columns)), *map(_line, self.rows), ""]
        for row, bar in self.bars.items():
            lines.append(f"{row}: {_cell(bar['value'])}, bar {_cell(bar['bar'])}: {'met' if bar['ok'] else 'MISSED'}")
        return "\n".join(lines)


def _line(cells: list) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
