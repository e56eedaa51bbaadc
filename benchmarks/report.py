"""The result of a benchmark: a table, and the figures that have a target."""

from dataclasses import dataclass, field


@dataclass
class Report:
    """The result of a benchmark.

    Attributes:
        title: Name of the measurement.
        columns: Headers of the table.
        rows: Cells of the table, one list per row.
        targets: Name of a figure -> {"value": the figure, "target": its limit, "met": whether it meets the limit}.
    """

    title: str
    columns: list[str]
    rows: list[list] = field(default_factory=list)
    targets: dict[str, dict] = field(default_factory=dict)

    def at_most(self, name: str, value: float, target: float) -> None:
        """Add a figure that should not be above its target."""
        self.targets[name] = {"value": value, "target": target, "met": value <= target}

    def at_least(self, name: str, value: float, target: float) -> None:
        """Add a figure that should not be below its target."""
        self.targets[name] = {"value": value, "target": target, "met": value >= target}

    def as_dict(self) -> dict:
        """Content of the file that `--json` writes."""
        return {"title": self.title, "columns": self.columns, "rows": self.rows, "targets": self.targets}

    def __str__(self) -> str:
        lines = [self.title, "", _line(self.columns), _line(["---"] * len(self.columns)), *map(_line, self.rows), ""]
        for name, figure in self.targets.items():
            verdict = "met" if figure["met"] else "MISSED"
            lines.append(f"{name}: {_cell(figure['value'])}, target {_cell(figure['target'])}: {verdict}")
        return "\n".join(lines)


def _line(cells: list) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
