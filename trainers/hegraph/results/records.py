"""The record of a run, which is one JSON file that is written last, and the files beside it.

Shapes: K classes, d feature width, M test images.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..utils.errors import UserError
from ..utils.files import atomic_path, read_json, write_json, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

RECORD = "result.json"
SPLIT = "split.json"
PREDICTIONS = "predictions.safetensors"
TEXT_NODES = "text_nodes.safetensors"

# The keys that a record must have to count as complete
REQUIRED = (
    "dataset", "trainer", "variant", "backbone", "shots", "seed", "accuracy", "accuracy_text", "accuracy_zero_shot",
    "macro_f1", "num_test", "selected_on", "selected", "run_id",
)  # fmt: skip

# The keys whose values differ between two runs of one experiment, even on one machine
MEASURED = ("seconds", "peak_memory_mb", "finished_at")


def write_record(folder: Path, record: dict) -> None:
    """Writes `result.json` into a run's output folder, whole or not at all."""
    write_json(folder / RECORD, record)


def write_predictions(folder: Path, predicted: Tensor, labels: Tensor, classnames: Sequence[str]) -> None:
    """Writes the file from which the confusion matrix is made.

    Args:
        folder: The output folder of the run.
        predicted: Predicted class of every test image, shape `[M]`.
        labels: True class of every test image, shape `[M]`.
        classnames: K names, in label order.
    """
    tensors = {"predicted": predicted.int().cpu(), "labels": labels.int().cpu()}
    write_tensors(folder / PREDICTIONS, tensors, _classnames(classnames))


def write_text_nodes(folder: Path, before: Tensor, after: Tensor, classnames: Sequence[str]) -> None:
    """Writes the file from which the t-SNE of positive text nodes (the paper's Fig. 3) is made.

    Args:
        folder: The output folder of the run.
        before: The text nodes before message passing, of unit norm, shape `[K, d]`.
        after: The text nodes after message passing, of unit norm, shape `[K, d]`.
        classnames: K names, in label order.
    """
    write_tensors(folder / TEXT_NODES, {"before": before.cpu(), "after": after.cpu()}, _classnames(classnames))


def read_record(folder: Path) -> dict | None:
    """Reads the record in a run's output folder; None if there is none.

    A damaged or incomplete record counts as none, and a warning says so.
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
    """Reads all complete records.

    Args:
        sources: Folders, below which records are looked for at any depth, and files that `collect` wrote.

    Raises:
        UserError: If there is no record, or a file holds something else.
    """
    records = [record for source in sources if source.is_file() for record in _read_lines(source)]
    records += find_runs([source for source in sources if not source.is_file()]).values()
    if not records:
        raise UserError(f"no {RECORD} below {', '.join(map(str, sources))}; run an experiment first")
    return records


def find_runs(folders: Sequence[Path]) -> dict[Path, dict]:
    """Finds finished runs below folders, at any depth: output folder -> complete record, each run once.

    Runs may be at work meanwhile: `os.walk` passes over folders that vanish, which `rglob` does not.
    """
    below = (Path(path) for folder in folders for path, _, files in os.walk(folder) if RECORD in files)
    found = {path.resolve() for path in below}
    records = {folder: read_record(folder) for folder in sorted(found)}
    return {folder: record for folder, record in records.items() if record is not None}


def collect(records: Sequence[dict], path: Path) -> None:
    """Writes records into one file, one a line, without what makes them long or tells of one machine only.

    Left out are times and memory and, where a value was chosen on val, the accuracies of all candidates, which can be a
    hundred times as long as the rest.
    """
    lines = []
    for record in records:
        kept = {key: value for key, value in record.items() if key not in MEASURED}
        kept["selected"] = _without_candidates(record["selected"])
        lines.append(json.dumps(kept, sort_keys=True))
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


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


def _without_candidates(selected: dict) -> dict:
    return {
        key: _without_candidates(value) if isinstance(value, dict) else value
        for key, value in selected.items()
        if key != "candidates"
    }
