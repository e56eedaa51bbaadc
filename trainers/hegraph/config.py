"""Every configuration key: default, meaning, allowed values.

The keys outside `TRAINER.HEGRAPHADAPTER` are a subset of Dassl's and CoOp's with the same names and types, so one YAML
file loads in both hosts; only `MODEL.BACKBONE.PRETRAINED` names weights here and is a yes or no there. The defaults are
the recipe of `configs/trainers/HeGraphAdapter/*.yaml`; how they were chosen is in README.md.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import math
from pathlib import Path

import yaml
from yacs.config import CfgNode as CN

from .utils.errors import UserError, unknown
from .utils.shipped import DATA_SET, METHOD, find_config_file

VARIANTS = ("base", "T-N", "T-P", "T", "full")

CHOICES = {
    "TRAINER.HEGRAPHADAPTER.VARIANT": VARIANTS,
    "TRAINER.HEGRAPHADAPTER.ACTIVATION": ("tanh", "relu", "identity"),
    "TRAINER.HEGRAPHADAPTER.WEIGHT_PER": ("target", "relation"),
    "TRAINER.HEGRAPHADAPTER.WEIGHT_INIT": ("identity", "xavier", "zero"),
    "TRAINER.HEGRAPHADAPTER.FEATURES.MODE": ("bank", "online"),
    "TRAINER.HEGRAPHADAPTER.PROMPTS.SOURCE": ("auto", "templates", "descriptions", "both"),
    "TRAINER.HEGRAPHADAPTER.PREC": ("fp32", "fp16", "amp"),
    "DATASET.SUBSAMPLE_CLASSES": ("all", "base", "new"),
    "TRAINER.HEGRAPHADAPTER.SELECT_ON": ("last_step", "val"),
    "OPTIM.NAME": ("adamw",),
    "OPTIM.LR_SCHEDULER": ("cosine",),
    "OPTIM.WARMUP_TYPE": ("constant",),
    "INPUT.INTERPOLATION": ("bicubic", "bilinear"),
    # Dassl's other values would select on test: where there is no val split, it scores test in its place
    "TEST.FINAL_MODEL": ("last_step",),
    "TEST.SPLIT": ("test",),
}
# The backbone says what they are. Dassl's defaults of them are those of another network.
OF_THE_BACKBONE = ("INPUT.SIZE", "INPUT.PIXEL_MEAN", "INPUT.PIXEL_STD")
# Keys that may be left open, and are then filled from BY_DATASET and BY_SHOTS. Open is a value, so that a configuration
# that Dassl has merged and frozen can be filled as well: what anybody set, in a file or on the command line, stays.
OPEN = -1
FILLABLE = ("OPTIM.LR", "OPTIM.MAX_EPOCH", "TRAINER.HEGRAPHADAPTER.MIN_STEPS", "TRAINER.HEGRAPHADAPTER.VISUAL_LR")
# Few shots overfit in few steps. At one shot, leaving out an image's own key leaves its class without any, so that the
# visual loss can teach little. Chosen on validation data; README.md says how.
BY_SHOTS = tuple(
    (shots, ["OPTIM.LR", lr, "TRAINER.HEGRAPHADAPTER.MIN_STEPS", steps, "TRAINER.HEGRAPHADAPTER.VISUAL_LR", visual_lr])
    for shots, lr, steps, visual_lr in (
        (1, 0.0005, 30, 0.002),
        (2, 0.0005, 120, 0.02),
        (4, 0.0007, 160, 0.02),
        (8, 0.0015, 140, 0.02),
        (16, 0.003, 100, 0.02),
    )
)
TRANSFORMS = ("random_resized_crop", "random_flip", "normalize")


def get_cfg_default() -> CN:
    """The keys we share with Dassl (same names and types) and ours."""
    cfg = CN()
    cfg.VERSION = 1
    cfg.OUTPUT_DIR = "./output"
    cfg.SEED = 1  # 0 is a seed; below 0: unseeded, drawn and recorded
    cfg.USE_CUDA = True
    cfg.RESUME = ""  # folder of an interrupted run to go on from; OUTPUT_DIR is looked at anyway

    cfg.INPUT = CN()
    cfg.INPUT.INTERPOLATION = "bicubic"  # of a random resized crop
    # The backbone's own resolution and normalisation are used. These may say the same, but nothing else.
    cfg.INPUT.SIZE = ()
    cfg.INPUT.PIXEL_MEAN = []
    cfg.INPUT.PIXEL_STD = []
    cfg.INPUT.TRANSFORMS = ("random_resized_crop", "random_flip", "normalize")  # of training images
    cfg.INPUT.RRCROP_SCALE = (0.08, 1.0)  # area kept by a random resized crop

    cfg.DATASET = CN()
    cfg.DATASET.ROOT = ""
    cfg.DATASET.NAME = ""
    cfg.DATASET.NUM_SHOTS = 16  # training images per class; -1: all
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"  # all; base: the first half of the classes; new: the rest
    # What was trained here is tested on these as well: data sets with the same classes or some of them ...
    cfg.DATASET.TARGET_DOMAINS = ()
    cfg.DATASET.TARGET_DATASETS = ()  # ... and with other classes, NAME or NAME:base or NAME:new

    cfg.DATALOADER = CN()
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.TRAIN_X = CN()
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 256
    cfg.DATALOADER.TEST = CN()
    cfg.DATALOADER.TEST.BATCH_SIZE = 256

    cfg.MODEL = CN()
    cfg.MODEL.BACKBONE = CN()
    cfg.MODEL.BACKBONE.NAME = ""  # an open_clip model name
    cfg.MODEL.BACKBONE.PRETRAINED = "auto"  # an open_clip tag or a weights file; auto: the model's own, else OpenAI's

    cfg.OPTIM = CN()
    cfg.OPTIM.NAME = "adamw"
    cfg.OPTIM.LR = float(OPEN)  # by shots; at another feature width than LR_WIDTH it is scaled
    cfg.OPTIM.WEIGHT_DECAY = 0.01
    cfg.OPTIM.LR_SCHEDULER = "cosine"
    cfg.OPTIM.MAX_EPOCH = 15
    cfg.OPTIM.WARMUP_EPOCH = 1  # 0 or below: none
    cfg.OPTIM.WARMUP_TYPE = "constant"
    cfg.OPTIM.WARMUP_CONS_LR = 1e-5

    cfg.TRAIN = CN()
    cfg.TRAIN.CHECKPOINT_FREQ = 0  # epochs between checkpoints; 0: whenever 10 s have passed
    cfg.TRAIN.PRINT_FREQ = 5

    cfg.TEST = CN()
    cfg.TEST.FINAL_MODEL = "last_step"
    cfg.TEST.SPLIT = "test"

    cfg.TRAINER = CN()
    cfg.TRAINER.NAME = "HeGraphAdapter"
    extend_cfg(cfg)
    return cfg


def extend_cfg(cfg: CN) -> None:
    """Adds `cfg.TRAINER.HEGRAPHADAPTER` and what else Dassl lacks; its and CoOp's trainers see no difference."""
    cfg.MODEL.BACKBONE.PRETRAINED = "auto"  # Dassl has True here, and asks only whether it is true
    if "SUBSAMPLE_CLASSES" not in cfg.DATASET:
        cfg.DATASET.SUBSAMPLE_CLASSES = "all"
    if "TARGET_DATASETS" not in cfg.DATASET:
        cfg.DATASET.TARGET_DATASETS = ()

    node = cfg.TRAINER.HEGRAPHADAPTER = CN()
    node.VARIANT = "full"  # base, T-N, T-P, T, full: the rows of the paper's Table 2

    # Meta-path weights (Eq. 2 and 4)
    node.ALPHA_PP = 0.06  # positive -> positive
    node.ALPHA_VP = 0.24  # visual -> positive
    node.ALPHA_NP = 0.2  # updated negative -> positive, in training
    node.ALPHA_NP_TEST = 0.1  # the same at test time
    node.BETA_PN = 0.1  # positive -> negative
    node.BETA_VN = 0.1  # visual -> negative
    # A relation of weight 0 is left out, whatever ALPHA_NP_TEST or LEARN_METAPATH say
    node.LEARN_METAPATH = False  # train them (Table 3, last column); ALPHA_NP_TEST is then unused

    # The layer
    node.ACTIVATION = "tanh"  # tanh, relu, identity
    node.BIAS = True  # a trainable bias per class and relation
    node.WEIGHT_PER = "target"  # one W per target node type, or one per relation
    node.WEIGHT_INIT = "identity"  # identity, xavier, zero
    # OPTIM.LR is that of this feature width; at width d it is OPTIM.LR * sqrt(LR_WIDTH / d): AdamW moves each entry of
    # a feature by about the rate, which turns a unit vector by sqrt(d) times as much. 0: OPTIM.LR at any width
    node.LR_WIDTH = 512
    node.WEIGHT_LR_MULT = 0.1  # learning rate of W over OPTIM.LR (the biases')
    node.VISUAL_LR = float(OPEN)  # learning rate of the visual relation; by shots

    # The classifiers (Eq. 7-9)
    node.GAMMA = 1.0  # visual bias into the cached features
    node.BETA_C = 1.0  # sharpness of the cache affinities
    node.ALPHA_C = 8.0  # visual logits in the prediction
    node.LAMBDA = 1.0  # visual loss in the total
    node.LOSS_SCALE = 100.0  # scale of the visual logits inside the visual loss
    node.LEAVE_ONE_OUT = True  # in training, an image does not match its own cached feature

    # How long: MAX_EPOCH epochs, but at least so many steps (small sets have few steps per epoch)
    node.MIN_STEPS = OPEN  # by shots
    # What fills the keys that are left at -1 (OPTIM.LR, OPTIM.MAX_EPOCH, MIN_STEPS, VISUAL_LR), as rows
    # [data set, [KEY, VALUE, ...]] and [from this many shots, [KEY, VALUE, ...]]. The first that has the key fills it:
    # the row of the data set, that of data set "*", the last row with at most the run's shots.
    node.BY_DATASET = []
    node.BY_SHOTS = [[shots, list(pairs)] for shots, pairs in BY_SHOTS]

    # last_step: nothing is chosen. val: the values of SELECT, rows [KEY, [value, ...]], that are best on the few-shot
    # val split, all of them trained; never on test
    node.SELECT_ON = "last_step"
    node.SELECT = [["TRAINER.HEGRAPHADAPTER.ALPHA_C", [2.0, 4.0, 8.0, 16.0]]]

    node.PREC = "fp32"  # of the backbone on a GPU: fp32, fp16, amp; on the CPU it is fp32
    node.FEATURES = CN()
    node.FEATURES.MODE = "bank"  # bank: encode once; online: encode every batch
    node.FEATURES.VIEWS = 10  # augmented views per training image
    node.FEATURES.DIR = "output/features"  # where encoded features are kept

    node.PROMPTS = CN()
    node.PROMPTS.SOURCE = "auto"  # templates, descriptions, both; auto: both where descriptions ship for the data set
    node.PROMPTS.TEMPLATES = []  # positive templates with one {}; []: the data set's own
    node.PROMPTS.NEGATIVE_TEMPLATES = []  # negative templates; []: the data set's own
    node.PROMPTS.DESCRIPTIONS = ""  # a JSON file {class name: [sentence, ...]}, as CuPL's; "": the one that ships


def load_cfg(
    dataset_file: str = "",
    config_file: str = "",
    flags: dict | None = None,
    opts: list | None = None,
    method: tuple[str, dict] | None = None,
    base: CN | None = None,
) -> CN:
    """Layers a configuration as CoOp does: defaults, data set file, method file, flags, KEY VALUE pairs.

    Args:
        dataset_file: YAML of the data set: a path, or the name of a file that ships, such as "digits"; or "".
        config_file: YAML of the method: a path, or the name of a file that ships, such as "mini"; or "".
        flags: Key -> value from command-line flags.
        opts: Alternating keys and values; they win over everything.
        method: Name and default options of another method, which become `cfg.TRAINER.<NAME>`.
        base: The defaults, if not ours alone: in CoOp, those of `within_dassl`. It is changed and returned.

    Returns:
        The checked, frozen configuration.

    Raises:
        UserError: Unreadable file, unknown key (the nearest is named), value of the wrong type or range.
    """
    cfg = get_cfg_default() if base is None else base
    if method:
        add_method(cfg, *method)
    for kind, file in ((DATA_SET, dataset_file), (METHOD, config_file)):
        if file:
            _merge_file(cfg, find_config_file(kind, file))
    opts = list(opts or [])
    if len(opts) % 2:
        raise UserError(f"options come as KEY VALUE pairs, but {' '.join(map(str, opts))!r} has no value at its end")
    for key, value in (flags or {}).items():
        opts[:0] = [key, value]

    _merge_pairs(cfg, opts)
    return _complete(cfg)


def add_method(cfg: CN, name: str, defaults: dict) -> None:
    """Adds the options of another method as `cfg.TRAINER.<NAME>`, unless CoOp or Dassl has such a node."""
    if name.upper() not in cfg.TRAINER:
        cfg.TRAINER[name.upper()] = CN(copy.deepcopy(defaults))


def with_values(cfg: CN, pairs: list) -> CN:
    """A frozen copy with other values: alternating keys and values.

    Raises:
        UserError: As `load_cfg`.
    """
    changed = cfg.clone()
    changed.defrost()
    _merge_pairs(changed, pairs)
    check_cfg(changed)
    changed.freeze()
    return changed


def within_dassl(dassl_cfg: CN) -> CN:
    """Dassl's and CoOp's configuration tree with our keys in it, at our defaults; it is changed and returned."""
    extend_cfg(dassl_cfg)
    for key, value in _flatten(get_cfg_default()):
        if key not in OF_THE_BACKBONE:
            _merge_pairs(dassl_cfg, [key, value])
    return dassl_cfg


def from_dassl(dassl_cfg: CN, method: tuple[str, dict] | None = None) -> CN:
    """Our keys out of a configuration that Dassl has merged.

    Args:
        dassl_cfg: Dassl's defaults, `extend_cfg`, files, options.
        method: As of `load_cfg`.

    Raises:
        UserError: As `load_cfg`.
    """
    cfg = get_cfg_default()
    if method:
        add_method(cfg, *method)
    for key, _ in _flatten(cfg):
        if key not in OF_THE_BACKBONE:
            _merge_pairs(cfg, [key, _get(dassl_cfg, key)])
    return _complete(cfg)


def check_cfg(cfg: CN) -> None:
    """Checks ranges and names.

    Raises:
        UserError: With the key, the value and what is allowed.
    """
    for key, allowed in CHOICES.items():
        value = _get(cfg, key)
        if value not in allowed:
            raise unknown(f"value of {key}", str(value), allowed)
    for name in cfg.INPUT.TRANSFORMS:
        if name not in TRANSFORMS:
            raise unknown("INPUT.TRANSFORMS", str(name), TRANSFORMS)
    positive = ("DATALOADER.TRAIN_X.BATCH_SIZE", "DATALOADER.TEST.BATCH_SIZE", "OPTIM.MAX_EPOCH")
    for key in (*positive, "TRAIN.PRINT_FREQ", "TRAINER.HEGRAPHADAPTER.FEATURES.VIEWS"):
        if _get(cfg, key) < 1:
            raise UserError(f"{key} must be at least 1, got {_get(cfg, key)}")
    not_negative = ("OPTIM.LR", "OPTIM.WEIGHT_DECAY", "OPTIM.WARMUP_CONS_LR", "TRAIN.CHECKPOINT_FREQ")
    ours = ("LAMBDA", "BETA_C", "MIN_STEPS", "LR_WIDTH", "WEIGHT_LR_MULT", "VISUAL_LR", "LOSS_SCALE")
    for key in (*not_negative, *(f"TRAINER.HEGRAPHADAPTER.{name}" for name in ours)):
        if _get(cfg, key) < 0:
            raise UserError(f"{key} must not be negative, got {_get(cfg, key)}")
    for key, value in _flatten(cfg):
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{key} must be a finite number, got {value}")
    if cfg.SEED >= 2**32:
        raise UserError(f"SEED must be below 2**32, got {cfg.SEED}")
    _check_rows("SELECT", cfg.TRAINER.HEGRAPHADAPTER.SELECT, str, even=False)
    scale = cfg.INPUT.RRCROP_SCALE
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise UserError(f"INPUT.RRCROP_SCALE must be two fractions, least and most, such as (0.08, 1.0), got {scale}")
    for name in ("TEMPLATES", "NEGATIVE_TEMPLATES"):
        templates = cfg.TRAINER.HEGRAPHADAPTER.PROMPTS[name]
        if not all(isinstance(template, str) for template in templates):
            raise UserError(f"TRAINER.HEGRAPHADAPTER.PROMPTS.{name} must be a list of strings, got {templates}")


def _merge_file(cfg: CN, path: Path) -> None:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError) as error:
        siblings = [f.name for f in path.parent.glob("*.yaml")]
        if siblings and not path.exists():
            raise unknown(f"configuration in {path.parent}:", path.name, siblings) from error
        raise UserError(f"cannot read the configuration {path}: {getattr(error, 'strerror', 'not text')}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold KEY: VALUE lines, got {tree!r}")
    pairs = []
    for key, value in _flatten(tree):
        pairs += [key, value]
    try:
        _merge_pairs(cfg, pairs)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _merge_pairs(cfg: CN, pairs: list) -> None:
    known = dict(_flatten(cfg))
    for key, value in zip(pairs[0::2], pairs[1::2]):
        if key not in known:
            raise unknown("configuration key", str(key), known)
        node, name = cfg, str(key).split(".")
        for part in name[:-1]:
            node = node[part]
        node[name[-1]] = _coerce(str(key), value, known[key])


def _coerce(key: str, value: object, default: object) -> object:
    """Gives `value` the type of `default`: text becomes a literal, an int a float, a list a tuple."""
    if isinstance(value, str) and not isinstance(default, str):
        with contextlib.suppress(ValueError, SyntaxError):  # then its type is wrong, which is said below
            value = ast.literal_eval(value)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(default, str) and isinstance(value, (int, float)):
        value = str(value)
    if isinstance(default, tuple) and isinstance(value, list):
        value = tuple(value)
    if isinstance(default, list) and isinstance(value, tuple):
        value = list(value)
    if type(value) is not type(default):
        raise UserError(f"{key} must be of type {type(default).__name__} such as {default!r}, got {value!r}")
    return value


def _complete(cfg: CN) -> CN:
    """Fills the open keys, checks all and freezes."""
    if cfg.DATASET.NUM_SHOTS != -1 and cfg.DATASET.NUM_SHOTS < 1:
        raise UserError(f"DATASET.NUM_SHOTS must be at least 1, or -1 for all images, got {cfg.DATASET.NUM_SHOTS}")
    for pairs in _matching_rows(cfg):
        for key, value in zip(pairs[0::2], pairs[1::2]):
            if key not in FILLABLE:
                raise UserError(f"BY_SHOTS and BY_DATASET fill {', '.join(FILLABLE)}, not {key}; set that directly")
            if _get(cfg, key) == OPEN:
                _merge_pairs(cfg, [key, value])
    for key in FILLABLE:
        if _get(cfg, key) == OPEN:
            raise UserError(f"{key} is {OPEN}, left to BY_DATASET and BY_SHOTS, and no row of them sets it; set it")
    check_cfg(cfg)
    cfg.freeze()
    return cfg


def _matching_rows(cfg: CN) -> list[list]:
    """The pairs of BY_DATASET and BY_SHOTS that hold for this run, those that come first win."""
    node = cfg.TRAINER.HEGRAPHADAPTER
    _check_rows("BY_DATASET", node.BY_DATASET, str)
    _check_rows("BY_SHOTS", node.BY_SHOTS, int)
    by_dataset = [pairs for wanted in (cfg.DATASET.NAME, "*") for name, pairs in node.BY_DATASET if name == wanted]
    shots = math.inf if cfg.DATASET.NUM_SHOTS == -1 else cfg.DATASET.NUM_SHOTS
    by_shots = [pairs for least, pairs in sorted(node.BY_SHOTS) if least <= shots]
    return by_dataset + by_shots[-1:]


def _check_rows(key: str, rows: list, kind: type, even: bool = True) -> None:
    for row in rows:
        pair = isinstance(row, (list, tuple)) and len(row) == 2
        listed = pair and isinstance(row[0], kind) and isinstance(row[1], (list, tuple)) and len(row[1]) > 0
        if not listed or (even and len(row[1]) % 2):
            form = "[KEY, VALUE, ...]" if even else "[VALUE, ...]"
            raise UserError(f"a row of {key} must be [{kind.__name__}, {form}], got {row!r}")


def _flatten(tree: dict, prefix: str = "") -> list[tuple[str, object]]:
    flat = []
    for key, value in tree.items():
        if isinstance(value, dict):
            flat += _flatten(value, f"{prefix}{key}.")
        else:
            flat.append((f"{prefix}{key}", value))
    return flat


def _get(cfg: CN, key: str) -> object:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg
