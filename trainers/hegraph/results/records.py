"""One JSON record per run, written last, and the files beside it."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ..utils.errors import UserError
from ..utils.files import atomic_path, read_json, write_json, write_tensors

logger = logging.getLogger(__name__)

RECORD = "result.json"
SPLIT = "split.json"
PREDICTIONS = "predictions.safetensors"
TEXT_NODES = "text_nodes.safetensors"

# What must be there for a record to count as complete
REQUIRED = (
    "dataset", "trainer", "variant", "backbone", "shots", "seed", "accuracy", "accuracy_text", "accuracy_zero_shot",
    "macro_f1", "num_test", "selected_on", "selected", "run_id",
)  # fmt: skip

# Keys that differ between two runs of one experiment on one machine
MEASURED = ("seconds", "peak_memory_mb", "finished_at")


def write_record(folder: Path, record: dict) -> None:
    """Writes `result.json`, atomically."""
    write_json(folder / RECORD, record)


def write_predictions(folder: Path, predicted: Tensor, labels: Tensor, classnames: Sequence[str]) -> None:
    """Writes what was predicted for every test image, both `[M]`, for confusion matrices."""
    tensors = {"predicted": predicted.int().cpu(), "labels": labels.int().cpu()}
    write_tensors(folder / PREDICTIONS, tensors, _classnames(classnames))


def write_text_nodes(folder: Path, before: Tensor, after: Tensor, classnames: Sequence[str]) -> None:
    """Writes the positive text nodes before and after message passing, both `[K, d]` of unit norm, for Fig. 3."""
    write_tensors(folder / TEXT_NODES, {"before": before.cpu(), "after": after.cpu()}, _classnames(classnames))


def read_record(folder: Path) -> dict | None:
    """The complete record of a run's output folder, or None.

    A damaged or incomplete record counts as none, with a warning.
    """
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        record = read_json(path)
    except UserError as error:
        logger.warning("%s; the run counts as not done", error)
        return None
    if missing := _missing_keys(record):
        logger.warning("%s lacks %s; the run counts as not done", path, ", ".join(missing))
        return None
    return record


def find_records(sources: Sequence[Path]) -> list[dict]:
    """All complete records below folders and in files written by `collect`.

    Raises:
        UserError: If there is none, or a file holds something else.
    """
    records = [record for source in sources if source.is_file() for record in _read_lines(source)]
    records += find_runs([source for source in sources if not source.is_file()]).values()
    if not records:
        raise UserError(f"no {RECORD} below {', '.join(map(str, sources))}; run an experiment first")
    return records


def find_runs(folders: Sequence[Path]) -> dict[Path, dict]:
    """The output folders of finished runs below folders, each with its complete record."""
    found = {path.parent.resolve() for folder in folders for path in folder.rglob(RECORD)}  # one may lie in another
    records = {folder: read_record(folder) for folder in sorted(found)}
    return {folder: record for folder, record in records.items() if record is not None}


def _classnames(classnames: Sequence[str]) -> dict[str, str]:
    return {"classnames": json.dumps(list(classnames), ensure_ascii=False)}


def _missing_keys(record: object) -> list[str]:
    return [key for key in REQUIRED if not isinstance(record, dict) or key not in record]


def _read_lines(path: Path) -> list[dict]:
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read records from {path}: {error}") from error
    for number, record in enumerate(records, 1):
        if missing := _missing_keys(record):
            raise UserError(f"{path}, line {number} is no record: it lacks {', '.join(missing)}")
    return records


def collect(records: Sequence[dict], path: Path) -> None:
    """Writes records as one line each, without what only one machine says (times, memory), and of a choice on val the
    value without the tables of candidates, which can be a hundred times as long as the rest."""
    lines = []
    for record in records:
        kept = {key: value for key, value in record.items() if key not in MEASURED}
        kept["selected"] = _without_candidates(record["selected"])
        lines.append(json.dumps(kept, sort_keys=True))
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _without_candidates(selected: dict) -> dict:
    return {
        key: _without_candidates(value) if isinstance(value, dict) else value
        for key, value in selected.items()
        if key != "candidates"
    }
