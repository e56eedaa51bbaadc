"""Reads configurations: layers files, flags and KEY VALUE pairs over the defaults of `config.py`, and checks the
result.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from yacs.config import CfgNode as CN

from .config import (
    CHOICES,
    FILLABLE,
    OF_THE_BACKBONE,
    OPEN,
    REMOVED,
    TRANSFORMS,
    extend_cfg,
    get_cfg_default,
    model_options,
    training_options,
    values_at_shots,
)
from .method.options import UNTRAINED
from .method.relations import REFINED, RELATIONS, relations_in_use
from .utils.errors import UserError, shortened, unknown
from .utils.reading import parse_json, read_yaml
from .utils.rows import check_rows, is_list, is_list_of_pairs, is_positive
from .utils.shipped import DATA_SET, METHOD, find_config_file

LARGEST_FLOAT = 3.4e38  # of 32 bits
LARGEST_INT = 2**31


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
        base: The defaults to start from, which are changed and returned: in CoOp, those of `within_dassl`. None starts
            from `get_cfg_default`.

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
    name = method[0] if method else "HeGraphAdapter"
    if cfg.TRAINER.NAME != name:  # whose options are not here
        raise UserError(
            f"TRAINER.NAME is {cfg.TRAINER.NAME!r:.80}, but this is a run of {name}; leave TRAINER.NAME out (--trainer "
            "says the method)"
        )
    return _complete(cfg)


def is_filled(cfg: CN, key: str) -> bool:
    """Whether a key has the value that BY_DATASET and BY_SHOTS give it where nobody sets it."""
    rows = [dict(zip(pairs[0::2], pairs[1::2])) for pairs in _matching_rows(cfg)]
    values = [row[key] for row in rows if key in row]
    return bool(values) and _get(cfg, key) == values[0]


def add_method(cfg: CN, name: str, defaults: dict) -> None:
    """Adds the options of another method as `cfg.TRAINER.<NAME>`, unless CoOp or Dassl has such a node."""
    if name.upper() not in cfg.TRAINER:
        cfg.TRAINER[name.upper()] = CN(copy.deepcopy(defaults))


def with_values(cfg: CN, pairs: list) -> CN:
    """A frozen copy of a configuration with other values, given as alternating keys and values.

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
    """Adds our keys, at our defaults, to a configuration tree of Dassl's and CoOp's, which is changed and returned."""
    extend_cfg(dassl_cfg)
    for key, value in _flatten(get_cfg_default()):
        if key not in OF_THE_BACKBONE:
            _merge_pairs(dassl_cfg, [key, value])
    return dassl_cfg


def from_dassl(dassl_cfg: CN, method: tuple[str, dict] | None = None) -> CN:
    """Takes our keys out of a configuration that Dassl has merged.

    Args:
        dassl_cfg: Dassl's defaults after `extend_cfg`, with files and options merged in.
        method: As in `load_cfg`.

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
    _check_names(cfg)
    _check_ranges(cfg)
    for name in ("FREE.KAPPA", "FREE.OMEGA", "WEAK_TEXT_LR_MULT"):
        rows = _get(cfg.TRAINER.HEGRAPHADAPTER, name)
        check_rows(name, rows, int, "[from this many shots, number]", is_positive)
        if not rows or min(row[0] for row in rows) > 1:
            raise UserError(f"TRAINER.HEGRAPHADAPTER.{name} must have a row from 1 shot on, got {rows}")
    check_rows("SELECT", cfg.TRAINER.HEGRAPHADAPTER.SELECT, str, "[str, [VALUE, ...]]", is_list)
    scale = cfg.INPUT.RRCROP_SCALE
    if len(scale) != 2 or not all(map(is_positive, scale)) or not scale[0] <= scale[1] <= 1:
        raise UserError(f"INPUT.RRCROP_SCALE must be two fractions, least and most, such as (0.08, 1.0), got {scale}")
    _check_trainable(cfg)


def _check_names(cfg: CN) -> None:
    for key, allowed in CHOICES.items():
        value = _get(cfg, key)
        if value not in allowed:
            raise unknown(f"value of {key}", str(value), allowed)
    for name in cfg.INPUT.TRANSFORMS:
        if name not in TRANSFORMS:
            raise unknown("INPUT.TRANSFORMS", str(name), TRANSFORMS)
    prompts = "TRAINER.HEGRAPHADAPTER.PROMPTS"
    of_strings = [f"{prompts}.{name}" for name in ("TEMPLATES", "NEGATIVE_TEMPLATES")]
    for key in (*of_strings, "DATASET.TARGET_DOMAINS", "DATASET.TARGET_DATASETS"):
        if not all(isinstance(entry, str) for entry in _get(cfg, key)):
            raise UserError(f"{key} must be a list of strings, got {_get(cfg, key)}")


def _check_ranges(cfg: CN) -> None:
    positive = ("DATALOADER.TRAIN_X.BATCH_SIZE", "DATALOADER.TEST.BATCH_SIZE", "OPTIM.MAX_EPOCH")
    for key in (*positive, "TRAIN.PRINT_FREQ", "TRAINER.HEGRAPHADAPTER.FEATURES.VIEWS"):
        if _get(cfg, key) < 1:
            raise UserError(f"{key} must be at least 1, got {_shown(_get(cfg, key))}")
    not_negative = ("OPTIM.LR", "OPTIM.WEIGHT_DECAY", "OPTIM.WARMUP_CONS_LR", "TRAIN.CHECKPOINT_FREQ")
    ours: tuple[str, ...] = ("LAMBDA", "BETA_C", "MIN_STEPS", "LR_WIDTH", "LR_TAU", "WEIGHT_LR_MULT", "VISUAL_LR")
    ours += ("LOSS_SCALE", "NOISE", "CLOSED_FORM.OMEGA")
    for key in (*not_negative, "DATALOADER.NUM_WORKERS", *(f"TRAINER.HEGRAPHADAPTER.{name}" for name in ours)):
        if _get(cfg, key) < 0:
            raise UserError(f"{key} must not be negative, got {_shown(_get(cfg, key))}")
    for key, value in _flatten(cfg):
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{key} must be a finite number, got {value}")
        if isinstance(value, float) and abs(value) > LARGEST_FLOAT:
            raise UserError(f"{key} must be a number of 32 bits, at most {LARGEST_FLOAT:.3g}, got {value}")
        if isinstance(value, int) and not -LARGEST_INT <= value < LARGEST_INT and key != "SEED":
            raise UserError(f"{key} must be below 2**31, and not below -2**31, got {_shown(value)}")
    if not -LARGEST_INT <= cfg.SEED < 2**32:
        raise UserError(f"SEED must be below 2**32, and not below -2**31, got {_shown(cfg.SEED)}")
    for key in ("FREE.RHO", "CLOSED_FORM.RHO", "CLOSED_FORM.KAPPA"):
        if not _get(cfg.TRAINER.HEGRAPHADAPTER, key) > 0:
            raise UserError(f"TRAINER.HEGRAPHADAPTER.{key} must be above 0")


def _not_plain(value: object) -> str:
    """What keeps a value from standing in a record, as JSON in UTF-8, and being read there; "" if nothing does."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
        parse_json(text)
    except UnicodeEncodeError:
        return "must be text in UTF-8"
    except (TypeError, RecursionError):  # such as a date or a set
        return "must hold numbers, text and lists of them"
    except ValueError:  # such as NaN, or a number of thousands of digits
        return "must hold finite numbers of at most 64 bits"
    return "must not hold the character NUL" if "\\u0000" in text else ""


def _shown(value: object) -> str:
    """A value as text; Python refuses to write numbers of thousands of digits."""
    try:
        return f"{value!r:.80}"
    except (ValueError, RecursionError):
        return f"a {type(value).__name__} that is too long to show"


def _check_trainable(cfg: CN) -> None:
    """Raises UserError where the meta-path weights leave a variant that is trained no message, and so no parameter."""
    options = model_options(cfg)
    if options.variant in UNTRAINED:
        return
    if not (options.text_weights or options.bias or options.has_cache):
        raise UserError(
            f"VARIANT {options.variant} with TEXT_W False and BIAS False has nothing to train; set one of them to True"
        )
    if relations_in_use(options.variant_metapath, options.has_cache, options.text_weights):
        return
    ones = replace(options, metapath=dict.fromkeys(options.metapath, 1.0)).variant_metapath
    used = [r.weight_key for r in RELATIONS if r.target == REFINED and ones[r.weight_key]]
    raise UserError(
        f"VARIANT {options.variant} with {' and '.join(f'{key} 0' for key in used)} passes no message, so there is "
        "nothing to train; give another weight, or VARIANT base"
    )


def _merge_file(cfg: CN, path: Path) -> None:
    siblings = [f.name for f in path.parent.glob("*.yaml")]
    if siblings and not path.exists():
        raise unknown(f"configuration in {path.parent}:", path.name, siblings)
    tree = read_yaml(path, "cannot read the configuration")
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold KEY: VALUE lines, got {_shown(tree)}")
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
        if str(key).startswith("--"):
            raise UserError(f"{shortened(str(key), 80)} stands behind a KEY VALUE pair; flags come before them")
        if key in REMOVED:
            if (now := REMOVED[key]) != _coerce(key, value, now):
                raise UserError(f"{key} is {now} in this version and cannot be set, got {_shown(value)}; leave it out")
            continue
        if key not in known:
            if group := [name for name in known if name.startswith(f"{key}.")]:
                raise UserError(
                    f"{key} is a group of keys such as {group[0]}, and takes no value itself, got {_shown(value)}"
                )
            ends = [name for name in known if name.endswith(f".{str(key).upper()}")]
            if len(ends) == 1:
                raise UserError(f"unknown configuration key {str(key)!r}; did you mean {ends[0]!r}?")
            raise unknown("configuration key", str(key), known)
        node, name = cfg, str(key).split(".")
        for part in name[:-1]:
            node = node[part]
        node[name[-1]] = _coerce(str(key), value, known[key])


def _coerce(key: str, value: object, default: object) -> object:
    """Gives `value` the type of `default`: text becomes a literal, an int a float, a list a tuple.

    Raises:
        UserError: If it has another type, or a record could not hold it.
    """
    if isinstance(value, str) and not isinstance(default, str):
        # If it is no literal, or one that is nested too deeply, its type is wrong, which is said below
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            value = ast.literal_eval(value)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) <= LARGEST_FLOAT else math.inf
    if isinstance(default, str) and isinstance(value, (int, float)):
        value = str(value)
    if isinstance(default, tuple) and isinstance(value, list):
        value = tuple(value)
    if isinstance(default, list) and isinstance(value, tuple):
        value = list(value)
    if type(value) is not type(default):
        raise UserError(f"{key} must be of type {type(default).__name__} such as {default!r}, got {_shown(value)}")
    if not isinstance(value, (int, float)) and (problem := _not_plain(value)):  # of bare numbers the ranges say more
        raise UserError(f"{key} {problem}, got {_shown(value)}")
    return value


def _complete(cfg: CN) -> CN:
    """Fills the open keys, checks all and freezes."""
    if (shots := cfg.DATASET.NUM_SHOTS) != -1 and shots < 1:
        raise UserError(f"DATASET.NUM_SHOTS must be at least 1, or -1 for all images, got {_shown(shots)}")
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
    if cfg.TRAINER.HEGRAPHADAPTER.SELECT_ON == "val":
        _check_select(cfg)
    cfg.freeze()
    return cfg


def _check_select(cfg: CN) -> None:
    """Checks that every candidate of SELECT is a configuration, and that each of its keys changes an option of the
    adapter or of its training. Whether that option matters beside the others is not asked.

    Raises:
        UserError: Otherwise; candidates that train the same adapter would be told apart by nothing but their order.
    """
    grid = cfg.TRAINER.HEGRAPHADAPTER.SELECT
    trained = {}  # the values of a candidate, by their places -> what its training depends on
    for places in itertools.product(*(range(len(values)) for _, values in grid)):
        candidate = with_values(cfg, [x for (key, values), at in zip(grid, places) for x in (key, values[at])])
        trained[places] = (model_options(candidate), training_options(candidate))
    for row, (key, values) in enumerate(grid):
        if all(value == values[0] for value in values):
            continue
        if all(options == trained[(*places[:row], 0, *places[row + 1 :])] for places, options in trained.items()):
            raise UserError(
                f"SELECT has {key}, which changes nothing in an adapter or its training, so nothing can be chosen; "
                "leave it out, or run once for each value"
            )


def _matching_rows(cfg: CN) -> list[list]:
    """The pairs of BY_DATASET and BY_SHOTS that apply to this run, those that win first."""
    node = cfg.TRAINER.HEGRAPHADAPTER
    check_rows("BY_DATASET", node.BY_DATASET, str, "[str, [KEY, VALUE, ...]]", is_list_of_pairs)
    check_rows("BY_SHOTS", node.BY_SHOTS, int, "[int, [KEY, VALUE, ...]]", is_list_of_pairs)
    by_dataset = [pairs for wanted in (cfg.DATASET.NAME, "*") for name, pairs in node.BY_DATASET if name == wanted]
    return by_dataset + values_at_shots(node.BY_SHOTS, cfg)[-1:]


def _flatten(tree: dict, prefix: str = "") -> list[tuple[str, object]]:
    flat = []
    for key, value in tree.items():
        if isinstance(value, dict):
            flat += _flatten(value, f"{prefix}{key}.")
        else:
            flat.append((f"{prefix}{key}", value))
    return flat


def _get(cfg: CN, key: str) -> Any:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg
