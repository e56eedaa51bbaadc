"""Checks of a run before images are encoded or anything is trained."""

import logging
from pathlib import Path

from ..baselines import MULTILABEL_METHODS, SEVERAL_LABELS, load_method
from ..datasets.base import check_classes
from ..models.saved import SavedModel
from ..results.records import PREDICTIONS, SPLIT, read_test_files
from ..utils.errors import UserError
from ..utils.option import NODE, OUR_METHOD
from ..utils.reading import read_json, validate
from .bank_task import BankTask
from .tasks import POOL, TEST_SET, Task

logger = logging.getLogger(__name__)


def check_training(task: Task) -> None:
    """Check the training run of a task, without encoding an image.

    Raises:
        UserError: If there are too few classes, the method does not support an option, there are no val images to
            select on, or a target or the unlabelled images are missing.
    """
    cfg = task.cfg
    labels = (label if isinstance(label, (tuple, list)) else [label] for _, label, _ in task.split["train"])
    check_classes(len({each for of_image in labels for each in of_image}))
    check_method(task)
    if task.images_only:
        logger.info("%s", images_only_sentence(task.images_only))
    if cfg.run.select_on == "val" and load_method(cfg.run.trainer).selects_on_val:
        if not task.has_val:
            raise UserError(f"{task.name} has no val images, so nothing can be chosen on them; leave out --select val")
        if not cfg.run.select:
            raise UserError(f"--select val needs {NODE}.SELECT, rows [KEY, [VALUE, ...]]; it is empty")
    _ = task.targets
    if cfg.data.unlabelled:
        check_unlabelled(task)
    shared = task.shared_groups
    if shared is not None and shared.warning:
        logger.warning("%s: %s", task.name, shared.warning)


def images_only_sentence(encoder: str) -> str:
    """Return the sentence about an encoder or a feature bank without text."""
    return f"{encoder} has features of images only, so class names are not used (PROMPTS.SOURCE none)"


def check_method(task: Task) -> None:
    """Raise UserError if the method of a training run does not support an option of the configuration."""
    cfg = task.cfg
    method = load_method(cfg.run.trainer)
    if method.needs_backbone and isinstance(task, BankTask):
        raise UserError(f"{method.name} learns prompts through the text tower; give images instead of --features")
    if not method.needs_base and cfg.data.unlabelled and method.not_saved:
        raise UserError(f"{method.name} has no class weights to adapt to unlabelled images; leave out --unlabelled")
    if not cfg.encoding.has_prompts:
        check_without_text(task)
    if cfg.data.target_datasets and not method.transfers:
        raise UserError(f"{method.name} has no rule for other classes than its own; leave out --target-datasets")


def check_without_text(task: Task) -> None:
    """Raise UserError if a training run without class texts asks for something that needs them."""
    cfg = task.cfg
    method = load_method(cfg.run.trainer)
    remedy = "leave out PROMPTS.SOURCE none"
    if task.images_only:
        remedy = f"choose an encoder with text instead of {task.images_only}"
    if method.needs_text:
        raise UserError(f"{method.name} needs class texts; {remedy}, or use {OUR_METHOD}")
    if cfg.data.target_datasets:
        raise UserError(f"other classes are known by their text alone; leave out --target-datasets, or {remedy}")


def check_multilabel(task: Task) -> None:
    """Raise UserError if a configuration asks for something that several labels per image exclude."""
    cfg = task.cfg
    data = cfg.data
    name = cfg.run.trainer
    if not task.multilabel:
        if name in MULTILABEL_METHODS:
            raise UserError(f"{name} is for several labels per image, and {task.name} has one; change --trainer")
        return
    if load_method(name).needs_batches and cfg.model.variant != "training_free":
        problem = f"{task.name} has several labels per image, which VARIANT {cfg.model.variant} does not support"
        raise UserError(f"{problem}; end the command with {NODE}.VARIANT training_free")
    if name not in SEVERAL_LABELS:
        known = ", ".join(SEVERAL_LABELS)
        raise UserError(f"{task.name} has several labels per image, which {name} does not support; use one of {known}")
    excluded = {
        f"DATASET.SUBSAMPLE_CLASSES {data.classes}": data.classes != "all",
        "--unlabelled": data.unlabelled,
        "--target-domains and --target-datasets": data.target_domains or data.target_datasets,
        "--select val": cfg.run.select_on == "val",
        f"{NODE}.FEATURES.MODE online": data.features == "online",
    }
    if asked := [option for option, is_asked in excluded.items() if is_asked]:
        raise UserError(f"{task.name} has several labels per image; leave out {asked[0]}")


def reason_not_saved(task: Task) -> str:
    """Return the reason why a training run of a task saves no model folder; "" if it saves one."""
    name = task.cfg.run.trainer
    if task.cfg.data.unlabelled == TEST_SET:
        return "its prediction of a test image depends on the other ones"
    if name == "ZeroShot" and task.multilabel:
        return "it chooses no thresholds for several labels per image, as HeGraphAdapter does"
    return load_method(name).not_saved


def check_unlabelled(task: Task) -> None:
    """Raise UserError if the unlabelled images that DATASET.UNLABELLED names are missing; none is opened.

    A warning is logged if the value is a keyword and also the name of a file.
    """
    what = task.cfg.data.unlabelled
    if what in (POOL, TEST_SET) and Path(what).exists():
        meaning = "the images that were not sampled" if what == POOL else "the test images"
        logger.warning("--unlabelled %s means %s of %s; for the path, write ./%s", what, meaning, task.name, what)
    _ = task.unlabelled


def check_unseen(path: Path, model: SavedModel, task: Task) -> None:
    """Check that no test image of a task was a training image of a model.

    A split can change after the training, such as that of class folders when an image is added. The model of own images
    has hashes of its training images. Others are compared by path, if the run and the test read the same data root.

    Args:
        path: Folder of the model.
        model: The model.
        task: Task with the test images.

    Raises:
        UserError: If a test image was a training image, an own image cannot be read, or a file of the run is damaged.
    """
    if model.image_ids:
        trained = set(model.image_ids)
        seen = [image for image, hashed in task.image_ids("test").items() if hashed in trained]
    else:
        trained_paths = training_paths(path.parent, task)
        seen = [image for image in (task.test_files.test if task.test_files else ()) if image in trained_paths]
    if seen:
        problem = f"{len(seen)} test images were training images of {path}, such as {seen[0]}"
        raise UserError(f"{problem}; the split may have changed since: train again, or test on new images", "run.seen")


def training_paths(run: Path, task: Task) -> set[str]:
    """Return the paths of the training images of a run, if its data root is that of a task; else nothing."""
    predictions = run / PREDICTIONS
    split = run / SPLIT
    tested = task.test_files
    if tested is None or not (predictions.is_file() and split.is_file()):
        return set()
    before = read_test_files(predictions)
    if before is None or Path(before.root).resolve() != Path(tested.root).resolve():
        return set()
    rows = validate(dict[str, list[list]], read_json(split), f"{split} is damaged")
    return {str(row[0]) for row in rows.get("train", []) if row}
