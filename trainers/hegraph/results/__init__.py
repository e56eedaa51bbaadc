"""Records of runs, and the tables, figures and pages that are made from records and from nothing else."""

from __future__ import annotations

from .commands import main
from .comparison import base_to_new, compare
from .costs import complexity
from .records import (
    MEASURED,
    PREDICTIONS,
    RECORD,
    REQUIRED,
    SPLIT,
    TEXT_NODES,
    collect,
    find_records,
    find_runs,
    read_record,
    write_predictions,
    write_record,
    write_text_nodes,
)
from .tables import grid, mean_and_spread, table

__all__ = [
    "MEASURED",
    "PREDICTIONS",
    "RECORD",
    "REQUIRED",
    "SPLIT",
    "TEXT_NODES",
    "base_to_new",
    "collect",
    "compare",
    "complexity",
    "find_records",
    "find_runs",
    "grid",
    "main",
    "mean_and_spread",
    "read_record",
    "table",
    "write_predictions",
    "write_record",
    "write_text_nodes",
]
