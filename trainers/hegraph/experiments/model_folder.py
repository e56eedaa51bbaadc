"""What a run leaves for others to use: the model of its method, made of the task, the outcome and the record."""

from __future__ import annotations

from collections.abc import Callable

from ..config import Config
from ..features.bank import FeatureBank
from ..method.model import HeGraphModel
from ..models.folder import save_model
from ..models.saved import Backbone, Preprocessing, Prompts, SavedModel, Scores, TrainedOn
from .adapter import TrainedAdapter, predict_test
from .folder import RunFolder
from .outcome import Outcome
from .provenance import git_commit, versions
from .tasks import ModelSource, Task, bank_class_ids

OF_TEST = ("accuracy", "accuracy_text", "accuracy_zero_shot", "macro_f1", "num_test")
NOT_TESTED = Scores(accuracy=None, accuracy_text=None, accuracy_zero_shot=None, macro_f1=None, num_test=0)


def make_model(
    task: Task,
    bank: FeatureBank,
    cfg: Config,
    seed: int,
    folder: RunFolder,
    host: str,
    outcome: Outcome,
    record: dict | None = None,
) -> SavedModel | None:
    """The model of a run; None if its method does not fold into class weights and a cache.

    Args:
        task: The task, which knows backbone and prompts if it is made of images.
        bank: Its features.
        cfg: The checked configuration.
        seed: The run's seed.
        folder: The run's folder, for the configuration and the selected images.
        host: "alone" or "dassl".
        outcome: The fitted method.
        record: The run's record, for its scores; None for a model that was not tested.
    """
    if outcome.classifier is None:
        return None
    backbone, preprocessing, prompts, class_ids = _of_images(task) if isinstance(task, ModelSource) else _of_bank(bank)
    trained_on = TrainedOn(
        dataset=bank.dataset,
        shots=cfg.data.shots,
        seed=seed,
        num_train=len(bank.train_labels),
        split_hash=folder.split_hash,
        selected_on="val" if outcome.selected else "last_step",
        selected=outcome.selected,
        config=folder.config,
        host=host,
        git_commit=git_commit(),
        versions=versions(),
    )
    return SavedModel(
        classifier=outcome.classifier,
        text_positive=bank.text_positive.detach().cpu(),
        classnames=tuple(bank.classnames),
        class_ids=class_ids,
        method=cfg.run.trainer,
        variant=outcome.variant,
        logit_scale=bank.logit_scale,
        temperature=outcome.calibration.temperature,
        backbone=backbone,
        preprocessing=preprocessing,
        prompts=prompts,
        transfer=outcome.transferable,
        transfer_rule=outcome.transfer_rule,
        known=outcome.calibration.known,
        class_nodes=outcome.class_nodes,
        trained_on=trained_on,
        scores=NOT_TESTED if record is None else _scores(record),
    )


def keep_epochs(
    task: Task, bank: FeatureBank, cfg: Config, seed: int, folder: RunFolder, host: str
) -> Callable[[HeGraphModel, int], None]:
    """What writes the model of an epoch, for `AdapterTraining`; arguments as of `make_model`."""
    without_test = bank.without_test()

    def keep(model: HeGraphModel, epoch: int) -> None:
        outcome = predict_test(TrainedAdapter(model), without_test)
        saved = make_model(task, without_test, cfg, seed, folder, host, outcome)
        if saved is not None:
            save_model(saved, folder.model_folder(epoch))

    return keep


def _scores(record: dict) -> Scores:
    ece = {when: (record["calibration"][when] or {}).get("ece") for when in ("after", "zero_shot")}
    return Scores(**{key: record[key] for key in OF_TEST}, ece=ece["after"], ece_zero_shot=ece["zero_shot"])


def _of_images(task: ModelSource) -> tuple[Backbone, Preprocessing, Prompts, tuple[str, ...]]:
    return task.backbone_config(), task.preprocessing(), task.prompts(), tuple(task.dataset.ids)


def _of_bank(bank: FeatureBank) -> tuple[Backbone, None, None, tuple[str, ...]]:
    known = {} if bank.encoder is None else bank.encoder.model_dump()
    return Backbone(title=bank.backbone, **known), None, None, bank_class_ids(bank)
