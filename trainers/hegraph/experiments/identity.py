"""What tells one run from another, and can be said before torch is imported or anything is encoded.

A run is known by the hash of its configuration, its seed, its data and the images that the few-shot protocol selects.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from yacs.config import CfgNode

from ..backbones.identity import backbone_identity
from ..config import OF_THE_BACKBONE
from ..datasets import Dataset, Selection, select_few_shot, subsample_labels
from ..features.bank_file import BankFile
from ..prompts.sentences import description_file, resolve_source
from ..utils.files import hash_json, read_json

Split = dict[str, list[list]]  # "train" and "val", each rows of [path or bank row, label, class name]

# Keys that say where things are or how they are shown, not what is computed
NOT_PART_OF_A_RUN = (
    "OUTPUT_DIR", "SEED", "USE_CUDA", "RESUME", "DATASET.ROOT", "DATALOADER.NUM_WORKERS",
    "DATALOADER.TEST.BATCH_SIZE", "TRAIN.PRINT_FREQ", "TRAIN.CHECKPOINT_FREQ", "TRAINER.HEGRAPHADAPTER.FEATURES.DIR",
    "TRAINER.HEGRAPHADAPTER.BY_SHOTS", "TRAINER.HEGRAPHADAPTER.BY_DATASET",  # their effect is in other keys
    *OF_THE_BACKBONE, "TEST.FINAL_MODEL", "TEST.SPLIT",  # only one value is allowed
)  # fmt: skip


def run_config(cfg: CfgNode) -> dict[str, object]:
    """The keys that shape a run, as a flat dict of plain values.

    The run of another method keeps those keys of HeGraphAdapter that hold for every method, and none of OPTIM.
    """
    ours, prefix_of_ours = cfg.TRAINER.NAME == "HeGraphAdapter", "TRAINER.HEGRAPHADAPTER."
    of_all_methods = tuple(f"{prefix_of_ours}{name}" for name in ("FEATURES.", "PROMPTS.", "PREC", "CALIBRATE"))
    flat: dict[str, object] = {}

    def visit(node: CfgNode, prefix: str) -> None:
        for key, value in node.items():
            name = f"{prefix}{key}"
            if isinstance(value, CfgNode):
                visit(value, f"{name}.")
            elif not ours and name.startswith(("OPTIM.", prefix_of_ours)) and not name.startswith(of_all_methods):
                continue
            elif name not in NOT_PART_OF_A_RUN:
                flat[name] = list(value) if isinstance(value, tuple) else value

    visit(cfg, "")
    return dict(sorted(flat.items()))


def hash_run(config: dict[str, object], seed: int, data: dict, split: Split) -> str:
    """Hash of everything that shapes the result of a training run.

    Args:
        config: From `run_config`.
        seed: The run's seed.
        data: From `bank_identity` or `images_identity`.
        split: From `bank_split` or `images_split`.
    """
    return hash_json({"config": config, "seed": seed, "data": data, "split": split})


def bank_identity(bank: BankFile, selection: Selection) -> dict:
    """Plain values that change whenever what a run takes from a feature bank would.

    Args:
        bank: The bank.
        selection: The rows of it that the run draws, from `bank_split`.

    Raises:
        UserError: If it cannot be read.
    """
    return {"bank": bank.identity(selection.train, selection.val)}


def bank_split(
    train_labels: list[int], val_labels: list[int], names: Sequence[str], cfg: CfgNode, seed: int
) -> tuple[Selection, Split]:
    """The rows of a feature bank that the protocol selects, and what `split.json` says of them.

    Args:
        train_labels: The label of every row of the bank's training images.
        val_labels: The same of its validation images; [] if it has none.
        names: Its class names in label order.
        cfg: The checked configuration.
        seed: Seed of the selection.
    """
    selection = select_few_shot(train_labels, val_labels, cfg.DATASET.NUM_SHOTS, random.Random(seed))
    which = cfg.DATASET.SUBSAMPLE_CLASSES
    # Where all classes are asked for, one without images stays here and is an error later
    drawn = range(len(names)) if which == "all" else {train_labels[row] for row in selection.train}
    kept = {label: new for new, label in enumerate(subsample_labels(drawn, which))}

    def rows(selected: list[int], labels: list[int]) -> list[list]:
        return [[row, kept[labels[row]], names[labels[row]]] for row in selected if labels[row] in kept]

    return selection, {"train": rows(selection.train, train_labels), "val": rows(selection.val, val_labels)}


def images_identity(dataset: Dataset, cfg: CfgNode, backbone: dict) -> dict:
    """Plain values that change whenever the features of these images would.

    Args:
        dataset: The selected images.
        cfg: The checked configuration.
        backbone: From `configured_backbone`.

    Raises:
        UserError: If the descriptions of the classes cannot be had.
    """
    identity: dict = {"backbone": backbone, "image_sizes": dataset.file_sizes()}
    prompts = cfg.TRAINER.HEGRAPHADAPTER.PROMPTS
    if resolve_source(dataset.name, prompts.SOURCE, prompts.DESCRIPTIONS) != "templates":
        identity["descriptions"] = hash_json(read_json(description_file(dataset.name, prompts.DESCRIPTIONS)))
    return identity


def configured_backbone(cfg: CfgNode, device: str) -> dict:
    """The identity of the backbone that the configuration names.

    Args:
        cfg: The checked configuration.
        device: Where the backbone runs.

    Raises:
        UserError: If its weights cannot be had.
    """
    model = cfg.MODEL.BACKBONE
    return backbone_identity(model.NAME, model.PRETRAINED, cfg.TRAINER.HEGRAPHADAPTER.PREC, device)


def images_split(dataset: Dataset) -> Split:
    """What `split.json` says of selected images."""
    return {"train": [list(item) for item in dataset.train], "val": [list(item) for item in dataset.val]}
