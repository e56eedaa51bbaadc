"""What tells one run from another, and can be said before torch is imported or anything is encoded.

A run is known by the hash of its configuration, its seed, its data and the images that the few-shot protocol selects.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from ..backbones.identity import backbone_identity
from ..config import OPTIONS, Config
from ..datasets import Dataset, Selection, select_few_shot, subsample_labels
from ..features.bank_file import BankFile
from ..prompts.sentences import description_file, resolve_source
from ..utils.files import hash_json
from ..utils.option import NODE
from ..utils.reading import read_json

Split = dict[str, list[list]]  # "train" and "val", each rows of [path or bank row, label, class name]

OF_ALL_METHODS = tuple(f"{NODE}.{name}" for name in ("FEATURES.", "PROMPTS.", "PREC", "CALIBRATE"))


def run_config(cfg: Config) -> dict[str, object]:
    """The keys that shape a run, as a flat dict of plain values.

    The run of another method keeps those keys of HeGraphAdapter that hold for every method, and none of OPTIM.
    """
    flat: dict[str, object] = {}
    for key, value in sorted(cfg.values.items()):
        of_other = cfg.run.trainer != "HeGraphAdapter" and key.startswith(("OPTIM.", f"{NODE}."))
        if (of_other and not key.startswith(OF_ALL_METHODS)) or (key in OPTIONS and not OPTIONS[key].shapes_run):
            continue
        flat[key] = list(value) if isinstance(value, tuple) else value
    return flat


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
    train_labels: list[int], val_labels: list[int], names: Sequence[str], cfg: Config, seed: int
) -> tuple[Selection, Split]:
    """The rows of a feature bank that the protocol selects, and what `split.json` says of them.

    Args:
        train_labels: The label of every row of the bank's training images.
        val_labels: The same of its validation images; [] if it has none.
        names: Its class names in label order.
        cfg: The checked configuration.
        seed: Seed of the selection.
    """
    selection = select_few_shot(train_labels, val_labels, cfg.data.shots, random.Random(seed))
    which = cfg.data.classes
    # Where all classes are asked for, one without images stays here and is an error later
    drawn = range(len(names)) if which == "all" else {train_labels[row] for row in selection.train}
    kept = {label: new for new, label in enumerate(subsample_labels(drawn, which))}

    def rows(selected: list[int], labels: list[int]) -> list[list]:
        return [[row, kept[labels[row]], names[labels[row]]] for row in selected if labels[row] in kept]

    return selection, {"train": rows(selection.train, train_labels), "val": rows(selection.val, val_labels)}


def images_identity(dataset: Dataset, cfg: Config, backbone: dict) -> dict:
    """Plain values that change whenever the features of these images would.

    Args:
        dataset: The selected images.
        cfg: The checked configuration.
        backbone: From `configured_backbone`.

    Raises:
        UserError: If the descriptions of the classes cannot be had.
    """
    identity: dict = {"backbone": backbone, "image_sizes": dataset.file_sizes()}
    prompts = cfg.encoding
    if resolve_source(dataset.name, prompts.source, prompts.descriptions) != "templates":
        identity["descriptions"] = hash_json(read_json(description_file(dataset.name, prompts.descriptions)))
    return identity


def configured_backbone(cfg: Config, device: str) -> dict:
    """The identity of the backbone that the configuration names.

    Args:
        cfg: The checked configuration.
        device: Where the backbone runs.

    Raises:
        UserError: If its weights cannot be had.
    """
    model = cfg.backbone
    return backbone_identity(model.name, model.pretrained, cfg.backbone.precision, device)


def images_split(dataset: Dataset) -> Split:
    """What `split.json` says of selected images."""
    return {"train": [list(item) for item in dataset.train], "val": [list(item) for item in dataset.val]}
