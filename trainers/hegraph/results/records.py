"""The record of a run, which is one JSON file that is written last, and the files beside it.

Shapes: K classes, d feature width, M test images.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import ConfigDict, Field, model_validator

from ..utils.errors import UserError, one_line
from ..utils.files import atomic_path, write_json, write_tensors
from ..utils.reading import parse_json, read_json, read_tensors, read_text, reading
from ..utils.schema import Count, Name, NotNegative, OpenPart, Percent, Positive, check

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

RECORD = "result.json"
SPLIT = "split.json"
PREDICTIONS = "predictions.safetensors"
TEXT_NODES = "text_nodes.safetensors"

# The "rule" of a test on another data set than that of the training
SAME_CLASSES, OTHER_CLASSES = "same classes", "other classes"

KEEP = 0.95  # the share of images of known classes whose threshold a record tells

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
        return _check_record(read_json(path), f"{path} is damaged")
    except UserError as error:
        logger.warning("%s; the run counts as not done", one_line(str(error)))
        return None


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
        raise UserError(f"no complete record below {', '.join(map(str, sources))}; run an experiment first")
    return records


def find_runs(folders: Sequence[Path]) -> dict[Path, dict]:
    """Finds finished runs below folders, at any depth: output folder -> complete record, each run once."""
    found = {path.parent.resolve() for folder in folders for path in _walk(folder)}
    records = {folder: read_record(folder) for folder in sorted(found)}
    return {folder: record for folder, record in records.items() if record is not None}


def _walk(folder: Path) -> Iterator[Path]:
    """The paths of all records below a folder; raises OSError where a folder is closed.

    Runs may be at work meanwhile, so a folder may vanish while it is looked through.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    if folder.exists():
        for parent, _, files in os.walk(folder, onerror=refuse):
            if RECORD in files:
                yield Path(parent, RECORD)


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


def read_beside(path: Path, what: str, names: Sequence[str]) -> tuple[list[Tensor], list[str]]:
    """Reads a file beside a record: the tensors `names`, and the class names in its metadata.

    Raises:
        UserError: If there is no such file, or it holds something else.
    """
    if not path.exists():
        raise UserError(f"{path.parent} holds no {path.name}; name the folder of a run that wrote it")
    tensors, metadata = read_tensors(path, what)
    with reading(path, what):
        classnames = check(list[str], parse_json(metadata["classnames"]), f"{path} has no list of classnames")
        return [tensors[name] for name in names], classnames


def _classnames(classnames: Sequence[str]) -> dict[str, str]:
    return {"classnames": json.dumps(list(classnames), ensure_ascii=False)}


class _Target(OpenPart):
    """What a record says about a test on another data set."""

    accuracy: Percent | None = None
    accuracy_zero_shot: Percent | None = None
    num_test: Count | None = None
    num_classes: Count | None = None
    rule: str | None = None
    trained_on: str | None = None


Seconds = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]  # sums of them are finite


class _Seconds(OpenPart):
    """How long the parts of a run took, each of which is checked."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Seconds]

    training: Seconds


class _Bins(OpenPart):
    """The bins of a reliability diagram, `training.confidence.BINS` of them."""

    count: Annotated[list[Count], Field(min_length=15, max_length=15)]
    confidence: Annotated[list[Percent], Field(min_length=15, max_length=15)]
    accuracy: Annotated[list[Percent], Field(min_length=15, max_length=15)]


class _Honesty(OpenPart):
    """What `evaluation.score` and `confidence.confidence_scores` say of probabilities."""

    accuracy: Percent
    macro_f1: Percent
    nll: NotNegative
    brier: NotNegative
    ece: Percent


class _HonestyInBins(_Honesty):
    """The same, with what a reliability diagram draws."""

    bins: _Bins


class _Calibration(OpenPart):
    """The temperature, and the probabilities before and after it and those of zero-shot CLIP."""

    temperature: Positive
    before: _HonestyInBins | None
    after: _HonestyInBins | None
    zero_shot: _Honesty | None

    @model_validator(mode="after")
    def all_or_none(self) -> _Calibration:
        """Either there were test images, and all three were scored, or none was."""
        if len({part is None for part in (self.before, self.after, self.zero_shot)}) > 1:
            raise ValueError("before, after and zero_shot go together")
        return self


class _Record(_Target):
    """The keys of a record that are read, of which those without a default must be there."""

    dataset: str
    trainer: Name
    variant: str
    backbone: str
    shots: Annotated[int, Field(ge=-1, lt=2**63)]
    seed: Count
    accuracy: Percent | None
    accuracy_text: Percent | None
    accuracy_zero_shot: Percent | None
    macro_f1: Percent | None
    num_test: Count
    selected_on: str
    selected: dict[str, Any]
    run_id: str
    test_set: str | None = None
    calibration: _Calibration | None = None
    targets: dict[str, _Target] | None = None
    config: dict[str, Any] | None = None
    config_hash: str | None = None
    versions: dict[str, str] | None = None
    git_commit: str | None = None
    adapter_from: str | None = None
    epochs: Count | None = None
    steps: Count | None = None
    num_parameters: Count | None = None
    seconds: _Seconds | None = None
    peak_memory_mb: NotNegative | None = None
    threads: Count | None = None
    device: str | None = None
    finished_at: str | None = None


# The keys that a record must have to count as complete
REQUIRED = tuple(name for name, field in _Record.model_fields.items() if field.is_required())


def _check_record(record: object, where: str) -> dict:
    """A record as it is, if it has the form of `_Record`; else raises UserError, whose message begins with `where`."""
    lacking = ", ".join(key for key in REQUIRED if not isinstance(record, dict) or key not in record)
    if not isinstance(record, dict) or lacking:
        raise UserError(f"{where}: it lacks {lacking}")
    check(_Record, record, where)
    return record


def _read_lines(path: Path) -> list[dict]:
    # str.splitlines would also split at U+0085 and U+2028, which a text in JSON may hold
    lines = read_text(path, "a file of records").split("\n")
    if not lines[-1]:
        lines.pop()
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = parse_json(line)
        except ValueError as error:
            raise UserError(f"cannot read records from {path}: line {number} is no JSON: {error}") from error
        records.append(_check_record(record, f"{path}, line {number} is no record"))
    return records


def _without_candidates(selected: dict) -> dict:
    return {
        key: _without_candidates(value) if isinstance(value, dict) else value
        for key, value in selected.items()
        if key != "candidates"
    }
