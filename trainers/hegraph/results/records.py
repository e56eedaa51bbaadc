"""Records of runs: the file `result.json`, which a run writes last, and files with tensors in the same folder.

Shapes: K classes, d feature width, M test images.
"""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from ..method.training.options import BINS
from ..utils.errors import UserError
from ..utils.files import atomic_path, write_json, write_tensors
from ..utils.reading import (
    Count,
    LenientModel,
    Name,
    NotNegative,
    Percent,
    Positive,
    Share,
    parse_json,
    read_json,
    read_tensors,
    read_text,
    reading,
    validate,
)
from ..utils.text import one_line

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

RECORD = "result.json"
SPLIT = "split.json"
PREDICTIONS = "predictions.safetensors"
TEXT_NODES = "text_nodes.safetensors"
GROUPS = "groups"  # tensor of `PREDICTIONS`

# Values of "rule", for a test on another data set than the training data set
SAME_CLASSES, OTHER_CLASSES = "same classes", "other classes"

# Values of "protocol", for a method adapted to unlabelled images; other records do not have the key
SEMI_SUPERVISED, TRANSDUCTIVE = "semi-supervised", "transductive"

OPEN_SET_RATE = 0.95  # rate of images of known classes that reach the threshold in a record
COVERAGE = 0.9  # coverage of the prediction sets in a record

# Keys whose values differ between two runs of one experiment, even on one machine
MEASURED = ("seconds", "peak_memory_mb", "finished_at")


class TargetRecord(LenientModel):
    """Scores of a test on another data set, in percent. `rule` is `SAME_CLASSES` or `OTHER_CLASSES`."""

    accuracy: Percent | None = None
    accuracy_zero_shot: Percent | None = None
    num_test: Count | None = None
    num_classes: Count | None = None
    rule: str | None = None
    trained_on: str | None = None


class BinsRecord(LenientModel):
    """Bins of a reliability diagram."""

    count: Annotated[list[Count], Field(min_length=BINS, max_length=BINS)]
    confidence: Annotated[list[Percent], Field(min_length=BINS, max_length=BINS)]
    accuracy: Annotated[list[Percent], Field(min_length=BINS, max_length=BINS)]


class ProbabilitiesRecord(LenientModel):
    """Scores of probabilities on the test images: `training.choice.score` and `confidence_scores`."""

    accuracy: Percent
    macro_f1: Percent
    nll: NotNegative
    brier: NotNegative
    ece: Percent
    bins: BinsRecord | None = None


class CalibrationRecord(LenientModel):
    """Temperature, and scores of the probabilities before and after scaling; None without test images.

    Attributes:
        temperature, fitted_on, num_images: As in `training.confidence.Calibration`.
        before, after: Scores of the method without and with the temperature.
        zero_shot: Scores of zero-shot CLIP without a temperature, without bins.
    """

    temperature: Positive
    fitted_on: str | None = None
    num_images: Count | None = None
    before: ProbabilitiesRecord | None
    after: ProbabilitiesRecord | None
    zero_shot: ProbabilitiesRecord | None


class RejectionRecord(LenientModel):
    """Open-set threshold that the share `rate` of images of known classes reaches.

    Attributes:
        score, fitted_on, num_images: As in `training.confidence.KnownScores`.
        accepted: Percentage of the test images that reach the threshold; None without test images.
    """

    score: str | None = None
    fitted_on: str | None = None
    num_images: Count | None = None
    rate: float | None = None
    threshold: float | None = None
    accepted: Percent | None = None


class SetsRecord(LenientModel):
    """Prediction sets of the test images (docs/guides/confidence.md).

    Attributes:
        nominal: Coverage that the sets are made for, from 0 to 1.
        threshold: Least probability of a class in a set.
        num_images: Number of held-out images that the threshold comes from.
        of_zero_shot: Whether the sets are those of zero-shot CLIP.
        coverage: Percentage of the test images whose set contains their class; None without test images, as the next.
        mean_size: Mean number of classes in a set.
        single: Percentage of the sets with a single class.
    """

    nominal: Share | None = None
    threshold: float | None = None
    num_images: Count | None = None
    of_zero_shot: bool | None = None
    coverage: Percent | None = None
    mean_size: NotNegative | None = None
    single: Percent | None = None


class GroupsRecord(LenientModel):
    """Groups of the images of a training run (docs/guides/groups.md).

    Attributes:
        num_groups: Number of groups in the sampled train and val images and in test together.
        val_in_train, test_in_train: Percentage of the val and test images whose group occurs in train; None without
            such images.
        warning: Sentence on these images; None if there are none.
    """

    num_groups: Count
    val_in_train: Percent | None
    test_in_train: Percent | None
    warning: str | None


class RunRecord(TargetRecord):
    """Schema of `result.json`; docs/reference/protocol.md describes every key.

    A run writes all keys, apart from `source`, which only a user's own images have, `shots_per_class`, which unequal
    numbers of training images add, `groups`, which only images with groups have, `rule`, `num_classes` and
    `trained_on`, which a test on another data set adds, and `protocol` and `unlabelled`, which adaptation to unlabelled
    images adds. With several labels per image, the keys `map` to `average_precision` replace accuracy and calibration.
    Keys with a default may be absent from records of earlier versions.
    """

    dataset: str
    source: str | None = None
    trainer: Name
    variant: str
    backbone: str
    precision: str | None = None
    shots: Annotated[int, Field(ge=-1, lt=2**63)]
    images_per_class: Annotated[list[Count], Field(min_length=2, max_length=2)] | None = None
    shots_per_class: str | None = None
    seed: Count
    accuracy: Percent | None
    macro_f1: Percent | None
    macro_accuracy: Percent | None = None
    macro_accuracy_zero_shot: Percent | None = None
    accuracy_text: Percent | None
    accuracy_zero_shot: Percent | None
    map: Percent | None = None
    map_zero_shot: Percent | None = None
    micro_f1: Percent | None = None
    average_precision: dict[str, Percent | None] | None = None
    num_test: Count
    num_train: Count | None = None
    test_set: str | None = None
    selected_on: str
    selected: dict[str, Any]
    calibration: CalibrationRecord | None = None
    rejection: RejectionRecord | None = None
    prediction_sets: SetsRecord | None = None
    groups: GroupsRecord | None = None
    targets: dict[str, TargetRecord] | None = None
    protocol: Literal["semi-supervised", "transductive"] | None = None
    unlabelled: dict[str, Any] | None = None
    adapter_from: str | None = None
    epochs: Count | None = None
    steps: Count | None = None
    num_parameters: Count | None = None
    config: dict[str, Any] | None = None
    config_hash: str | None = None
    split_hash: str | None = None
    run_id: str
    host: str | None = None
    versions: dict[str, str] | None = None
    git_commit: str | None = None
    threads: Count | None = None
    device: str | None = None
    seconds: dict[str, Annotated[float, Field(ge=0, le=1e12)]] | None = None  # their sums are finite
    peak_memory_mb: NotNegative | None = None
    finished_at: str | None = None


class ImageFiles(LenientModel):
    """Files of the test images of a run, in the order of its predictions.

    Attributes:
        root: Folder of the data set, as the run got it; paths of `split.json` are relative to it, too.
        test: Paths in the folder.
    """

    root: str
    test: list[str]


def main_score(record: dict) -> float | None:
    """Return the accuracy on test, or the mAP with several labels per image, in percent; None without test images."""
    return record.get("map", record["accuracy"])


def write_record(folder: Path, record: dict) -> None:
    """Write `result.json` into a run's output folder atomically."""
    write_json(folder / RECORD, record)


def write_tensors_with_classes(
    path: Path, classnames: Sequence[str], files: ImageFiles | None = None, **tensors: "Tensor"
) -> None:
    """Write a file with tensors and the K class names.

    `PREDICTIONS` has the predicted class (`predicted`) and the true class (`labels`) of every test image, each `[M]`,
    its group (`groups`) if images have groups, and its `files` if images are files. `TEXT_NODES` has the unit-norm text
    nodes `before` and `after` message passing, each `[K, d]`.
    """
    metadata = {"classnames": json.dumps(list(classnames), ensure_ascii=False)}
    if files is not None:
        metadata["files"] = files.model_dump_json()
    write_tensors(path, {name: tensor.cpu() for name, tensor in tensors.items()}, metadata)


def read_tensors_with_classes(path: Path, content: str, names: Sequence[str]) -> "tuple[list[Tensor], list[str]]":
    """Read a file of `write_tensors_with_classes`: the tensors `names`, and the class names.

    Args:
        path: The file.
        content: Description of the file for error messages, such as "predictions of a run".
        names: Names of the tensors.

    Raises:
        UserError: If the file is missing or damaged.
    """
    tensors, metadata = read_tensors(path, content)
    with reading(path, content):
        classnames = validate(list[str], parse_json(metadata["classnames"]), f"{path} has no list of classnames")
        return [tensors[name] for name in names], classnames


def read_test_files(path: Path) -> ImageFiles | None:
    """Read the files of the test images from `PREDICTIONS`; None if there are none. UserError if it is damaged."""
    _, metadata = read_tensors(path, "predictions of a run")
    with reading(path, "predictions of a run"):
        files = metadata.get("files")
        return None if files is None else validate(ImageFiles, parse_json(files), f"{path} has damaged paths")


def read_test_groups(path: Path) -> "Tensor | None":
    """Read the groups of the test images, integers `[M]`, from `PREDICTIONS`; None without groups.

    Raises:
        UserError: If the file is damaged, or has another number of groups than labels.
    """
    tensors, _ = read_tensors(path, "predictions of a run")
    groups = tensors.get(GROUPS)
    if groups is not None and (groups.is_floating_point() or groups.shape != tensors["labels"].shape[:1]):
        raise UserError(f"{path}: expected a whole number as group of each test image")
    return groups


def read_training_rows(folder: Path) -> list[list]:
    """Read the rows of the training images from a run's `split.json`: the image first; [] if there are none.

    Raises:
        UserError: If the file is damaged.
    """
    path = folder / SPLIT
    if not path.exists():
        return []
    return validate(dict[str, list[list]], read_json(path), f"{path} is damaged").get("train", [])


def read_record(folder: Path) -> dict | None:
    """Read the record in a run's output folder; None if there is none.

    A damaged or incomplete record is ignored with a warning.
    """
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        record = read_json(path)
        validate(RunRecord, record, f"{path} is damaged")
    except UserError as error:
        logger.warning("%s; the run counts as not done", one_line(str(error)))
        return None
    return record


def find_records(sources: Sequence[Path]) -> list[dict]:
    """Read all complete records.

    Args:
        sources: Folders, which are searched at any depth, and files that `collect` wrote.

    Raises:
        UserError: If there is no record, or a file is damaged.
    """
    records: list[dict] = []
    for source in sources:
        if source.is_file():
            records += _read_lines(source)
    records += find_runs([source for source in sources if not source.is_file()]).values()
    if not records:
        raise UserError(f"no complete record below {', '.join(map(str, sources))}; run an experiment first")
    return records


def _read_lines(path: Path) -> list[dict]:
    records = []
    # str.splitlines would also split at U+0085 and U+2028, which JSON strings may contain
    for number, line in enumerate(read_text(path, "a file of records").removesuffix("\n").split("\n"), 1):
        with reading(path, f"a file of records (line {number})"):
            records.append(parse_json(line))
            validate(RunRecord, records[-1], f"{path}, line {number} is no record")
    return records


def find_runs(folders: Sequence[Path]) -> dict[Path, dict]:
    """Find finished runs below folders at any depth: output folder -> complete record.

    Other processes may remove folders during the search.

    Raises:
        UserError: If one of the folders is a file.
    """
    if files := [folder for folder in folders if folder.is_file()]:
        raise UserError(f"{files[0]} is a file, without the predictions and models of runs; name their output folders")

    def on_error(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    walk = (entry for folder in folders for entry in os.walk(folder, onerror=on_error))
    runs = sorted({Path(parent).resolve() for parent, _, files in walk if RECORD in files})
    records = {run: read_record(run) for run in runs}
    return {run: record for run, record in records.items() if record is not None}


def warn_skipped(records: Sequence, selected: Sequence, description: str) -> None:
    """Log a warning with the number of runs that are not selected, such as runs "of no case"."""
    if len(selected) < len(records):
        logger.warning("%d of %d runs are %s and are skipped", len(records) - len(selected), len(records), description)


def collect(records: Sequence[dict], path: Path) -> None:
    """Write records into one file, one per line, without times, memory, and candidates of values selected on val.

    The accuracies of candidates can be a hundred times as long as the rest of a record.
    """
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for record in records:
            row = {key: record[key] for key in record if key not in MEASURED}
            row["selected"] = _without_candidates(record["selected"])
            file.write(f"{json.dumps(row, sort_keys=True)}\n")


def _without_candidates(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _without_candidates(inner) for key, inner in value.items() if key != "candidates"}
