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
    """Scores of a test on another data set.

    Attributes:
        accuracy: Accuracy of the model in percent.
        accuracy_zero_shot: Accuracy of zero-shot CLIP in percent.
        num_test: Number of test images.
        num_classes: Number of classes of the test images.
        rule: `same classes` or `other classes` (docs/reference/protocol.md).
        trained_on: Data set of the training.
    """

    accuracy: Percent | None = None
    accuracy_zero_shot: Percent | None = None
    num_test: Count | None = None
    num_classes: Count | None = None
    rule: str | None = None
    trained_on: str | None = None


class BinsRecord(LenientModel):
    """Bins of a reliability diagram.

    Attributes:
        count: Number of images in each bin.
        confidence: Mean confidence of the images in each bin, in percent.
        accuracy: Accuracy in each bin, in percent.
    """

    count: Annotated[list[Count], Field(min_length=BINS, max_length=BINS)]
    confidence: Annotated[list[Percent], Field(min_length=BINS, max_length=BINS)]
    accuracy: Annotated[list[Percent], Field(min_length=BINS, max_length=BINS)]


class ProbabilitiesRecord(LenientModel):
    """Scores of probabilities on the test images.

    Attributes:
        accuracy: Accuracy in percent.
        macro_f1: Mean F1 of the classes in percent.
        nll: Mean negative log-likelihood of the true class, in nats.
        brier: Mean squared distance between the probabilities and the one-hot label, from 0 to 2.
        ece: Expected calibration error in percent: mean gap between confidence and accuracy over equal bins of the
            confidence.
        bins: Bins of the reliability diagram.
    """

    accuracy: Percent
    macro_f1: Percent
    nll: NotNegative
    brier: NotNegative
    ece: Percent
    bins: BinsRecord | None = None


class CalibrationRecord(LenientModel):
    """Temperature, and scores of the probabilities before and after scaling; the scores are null without test images.

    Attributes:
        temperature: Divisor of the logits.
        fitted_on: Images that the temperature was fitted on (docs/guides/confidence.md).
        num_images: Number of these images.
        before: Scores of the method without the temperature.
        after: Scores of the method with the temperature.
        zero_shot: Scores of zero-shot CLIP without a temperature, and without bins.
    """

    temperature: Positive
    fitted_on: str | None = None
    num_images: Count | None = None
    before: ProbabilitiesRecord | None
    after: ProbabilitiesRecord | None
    zero_shot: ProbabilitiesRecord | None


class RejectionRecord(LenientModel):
    """Threshold of open-set rejection, which the fraction `rate` of the images of known classes reaches.

    Attributes:
        score: Name of the score.
        fitted_on: Images that the threshold comes from, as for the temperature.
        num_images: Number of these images.
        rate: Fraction of images of known classes that reach the threshold.
        threshold: Least score of an image that is accepted.
        accepted: Percentage of the test images that reach the threshold; null without test images.
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
        threshold: Least probability of a class in a set; classes with far fewer images than others have another one.
        num_images: Number of held-out images that the threshold comes from.
        of_zero_shot: Whether the sets are those of zero-shot CLIP.
        coverage: Percentage of the test images whose set contains their class; null without test images.
        mean_size: Mean number of classes in a set; null without test images.
        single: Percentage of the sets with a single class; null without test images.
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
        val_in_train: Percentage of the val images whose group occurs in train; null without val images.
        test_in_train: Percentage of the test images whose group occurs in train; null without test images.
        warning: Sentence about val and test images whose group occurs in train; null if there are none.
    """

    num_groups: Count
    val_in_train: Percent | None
    test_in_train: Percent | None
    warning: str | None


class RunRecord(TargetRecord):
    """Keys of `result.json`.

    A run writes all keys, apart from `source`, which only a user's own images have, `shots_per_class`, which unequal
    numbers of training images add, `groups`, which only images with groups have, `rule`, `num_classes` and
    `trained_on`, which a test on another data set adds, and `protocol` and `unlabelled`, which adaptation to unlabelled
    images adds. With several labels per image, the keys `map` to `average_precision` replace accuracy and calibration.
    Keys with a default may be absent from records of earlier versions.

    Attributes:
        dataset: Name of the data set.
        source: On a user's own images, the name of their folder or CSV file, which tables show as the data set.
        trainer: Name of the method.
        variant: Variant of HeGraphAdapter; empty for other methods.
        backbone: Name of the image encoder.
        precision: Precision of the features; `fp32` if missing.
        shots: Largest number of training images of a class that the run may use, or -1 for all.
        images_per_class: Fewest and most training images of a class.
        shots_per_class: Unequal numbers of training images, as in `DATASET.SHOTS_PER_CLASS`; absent for equal numbers.
        seed: Random seed of the run.
        accuracy: Accuracy on the test images in percent; null without test images.
        macro_f1: Mean F1 of the classes on the test images in percent; null without test images.
        macro_accuracy: Mean accuracy of the classes with test images, in percent.
        macro_accuracy_zero_shot: Macro accuracy of zero-shot CLIP.
        accuracy_text: Accuracy of the text classifier alone; null for other methods.
        accuracy_zero_shot: Accuracy of zero-shot CLIP.
        map: Mean average precision in percent, with several labels per image.
        map_zero_shot: Mean average precision of zero-shot CLIP.
        micro_f1: Micro F1 in percent, with several labels per image.
        average_precision: Average precision of each class, with several labels per image; null without test images.
        num_test: Number of test images.
        num_train: Number of training images.
        test_set: Hash of the test classes and their sizes. On a user's own images, only runs with equal hashes are
            averaged.
        selected_on: `last_step` or `val`.
        selected: Selected hyper-parameters.
        calibration: Temperature, the images that it was fitted on, and scores of the probabilities.
        prediction_sets: Prediction sets of the test images; null with too few held-out images.
        rejection: Open-set threshold, and the test images that reach it.
        groups: Groups of the images; absent for images without groups.
        targets: Accuracies, sizes and rule of each further data set.
        rule: Rule of the classes, in a test with `--eval-only` on other data.
        num_classes: Number of test classes, in a test with `--eval-only` on other data.
        trained_on: Data set of the training, in a test with `--eval-only` on other data.
        protocol: `semi-supervised` or `transductive`, with unlabelled images.
        unlabelled: Source, number and hash of the unlabelled images, and evidence about class proportions.
        adapter_from: Folder of the model that `--eval-only` tested; null otherwise.
        epochs: Number of epochs of the training.
        steps: Number of steps of the training.
        num_parameters: Number of trained parameters.
        config: Configuration keys that shape the result.
        config_hash: Hash of the configuration.
        split_hash: Hash of the sampled images.
        run_id: Hash of everything that shapes the result.
        host: Runner of the training, `alone` or `dassl`.
        versions: Versions of the software.
        git_commit: Commit of the checkout.
        threads: Number of threads.
        device: Device of the training.
        seconds: Time of the features, the training, the calibration and the prediction of the test images.
        peak_memory_mb: Peak memory of the process in MB; null if it did several runs.
        finished_at: Time at which the run ended.
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
        UserError: If a source does not exist, there is no record, or a file is damaged.
    """
    check_exist(sources)
    records: list[dict] = []
    for source in sources:
        if source.is_file():
            records += _read_lines(source)
    records += find_runs([source for source in sources if not source.is_file()]).values()
    if not records:
        raise UserError(f"no complete record below {', '.join(map(str, sources))}; run an experiment first")
    return records


def check_exist(sources: Sequence[Path]) -> None:
    """Raise UserError if a source of records does not exist; without its runs, a result would lack rows."""
    for source in sources:
        if not source.exists():
            raise UserError(f"{source} does not exist; name output folders, or files that `results collect` wrote")


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

    A folder that does not exist has no runs; `check_exist` refuses it where a user named it. Other processes may remove
    folders during the search.

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
