"""Reads configurations: layers files, flags and KEY VALUE pairs over the defaults of `config.py`, and checks them."""

from __future__ import annotations

import ast
import contextlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from .backbones.identity import canonical_name
from .config import FILLABLE, OF_THE_BACKBONE, OPTIONS, Config, default_values, matching_rows, pairs_of
from .method.options import UNTRAINED, ModelOptions, TrainingFreeOptions
from .training.options import TrainingOptions
from .utils.errors import UserError, shown, unknown
from .utils.option import LARGEST_FLOAT, NODE, OPEN, OUR_METHOD, Option, options_of
from .utils.reading import parse_json, read_yaml, validate

Values = dict[str, Any]  # key -> value
SELECTABLE = {
    declared.key for part in (ModelOptions, TrainingFreeOptions, TrainingOptions) for declared in options_of(part)
}

BACKBONE_NAME = "MODEL.BACKBONE.NAME"
DATA_SET, METHOD = "data set", "method"  # what a configuration file is about
# Not resolved: with `install.sh --link` the package is a link, and the folder is that of the CoOp checkout
_PACKAGE = Path(__file__).parent
CONFIGS = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parents[1] / "configs"  # of a wheel
FOLDERS = {DATA_SET: CONFIGS / "datasets", METHOD: CONFIGS / "trainers" / "HeGraphAdapter"}


def load_cfg(
    dataset_file: str = "",
    config_file: str = "",
    flags: Mapping[str, object] | None = None,
    opts: list | None = None,
    method: tuple[str, dict] | None = None,
    *,
    known: Mapping[str, Any] | None = None,
) -> Config:
    """Layers a configuration as CoOp does: defaults, data set file, method file, flags, KEY VALUE pairs.

    Args:
        dataset_file: YAML of the data set: a path, or the name of a file that ships, such as "digits"; or "".
        config_file: YAML of the method, likewise.
        flags: Key -> value from command-line flags.
        opts: Alternating keys and values; they win over everything.
        method: Name and default options of another method, whose keys are below `TRAINER.<NAME>`.
        known: The keys that may be set, with their defaults; None for ours, and else these may be more.

    Raises:
        UserError: Unreadable file, unknown key (the nearest is named), value of the wrong type or range.
    """
    values = dict(known or default_values())
    values |= of_method(method, values)
    for kind, file in ((DATA_SET, dataset_file), (METHOD, config_file)):
        if file:
            _merge_file(values, find_config_file(kind, file))
    opts = validate(list, [] if opts is None else opts, "options, a list [KEY, VALUE, ...]", convert=True)
    flags = validate(dict, {} if flags is None else flags, "flags, a dict from keys to values", convert=True)
    _merge(values, [*flags.items(), *pairs_of(opts)])
    name = method[0] if method else OUR_METHOD
    if values["TRAINER.NAME"] != name:  # whose options are not here
        raise UserError(
            f"TRAINER.NAME is {values['TRAINER.NAME']!r:.80}, but this is a run of {name}; leave TRAINER.NAME out "
            "(--trainer says the method)"
        )
    return _complete(values)


def find_config_file(kind: str, given: str | Path) -> Path:
    """The file that a user means by a path or by the name of a file that ships for this kind, such as `mini`.

    A file wins over a name, and a path to nothing is returned as it came. UserError for a name that no file has.
    """
    path = Path(str(given))
    if path.is_file() or path.suffix or len(path.parts) > 1:
        return path
    shipped = {file.stem: file for file in FOLDERS[kind].glob("*.yaml")}
    if str(given) not in shipped:
        raise unknown(f"{kind} configuration", str(given), shipped)
    return shipped[str(given)]


def with_values(cfg: Config, others: Values) -> Config:
    """A configuration with other values of some keys; errors as of `load_cfg`."""
    values = dict(cfg.values)
    _merge(values, others.items())
    return _checked(values)


def of_method(method: tuple[str, dict] | None, known: Mapping[str, object]) -> Values:
    """The keys of another method with their defaults; none where CoOp or Dassl has such a group of keys."""
    if method is None or any(key.startswith(f"TRAINER.{method[0].upper()}.") for key in known):
        return {}
    return {f"TRAINER.{method[0].upper()}.{key}": value for key, value in method[1].items()}


def from_dassl(dassl_cfg: CfgNode, method: tuple[str, dict] | None = None) -> Config:
    """Takes our keys out of a configuration that Dassl has merged; `method` and errors as of `load_cfg`."""
    theirs = flatten(dassl_cfg)
    values = default_values() | of_method(method, {})
    _merge(values, [(key, theirs[key]) for key in values if key not in OF_THE_BACKBONE])
    return _complete(values)


def flatten(tree: Mapping, prefix: str = "") -> Values:
    """A tree of keys as one level, such as {"OPTIM.LR": 0.1}."""
    flat: Values = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _merge_file(values: Values, path: Path) -> None:
    tree = read_yaml(path, "a configuration")
    try:
        _merge(values, flatten(validate(dict, {} if tree is None else tree, "KEY: VALUE lines")).items())
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _merge(values: Values, pairs: Iterable[tuple[object, object]]) -> None:
    """Sets keys, each of which has to be there, and keeps its type."""
    for name, value in pairs:
        key = str(name)
        if key not in values:
            raise unknown("configuration key", key, values)
        coerced = _coerce(key, value, values[key])
        values[key] = canonical_name(str(coerced)) if key == BACKBONE_NAME else coerced


def _coerce(key: str, value: object, default: object) -> object:
    """Gives `value` the type of `default`: text becomes a literal, an int a float, a list a tuple. Raises UserError if
    it has another type, or a record could not hold it.
    """
    if isinstance(value, str) and not isinstance(default, str):
        # If it is no literal, or one that is nested too deeply, its type is wrong, which is said below
        with contextlib.suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            value = ast.literal_eval(value)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) <= LARGEST_FLOAT else math.inf
    if isinstance(default, str) and isinstance(value, (int, float)):
        value = str(value)
    if isinstance(default, (tuple, list)) and isinstance(value, (tuple, list)):
        value = type(default)(value)
    if type(value) is not type(default):
        raise UserError(f"{key} must be of type {type(default).__name__} such as {default!r}, got {shown(value)}")
    if not isinstance(value, (int, float)) and not _is_plain(value):  # of bare numbers the ranges say more
        plain = "text in UTF-8 without NUL, finite numbers of at most 64 bits, and lists of them"
        raise UserError(f"{key} must hold {plain}, got {shown(value)}")
    return value


def _is_plain(value: object) -> bool:
    """Whether a value can stand in a record, as JSON in UTF-8, and be read there."""
    try:
        text = json.dumps(value)
        parse_json(text)
    except (TypeError, ValueError, RecursionError):  # a date, NaN, half of a character, a number of thousands of digits
        return False
    return "\\u0000" not in text


def _complete(values: Values) -> Config:
    """The configuration of values, once their open keys are filled from the rows that apply."""
    for key in ("DATASET.NUM_SHOTS", f"{NODE}.BY_DATASET", f"{NODE}.BY_SHOTS"):
        OPTIONS[key].check(values[key])
    for pairs in matching_rows(values):
        for key, value in pairs_of(pairs):
            if key not in FILLABLE:
                raise UserError(f"BY_SHOTS and BY_DATASET fill {', '.join(FILLABLE)}, not {key}; set that directly")
            if values[key] == OPEN:
                _merge(values, [(key, value)])
    for key in FILLABLE:
        if values[key] == OPEN:
            raise UserError(f"{key} is {OPEN}, left to BY_DATASET and BY_SHOTS, and no row of them sets it; set it")
    cfg = _checked(values)
    if cfg.run.select_on == "val":
        candidates(cfg)
    return cfg


def _checked(values: Values) -> Config:
    """The options of values; raises UserError for one out of range, and where a variant has nothing to train."""
    for key, value in values.items():
        OPTIONS.get(key, Option(key, value, "")).check(value)
    cfg = Config.of(values)
    options = cfg.model
    has_parameters = options.relations and (options.text_weights or options.bias or options.variant == "full")
    if options.variant not in UNTRAINED and not has_parameters:
        raise UserError(
            f"VARIANT {options.variant} has nothing to train: TEXT_W and BIAS are False, or its ALPHA_* are 0; set one "
            "of them, or VARIANT base"
        )
    return cfg


def candidates(cfg: Config) -> list[tuple[tuple, Config]]:
    """Every combination of the values of SELECT, the last row changing fastest, and the configuration with these.
    UserError if one is no configuration, or a key is no option of the adapter or of its training.
    """
    keys = [key for key, _ in cfg.run.select]
    combinations = itertools.product(*(values for _, values in cfg.run.select))
    found = [(values, with_values(cfg, dict(zip(keys, values)))) for values in combinations]
    if others := set(keys) - SELECTABLE:
        raise UserError(f"SELECT has {', '.join(sorted(others))}, which changes nothing in an adapter or its training")
    return found
