"""Configuration: all options, and the keys that set them. `config_files.py` reads configurations.

Options are declared in the packages that use them (`utils/option.py`): of the model in `method/options.py`, of training
in `method/training/options.py`, of encoding in `features/options.py`, and all other ones here. Keys outside
`TRAINER.HEGRAPHADAPTER` have the names and types of Dassl's and CoOp's keys, so that one YAML file works with and
without Dassl. The exception is `MODEL.BACKBONE.PRETRAINED`, the weights here and a boolean in Dassl: with Dassl, the
weights are `TRAINER.HEGRAPHADAPTER.PRETRAINED`. The defaults are the recipe of the published results.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, get_type_hints

from yacs.config import CfgNode

from .datasets.groups import is_group_pattern
from .datasets.registry import canonical_name
from .datasets.shots import ALLOWED, SHOTS_PER_CLASS, ShotsPerClass, is_shots_per_class
from .features.backbones.identity import PRECISIONS
from .features.options import EncodingOptions
from .method.options import ClosedFormOptions, ModelOptions, TrainingFreeOptions
from .method.training.options import TrainingOptions
from .utils.errors import UserError
from .utils.option import (
    EVERY_DATASET,
    NODE,
    OUR_METHOD,
    OptionGroup,
    is_list,
    is_strings,
    option,
    options_of,
    rows_for,
    with_options,
)

# Large learning rates overfit few shots. At one shot, a class has no key left without the key of the image itself, so
# that the visual loss is hardly informative. Selected on validation data (docs/development/trials.md).
FILLED_BY_SHOTS = (
    "OPTIM.LR",
    *(f"{NODE}.{key}" for key in ("MIN_STEPS", "VISUAL_LR", "ALPHA_C", "CLOSED_FORM.KAPPA", "CLOSED_FORM.OMEGA")),
)
VALUES_BY_SHOTS = (  # shots, and the value of each of FILLED_BY_SHOTS
    (1, 0.0001, 100, 0.0006, 8.0, 4.0, 0.1),
    (2, 0.0001, 240, 0.01, 2.0, 4.0, 0.1),
    (4, 0.00015, 320, 0.01, 1.0, 4.0, 0.1),
    (8, 0.0004, 280, 0.01, 1.0, 2.0, 0.15),
    (16, 0.0012, 200, 0.01, 1.0, 2.0, 0.15),
)


def listed(keys: Sequence[str], values: Sequence) -> list:
    """List `[KEY, VALUE, KEY, VALUE, ...]` of keys and their values."""
    pairs: list = []
    for key, value in zip(keys, values):
        pairs += [key, value]
    return pairs


BY_SHOTS = [[shots, listed(FILLED_BY_SHOTS, values)] for shots, *values in VALUES_BY_SHOTS]


def is_pairs(value: Any) -> bool:
    """Whether a value is a non-empty list `[KEY, VALUE, KEY, VALUE, ...]`."""
    return is_list(value) and len(value) % 2 == 0


# Options with common attributes
in_folder = partial(option, allowed="a folder", shapes_run=False)
of_backbone = partial(option, allowed="empty, or the backbone's", shapes_run=False)
strings = partial(option, (), form="a list of strings", allows=is_strings)


def fills(default: list, key: str, by: str, rows: tuple) -> Any:
    """Declare an option whose rows fill the keys with value -1."""
    meaning = f"values for keys that are -1, {by}"
    return option(default, key, meaning, rows=rows, allowed="rows", shapes_run=False)


@dataclass(frozen=True)
class RunOptions:
    """Output, seed and method of a run, and selection and calibration after training."""

    output_dir: str = in_folder("./output", "OUTPUT_DIR", "output folder of the run (`--output-dir`)")
    seed: int = option(
        1,
        "SEED",
        "random seed (`--seed`); below 0: sampled and recorded",
        allowed="from -2^31 to 2^32 - 1",  # numpy takes none above
        allows=lambda value: -(2**31) <= value < 2**32,
        shapes_run=False,
    )
    use_cuda: bool = option(True, "USE_CUDA", "whether to use a GPU if there is one", shapes_run=False)
    resume: str = in_folder("", "RESUME", "interrupted run to continue (`--resume`); empty: `OUTPUT_DIR`")
    trainer: str = option(
        OUR_METHOD, "TRAINER.NAME", "method (`--trainer`)", allowed="[methods](../results/reproduce.md#other-methods)"
    )
    select_on: str = option(
        "last_step",
        ".SELECT_ON",
        "`val`: select among the values of `SELECT` on the few-shot validation images (`--select`)",
        choices=("last_step", "val"),
    )
    select: Sequence = option(
        [[f"{NODE}.ALPHA_C", [1.0, 2.0, 4.0, 8.0]]],
        ".SELECT",
        "candidate values of keys for `SELECT_ON val`; all combinations are tried",
        rows=(str, "[KEY, [VALUE, ...]]", is_list),
        allowed="rows `[KEY, [VALUE, ...]]`",
    )
    calibrate: str = option(
        "auto",
        ".CALIBRATE",
        "[temperature](../guides/confidence.md) of the probabilities; `off`: 1",
        choices=("auto", "off"),
    )
    # These two shape the run by the keys that they fill
    by_shots: Sequence = fills(
        BY_SHOTS, ".BY_SHOTS", "by shots", (int, "[from this many shots, [KEY, VALUE, ...]]", is_pairs)
    )
    by_dataset: Sequence = fills([], ".BY_DATASET", "by data set", (str, "[data set, [KEY, VALUE, ...]]", is_pairs))


@dataclass(frozen=True)
class DataOptions:
    """Images of a task, and the folder of their features."""

    root: str = in_folder("", "DATASET.ROOT", "folder of the data sets, or your own folder or CSV file (`--root`)")
    name: str = option(
        "", "DATASET.NAME", "data set of `--dataset-config-file`", allowed="[data sets](../guides/data.md#data-sets)"
    )
    shots: int = option(
        16,
        "DATASET.NUM_SHOTS",
        "number of training images per class (`--shots`)",
        allowed="at least 1, or -1 for all images",
        allows=lambda value: value == -1 or 1 <= value < 2**31,
    )
    shots_per_class: str = option(
        "",
        SHOTS_PER_CLASS,
        "[unequal numbers](../reference/protocol.md#unequal-numbers-of-images) of training images; the largest is "
        "`NUM_SHOTS`",
        allowed=f"empty, {ALLOWED}",
        allows=lambda value: not value or is_shots_per_class(value),
    )
    classes: str = option(
        "all",
        "DATASET.SUBSAMPLE_CLASSES",
        "classes of the run; `base`, `new`: first and second half",
        choices=("all", "base", "new"),
    )
    target_domains: Sequence[str] = strings(
        "DATASET.TARGET_DOMAINS",
        "further data sets with the same classes to test on (`--target-domains`)",
        allowed="data sets",
    )
    target_datasets: Sequence[str] = strings(
        "DATASET.TARGET_DATASETS",
        "further data sets with other classes to test on (`--target-datasets`)",
        allowed="data sets, `NAME:base`, `NAME:new`",
    )
    unlabelled: str = option(
        "",
        "DATASET.UNLABELLED",
        "[unlabelled images](../guides/unlabelled.md) to adapt to (`--unlabelled`); `pool`: the images that were not "
        "sampled; `test`: the test images (transductive)",
        allowed="`pool`, `test`, a folder, a CSV file, a feature bank",
    )
    skip_unreadable: bool = option(
        False,
        "DATASET.SKIP_UNREADABLE",
        "whether to skip unlabelled images that cannot be read (`--skip-unreadable`)",
        shapes_run=False,
    )
    strict: bool = option(
        False,
        "DATASET.STRICT",
        "whether one of your images that cannot be read stops a run (`--strict`); otherwise it is left out",
        shapes_run=False,
    )
    group_pattern: str = option(
        "",
        "DATASET.GROUP_PATTERN",
        "regular expression that finds the [group](../guides/groups.md) of an image in its path, such as "
        "`_(patient\\d+)_`; empty: groups of the data, if there are some",
        allowed="a regular expression with one group in parentheses",
        allows=lambda value: not value or is_group_pattern(value),
    )
    batch_size: int = option(256, "DATALOADER.TRAIN_X.BATCH_SIZE", "number of images per training step", least=1)
    features: str = option(
        "bank",
        ".FEATURES.MODE",
        "`bank`: encode every image once; `online`: encode every batch again with new augmentation",
        choices=("bank", "online"),
    )
    features_dir: str = in_folder("output/features", ".FEATURES.DIR", "folder of the encoded features; empty: memory")


@dataclass(frozen=True)
class BackboneOptions:
    """Frozen encoder, which defines resolution and normalisation. Dassl's defaults belong to another network."""

    name: str = option(
        "",
        "MODEL.BACKBONE.NAME",
        "image encoder of open_clip, transformers or timm (`--backbone`); `hegraph backbones --list` has names",
        allowed="[backbones](backbones.md)",
    )
    pretrained: str = option(
        "auto",
        "MODEL.BACKBONE.PRETRAINED",
        "weights of the encoder; `auto`: the included weights of the model, or OpenAI's",
        allowed="an open_clip tag, a file, `auto`",
    )
    precision: str = option(
        "auto",
        ".PREC",
        "[number format](backbones.md#precision) of the backbone; `auto`: `bf16` where it is fast, else `fp32`",
        choices=PRECISIONS,
    )
    input_size: Sequence[int] = of_backbone((), "INPUT.SIZE", "input resolution")
    mean: Sequence[float] = of_backbone([], "INPUT.PIXEL_MEAN", "mean of the colour channels")
    std: Sequence[float] = of_backbone([], "INPUT.PIXEL_STD", "standard deviation of the colour channels")


@dataclass(frozen=True)
class DasslOptions:
    """Keys of Dassl that have only one value."""

    version: int = option(1, "VERSION", "format version of Dassl (unused)")
    # Dassl's other value would select the model on test images of data sets without val images
    final_model: str = option("last_step", "TEST.FINAL_MODEL", "tested epoch", choices=("last_step",), shapes_run=False)
    test_split: str = option("test", "TEST.SPLIT", "tested split", choices=("test",), shapes_run=False)
    optimizer: str = option("adamw", "OPTIM.NAME", "optimizer", choices=("adamw",))
    schedule: str = option("cosine", "OPTIM.LR_SCHEDULER", "learning rate schedule, by epoch", choices=("cosine",))
    warmup: str = option("constant", "OPTIM.WARMUP_TYPE", "schedule of the warm-up", choices=("constant",))


@dataclass(frozen=True)
class Config:
    """A checked configuration.

    Attributes:
        values: The value of every key, also of the keys of another method.
        baseline: Declared options of the method `TRAINER.NAME`; None for HeGraphAdapter.
        method: Options of this method at the configured number of shots and data set, a frozen dataclass of
            `baselines`; None for HeGraphAdapter. `method_for` gives those of the images at hand.
    """

    run: RunOptions
    data: DataOptions
    backbone: BackboneOptions
    encoding: EncodingOptions
    model: ModelOptions
    training: TrainingOptions
    values: Mapping[str, Any]
    baseline: OptionGroup | None = None
    method: Any = None

    @classmethod
    def of(cls, values: Mapping[str, Any], baseline: OptionGroup | None = None) -> "Config":
        """Configuration of values that are allowed for their keys; UserError if they do not fit together.

        Args:
            values: Value of every key.
            baseline: Options of the method `TRAINER.NAME`; None for HeGraphAdapter.
        """
        shots = _shots(values)
        is_dataset = dataset_named(values["DATASET.NAME"])
        parts = {name: with_options(holder, values, shots, is_dataset) for name, holder in PARTS.items()}
        if parts["model"].variant == "training_free":
            free = with_options(TrainingFreeOptions, values, shots, is_dataset)
            parts["model"] = replace(parts["model"], closed_form=ClosedFormOptions(free.kappa, free.rho, free.omega))
        method = None if baseline is None else baseline.for_task(values, shots, is_dataset)
        return cls(**parts, values=values, baseline=baseline, method=method)

    def method_for(self, dataset: str, shots: int) -> Any:
        """Options of the baseline for a task, as a frozen dataclass; None for HeGraphAdapter.

        Args:
            dataset: Name of the data set, which a feature bank may know better than the configuration.
            shots: Training images of a class, with unequal numbers their rounded mean.
        """
        if self.baseline is None:
            return None
        return self.baseline.for_task(self.values, shots, dataset_named(dataset))


PART_NAMES = ("run", "data", "backbone", "encoding", "model", "training")
PARTS = {name: part for name, part in get_type_hints(Config).items() if name in PART_NAMES}
HOLDERS = (*PARTS.values(), DasslOptions, TrainingFreeOptions)
OPTIONS = {declared.key: declared for holder in HOLDERS for declared in options_of(holder)}
# Pattern of a configuration key: an option without a dot, or names in capitals with dots between them
KEY_PATTERN = re.compile("|".join([*(key for key in OPTIONS if "." not in key), r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)+"]))
FILLABLE = tuple(key for key, declared in OPTIONS.items() if declared.filled)
WEIGHTS, SUBSAMPLE = "MODEL.BACKBONE.PRETRAINED", "DATASET.SUBSAMPLE_CLASSES"
DECODE = "INPUT.DECODE"  # our key among keys of Dassl, which ignores it
WEIGHTS_IN_DASSL = f"{NODE}.PRETRAINED"  # Dassl has a boolean under the name of `WEIGHTS`
BACKBONE_KEYS = tuple(declared.key for declared in options_of(BackboneOptions) if declared.key.startswith("INPUT."))


def _shots(values: Mapping[str, Any]) -> float:
    """Return the number of shots whose rows apply: with unequal numbers, their rounded mean."""
    if text := values[SHOTS_PER_CLASS]:
        return round(ShotsPerClass.parse(text).mean)
    return math.inf if values["DATASET.NUM_SHOTS"] == -1 else values["DATASET.NUM_SHOTS"]


def default_values() -> dict[str, Any]:
    """Return a new dict of all keys with their defaults."""
    return {key: deepcopy(declared.default) for key, declared in OPTIONS.items()}


def dataset_named(name: str) -> Callable[[str], bool]:
    """Return the function that tells whether another name or alias is a data set of this name."""
    canonical = canonical_name(name)
    return lambda other: other not in EVERY_DATASET and canonical_name(other) == canonical


def matching_rows(values: Mapping[str, Any]) -> list[list]:
    """Return the lists of pairs in BY_DATASET and BY_SHOTS that apply to a configuration, by falling priority."""
    shots = _shots(values)
    by_dataset = rows_for(values[f"{NODE}.BY_DATASET"], shots, dataset_named(values["DATASET.NAME"]))
    by_shots = rows_for(values[f"{NODE}.BY_SHOTS"], shots)
    return by_dataset + by_shots[:1]


def pairs_of(words: Sequence) -> list[tuple[Any, Any]]:
    """Split a list KEY VALUE KEY VALUE ... into pairs; UserError if the last key has no value."""
    if len(words) % 2:
        raise UserError(f"expected KEY VALUE pairs, got {' '.join(map(str, words))!r}: the last key has no value")
    return list(zip(words[0::2], words[1::2]))


def split_at_key(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate the values of a flag from the KEY VALUE pairs behind them, which argparse assigns to the flag as well.

    Returns:
        The words before the first configuration key, and the rest.
    """
    at = next((n for n, word in enumerate(words) if KEY_PATTERN.fullmatch(word)), len(words))
    return list(words[:at]), list(words[at:])


def is_filled(cfg: Config, key: str) -> bool:
    """Whether a key has the value that BY_DATASET or BY_SHOTS fills in."""
    rows = [dict(pairs_of(pairs)) for pairs in matching_rows(cfg.values)]
    fills = [row[key] for row in rows if key in row]
    return bool(fills) and cfg.values.get(key) == fills[0]


# Dassl's configuration


def extend_cfg(cfg: CfgNode) -> None:
    """Add the keys below `TRAINER.HEGRAPHADAPTER`, INPUT.DECODE, and CoOp's SUBSAMPLE_CLASSES where it is missing."""
    for key, value in default_values().items():
        if key.startswith(f"{NODE}."):
            set_key(cfg, key, value)
    set_key(cfg, WEIGHTS_IN_DASSL, OPTIONS[WEIGHTS].default)
    set_key(cfg, DECODE, OPTIONS[DECODE].default)
    if "SUBSAMPLE_CLASSES" not in cfg.DATASET:
        set_key(cfg, SUBSAMPLE, OPTIONS[SUBSAMPLE].default)


def set_key(cfg: CfgNode, key: str, value: Any) -> None:
    """Set a key of a configuration tree, and create its groups if they are missing."""
    *groups, name = key.split(".")
    for group in groups:
        cfg = cfg.setdefault(group, CfgNode())
    cfg[name] = value
