"""The configuration: all options, and the keys that they make. `config_files.py` reads configurations.

An option is declared where it is read (`utils/option.py`): those of the model in `method/options.py`, of its training
in `training/options.py`, of encoding in `features/options.py`, and all others here. Keys outside
`TRAINER.HEGRAPHADAPTER` are Dassl's and CoOp's with the same names and types, so one YAML file loads in both hosts;
but `MODEL.BACKBONE.PRETRAINED` names weights here and is a yes or no there. The defaults are the shipped recipe.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, is_dataclass, make_dataclass, replace
from functools import partial
from typing import Any

from yacs.config import CfgNode

from .backbones.identity import PRECISIONS
from .features.options import EncodingOptions
from .method.options import ClosedFormOptions, ModelOptions, TrainingFreeOptions
from .training.options import TrainingOptions
from .utils.errors import UserError
from .utils.option import (
    NODE,
    OUR_METHOD,
    is_list,
    is_list_of_pairs,
    is_strings,
    option,
    option_of,
    options_of,
    values_up_to,
)

# Few shots overfit at large rates. At one shot, leaving out an image's own key leaves its class without any, so that
# the visual loss can teach little. Chosen on validation data; docs/trials.md says how.
FILLED_BY_SHOTS = (
    "OPTIM.LR",
    f"{NODE}.MIN_STEPS",
    f"{NODE}.VISUAL_LR",
    f"{NODE}.ALPHA_C",
    f"{NODE}.CLOSED_FORM.KAPPA",
    f"{NODE}.CLOSED_FORM.OMEGA",
)
BY_SHOTS = [
    [shots, [entry for pair in zip(FILLED_BY_SHOTS, values) for entry in pair]]
    for shots, *values in (
        (1, 0.0001, 100, 0.0006, 8.0, 4.0, 0.1),
        (2, 0.0001, 240, 0.01, 2.0, 4.0, 0.1),
        (4, 0.00015, 320, 0.01, 1.0, 4.0, 0.1),
        (8, 0.0004, 280, 0.01, 1.0, 2.0, 0.15),
        (16, 0.0012, 200, 0.01, 1.0, 2.0, 0.15),
    )
]


# Kinds of options that there are several of
in_folder = partial(option, allowed="a folder", shapes_run=False)
its_own = partial(option, allowed="empty, or the backbone's", shapes_run=False)
strings = partial(option, (), form="a list of strings", allows=is_strings)


def fills(default: list, key: str, by: str, rows: tuple) -> Any:
    """An option whose rows fill keys that are left at -1."""
    meaning = f"fills keys that are left at -1, {by}"
    return option(default, key, meaning, rows=rows, allowed="rows", shapes_run=False)


@dataclass(frozen=True)
class RunOptions:
    """Where a run is written, and what it does beside training."""

    output_dir: str = in_folder("./output", "OUTPUT_DIR", "where the run is written (`--output-dir`)")
    seed: int = option(
        1,
        "SEED",
        "of everything that is drawn; 0 is a seed; below 0, one is drawn and recorded (`--seed`)",
        allowed="below 2^32",
        form="below 2**32, and not below -2**31",
        allows=lambda value: -(2**31) <= value < 2**32,  # numpy takes none above
        shapes_run=False,
    )
    use_cuda: bool = option(True, "USE_CUDA", "use a GPU if there is one", shapes_run=False)
    resume: str = in_folder(
        "", "RESUME", "folder of the interrupted run to go on from; without it, `OUTPUT_DIR` is looked at (`--resume`)"
    )
    trainer: str = option(
        OUR_METHOD,
        "TRAINER.NAME",
        "the method (`--trainer`)",
        allowed="see [reproduce.md](reproduce.md#other-methods)",
    )
    select_on: str = option(
        "last_step",
        f"{NODE}.SELECT_ON",
        "`val` tries the values of `SELECT` and keeps the best on the few-shot validation images (`--select`)",
        choices=("last_step", "val"),
    )
    select: Sequence = option(
        [[f"{NODE}.ALPHA_C", [1.0, 2.0, 4.0, 8.0]]],
        f"{NODE}.SELECT",
        "what `SELECT_ON val` tries: all combinations; keys that change the adapter or its training",
        rows=(str, "[KEY, [VALUE, ...]]", is_list),
        allowed="rows `[KEY, [VALUE, ...]]`",
    )
    calibrate: str = option(
        "auto",
        f"{NODE}.CALIBRATE",
        "temperature of the probabilities, of every method, see [confidence.md](confidence.md); `off`: 1",
        choices=("auto", "off"),
    )
    # The effect of these two is in the keys that they fill
    by_shots: Sequence = fills(
        BY_SHOTS, f"{NODE}.BY_SHOTS", "by shots", (int, "[from this many shots, [KEY, VALUE, ...]]", is_list_of_pairs)
    )
    by_dataset: Sequence = fills(
        [], f"{NODE}.BY_DATASET", "by data set", (str, "[data set, [KEY, VALUE, ...]]", is_list_of_pairs)
    )


@dataclass(frozen=True)
class DataOptions:
    """The images of a task, and where their features are kept."""

    root: str = in_folder(
        "", "DATASET.ROOT", "holds the data sets; of `ImageFolder`, your folder or CSV file (`--root`)"
    )
    name: str = option(
        "",
        "DATASET.NAME",
        "the data set; files of `configs/datasets` set it",
        allowed="see [data.md](data.md#data-sets)",
    )
    shots: int = option(
        16,
        "DATASET.NUM_SHOTS",
        "training images per class; -1: all (`--shots`)",
        form="at least 1, or -1 for all images",
        allows=lambda value: value == -1 or 1 <= value < 2**31,
        allowed="from 1, or -1",
    )
    classes: str = option(
        "all",
        "DATASET.SUBSAMPLE_CLASSES",
        "all classes, the first half, or the other half",
        choices=("all", "base", "new"),
    )
    target_domains: Sequence[str] = strings(
        "DATASET.TARGET_DOMAINS",
        "also test on these, which have the same classes or some of them (`--target-domains`)",
        allowed="data sets",
    )
    target_datasets: Sequence[str] = strings(
        "DATASET.TARGET_DATASETS",
        "also test on these, which have other classes (`--target-datasets`)",
        allowed="data sets, `NAME:base`, `NAME:new`",
    )
    unlabelled: str = option(
        "",
        "DATASET.UNLABELLED",
        "images without labels that the trained classifier hears (`--unlabelled`), see [unlabelled.md](unlabelled.md): "
        "`pool`, those of the data set that were not drawn; `test`, the test images together; or a path",
        allowed="`pool`, `test`, a folder, a CSV file, a feature bank",
    )
    skip_unreadable: bool = option(
        False,
        "DATASET.SKIP_UNREADABLE",
        "whether unlabelled images that cannot be read are left out (`--skip-unreadable`); else they are an error",
        shapes_run=False,
    )
    batch_size: int = option(256, "DATALOADER.TRAIN_X.BATCH_SIZE", "images of a training step", least=1)
    features: str = option(
        "bank",
        f"{NODE}.FEATURES.MODE",
        "encode every image once, or every training batch anew",
        choices=("bank", "online"),
    )
    features_dir: str = in_folder("output/features", f"{NODE}.FEATURES.DIR", "where encoded features are kept")


@dataclass(frozen=True)
class BackboneOptions:
    """The frozen CLIP. Resolution and normalisation are its own; Dassl's defaults belong to another network."""

    name: str = option(
        "", "MODEL.BACKBONE.NAME", "the architecture (`--backbone`)", allowed="see [backbones.md](backbones.md)"
    )
    pretrained: str = option(
        "auto",
        "MODEL.BACKBONE.PRETRAINED",
        "the weights; `auto`: those that come with the model, else OpenAI's",
        allowed="a tag of open_clip, a file, `auto`",
    )
    precision: str = option(
        "auto",
        f"{NODE}.PREC",
        "what the backbone computes in; `auto`: `bf16` where the machine multiplies that faster, else `fp32`",
        choices=PRECISIONS,
    )
    input_size: Sequence[int] = its_own(
        (), "INPUT.SIZE", "resolution: it is the backbone's, and this may only say the same"
    )
    mean: Sequence[float] = its_own([], "INPUT.PIXEL_MEAN", "as above")
    std: Sequence[float] = its_own([], "INPUT.PIXEL_STD", "as above")


@dataclass(frozen=True)
class DasslOptions:
    """Keys of Dassl's that files may set, though nothing is to be chosen."""

    version: int = option(1, "VERSION", "Dassl's; nothing reads it")
    # Dassl's other values would select on test: where there is no val split, it scores test in its place
    final_model: str = option(
        "last_step",
        "TEST.FINAL_MODEL",
        "Dassl's other value would select on test images where there is no val split, so it is refused",
        choices=("last_step",),
        shapes_run=False,
    )
    test_split: str = option("test", "TEST.SPLIT", "as above", choices=("test",), shapes_run=False)
    optimizer: str = option("adamw", "OPTIM.NAME", "the optimizer", choices=("adamw",))
    schedule: str = option("cosine", "OPTIM.LR_SCHEDULER", "Dassl's cosine, by epoch", choices=("cosine",))
    warmup: str = option("constant", "OPTIM.WARMUP_TYPE", "of the warm-up", choices=("constant",))


PARTS = {
    "run": RunOptions,
    "data": DataOptions,
    "backbone": BackboneOptions,
    "encoding": EncodingOptions,
    "model": ModelOptions,
    "training": TrainingOptions,
}
HOLDERS = (*PARTS.values(), DasslOptions, TrainingFreeOptions)
OPTIONS = {declared.key: declared for holder in HOLDERS for declared in options_of(holder)}
# Pattern of a configuration key: one of our names without a dot, or names in capitals with dots between them
A_KEY = re.compile("|".join([*(key for key in OPTIONS if "." not in key), r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)+"]))
FILLABLE = tuple(key for key, declared in OPTIONS.items() if declared.filled)
OF_THE_BACKBONE = tuple(declared.key for declared in options_of(BackboneOptions) if declared.key.startswith("INPUT."))


@dataclass(frozen=True)
class Config:
    """A checked configuration.

    Attributes:
        values: The value of every key, also of the keys of another method.
    """

    run: RunOptions
    data: DataOptions
    backbone: BackboneOptions
    encoding: EncodingOptions
    model: ModelOptions
    training: TrainingOptions
    values: Mapping[str, Any]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Config:
        """The options of checked values, as they apply to their number of shots."""
        parts = {name: _filled(holder, values) for name, holder in PARTS.items()}
        if parts["model"].variant == "training_free":
            free = _filled(TrainingFreeOptions, values)
            closed = ClosedFormOptions(free.kappa, free.rho, free.omega)
            parts["model"] = replace(parts["model"], closed_form=closed)
        return cls(**parts, values=values)

    @property
    def method(self) -> Any:
        """The options of another method that `TRAINER.NAME` names: a frozen dataclass with a field for each key."""
        prefix = f"TRAINER.{self.run.trainer.upper()}."
        found = {key.removeprefix(prefix): value for key, value in self.values.items() if key.startswith(prefix)}
        return make_dataclass(self.run.trainer, found, frozen=True)(**deepcopy(found))


def _filled(holder: type, values: Mapping[str, Any]) -> Any:
    """A dataclass of options with the values of their keys."""
    found = {}
    for of_field in fields(holder):
        if (declared := option_of(of_field)) is not None:
            found[of_field.name] = declared.at_shots(values[declared.key], _shots(values))
        elif several := of_field.metadata.get("options"):
            found[of_field.name] = {name: values[one.key] for name, one in several.items()}
        elif is_dataclass(inner := of_field.default_factory):
            found[of_field.name] = _filled(inner, values)
    return holder(**found)


def _shots(values: Mapping[str, Any]) -> float:
    return math.inf if values["DATASET.NUM_SHOTS"] == -1 else values["DATASET.NUM_SHOTS"]


def default_values() -> dict[str, Any]:
    """Every key with its default, which may be changed."""
    return {key: deepcopy(declared.default) for key, declared in OPTIONS.items()}


def matching_rows(values: Mapping[str, Any]) -> list[list]:
    """The pairs of BY_DATASET and BY_SHOTS that apply to a configuration, those that win first."""
    rows, name = values[f"{NODE}.BY_DATASET"], values["DATASET.NAME"]
    by_dataset = [pairs for wanted in (name, "*") for row, pairs in rows if row == wanted]
    return by_dataset + values_up_to(values[f"{NODE}.BY_SHOTS"], _shots(values))[-1:]


def pairs_of(words: Sequence) -> list[tuple[Any, Any]]:
    """The pairs of a list KEY VALUE KEY VALUE ...; UserError if the last key has no value."""
    if len(words) % 2:
        raise UserError(f"options come as KEY VALUE pairs, but {' '.join(map(str, words))!r} has no value at its end")
    return list(zip(words[0::2], words[1::2]))


def split_at_key(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate the values of a flag from the KEY VALUE pairs behind them, which argparse assigns to the flag as well.

    Returns:
        The words before the first configuration key, and the rest.
    """
    at = next((n for n, word in enumerate(words) if A_KEY.fullmatch(word)), len(words))
    return list(words[:at]), list(words[at:])


def is_filled(cfg: Config, key: str) -> bool:
    """Whether a key has the value that BY_DATASET and BY_SHOTS give it where nobody sets it."""
    rows = [dict(pairs_of(pairs)) for pairs in matching_rows(cfg.values)]
    found = [row[key] for row in rows if key in row]
    return bool(found) and cfg.values.get(key) == found[0]


# What Dassl sees


def extend_cfg(cfg: CfgNode) -> None:
    """Adds `cfg.TRAINER.HEGRAPHADAPTER` and the other keys that Dassl lacks; its and CoOp's trainers see no other."""
    cfg.MODEL.BACKBONE.PRETRAINED = "auto"  # Dassl has True here, and only asks whether the value is true
    for key, value in default_values().items():
        lacks = key.startswith("DATASET.") and key.removeprefix("DATASET.") not in cfg.DATASET
        if lacks or key.startswith(f"{NODE}."):
            set_key(cfg, key, value)


def set_key(cfg: CfgNode, key: str, value: Any) -> None:
    """Sets a key of a configuration tree, whose groups are made where they are not there."""
    *groups, name = key.split(".")
    for group in groups:
        cfg = cfg.setdefault(group, CfgNode())
    cfg[name] = value
