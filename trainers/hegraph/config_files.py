"""Read and check configurations: defaults of `config.py`, then files, flags and KEY VALUE pairs."""

import ast
import contextlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from .config import (
    BACKBONE_KEYS,
    FILLABLE,
    OPTIONS,
    WEIGHTS,
    WEIGHTS_IN_DASSL,
    Config,
    default_values,
    matching_rows,
    pairs_of,
)
from .datasets.shots import SHOTS_PER_CLASS, check_shots
from .features.backbones.identity import AUTO, canonical_name, default_weights
from .method.options import UNTRAINED, ModelOptions, TrainingFreeOptions
from .method.training.options import TrainingOptions
from .utils.errors import UserError, unknown
from .utils.option import LARGEST_FLOAT, NODE, OPEN, OUR_METHOD, Option, OptionGroup, options_of
from .utils.reading import parse_json, read_yaml, validate
from .utils.text import shown

Values = dict[str, Any]  # key -> value
SELECTABLE = {
    declared.key for part in (ModelOptions, TrainingFreeOptions, TrainingOptions) for declared in options_of(part)
}

BACKBONE_NAME = "MODEL.BACKBONE.NAME"
# Kinds of configuration files
DATA_SET = "data set"
METHOD = "method"
# Not resolved, because `install.sh --link` links the package into a CoOp checkout, which has the folder
_PACKAGE = Path(__file__).parent
CONFIGS = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parents[1] / "configs"  # of a wheel
FOLDERS = {DATA_SET: CONFIGS / "datasets", METHOD: CONFIGS / "trainers" / "HeGraphAdapter"}


def load_cfg(
    dataset_file: str = "",
    config_file: str = "",
    flags: Mapping[str, object] | None = None,
    opts: list | None = None,
    method: OptionGroup | None = None,
    *,
    known: Mapping[str, Any] | None = None,
) -> Config:
    """Load a configuration, as CoOp does: defaults, data set file, method file, flags, KEY VALUE pairs. Later ones win.

    Args:
        dataset_file: YAML file of the data set: a path, the name of a shipped file such as "digits", or "".
        config_file: YAML file of the method, likewise.
        flags: Key -> value from command-line flags.
        opts: Alternating keys and values.
        method: Options of a baseline (`baselines.method_options`); None for HeGraphAdapter.
        known: All allowed keys with their defaults; None: the keys of `config.py`.

    Raises:
        UserError: If a file cannot be read, a key is unknown, or a value has the wrong type or range.

    Examples:
        >>> from hegraph import load_cfg
        >>> cfg = load_cfg("digits", "mini", opts=["DATASET.NUM_SHOTS", 4])
        >>> cfg.data.name, cfg.data.shots
        ('Digits', 4)
    """
    values = dict(known or default_values())
    baseline = None if is_foreign(method, values) else method
    values |= method_values(method, values)
    for kind, file in ((DATA_SET, dataset_file), (METHOD, config_file)):
        if file:
            _merge_file(values, find_config_file(kind, file))
    opts = validate(list, [] if opts is None else opts, "options, a list [KEY, VALUE, ...]", convert=True)
    flags = validate(dict, {} if flags is None else flags, "flags, a dict from keys to values", convert=True)
    of_files = values[BACKBONE_NAME]
    given = [*flags.items(), *pairs_of(opts)]
    _merge(values, given)
    if values[BACKBONE_NAME] != of_files:  # size and normalisation in the files are those of another backbone
        named = {str(key) for key, _ in given}
        values |= {key: OPTIONS[key].default for key in BACKBONE_KEYS if key not in named}
    name = method.method if method else OUR_METHOD
    if values["TRAINER.NAME"] != name:
        got = f"expected TRAINER.NAME {name}, got {values['TRAINER.NAME']!r:.80}"
        raise UserError(f"{got}; use --trainer to choose the method", "config.method")
    return _complete(values, baseline)


def find_config_file(kind: str, name: str | Path) -> Path:
    """Find a configuration file by its path, or by the name of a shipped file of this kind, such as `mini`.

    Paths take precedence over names, and need not exist. UserError for an unknown name.
    """
    path = Path(str(name))
    if path.is_file() or path.suffix or len(path.parts) > 1:
        return path
    shipped = {file.stem: file for file in FOLDERS[kind].glob("*.yaml")}
    if str(name) not in shipped:
        raise unknown(f"{kind} configuration", str(name), shipped)
    return shipped[str(name)]


def with_values(cfg: Config, changes: Values) -> Config:
    """Copy a configuration with changed values of keys.

    Raises:
        UserError: If a key is unknown, or a value has the wrong type or range. -1 is a value here, not an open key.
    """
    values = dict(cfg.values)
    _merge(values, changes.items())
    return _checked(values, cfg.baseline)


def is_foreign(method: OptionGroup | None, known: Mapping[str, object]) -> bool:
    """Whether CoOp or Dassl has a group of keys of a method's name, which is then theirs."""
    return method is not None and any(key.startswith(method.prefix) for key in known)


def method_values(method: OptionGroup | None, known: Mapping[str, object]) -> Values:
    """Return the keys of a baseline with their defaults; empty if CoOp or Dassl has such a group of keys."""
    return {} if method is None or is_foreign(method, known) else method.default_values()


def from_dassl(dassl_cfg: CfgNode, method: OptionGroup | None = None) -> Config:
    """Extract a configuration from a merged one of Dassl.

    Keys that Dassl lacks have their defaults. Dassl's values of `BACKBONE_KEYS` belong to other networks.

    Args:
        dassl_cfg: Configuration of Dassl, after `extend_cfg`.
        method: Options of a baseline; None for HeGraphAdapter.

    Raises:
        UserError: If a value has the wrong type or range.
    """
    merged = flatten(dassl_cfg)
    merged[WEIGHTS] = merged[WEIGHTS_IN_DASSL]
    values = default_values() | method_values(method, {})
    _merge(values, [(key, merged[key]) for key in values if key in merged and key not in BACKBONE_KEYS])
    return _complete(values, method)


def flatten(tree: Mapping, prefix: str = "") -> Values:
    """Flatten a tree of keys, as {"OPTIM.LR": 0.1}."""
    flat: Values = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _merge_file(values: Values, path: Path) -> None:
    tree = read_yaml(path, "a configuration")
    try:
        _merge(values, flatten(validate(dict, {} if tree is None else tree, "KEY: VALUE lines")).items())
    except UserError as error:
        raise UserError(f"{path}: {error}", error.code) from error


def _merge(values: Values, pairs: Iterable[tuple[object, object]]) -> None:
    """Set keys that exist, with values of the type of their defaults."""
    for name, value in pairs:
        key = str(name)
        if key not in values:
            raise unknown("configuration key", key, values)
        values[key] = convert_value(key, value, values[key])


def convert_value(key: str, value: object, default: object) -> object:
    """Convert a value of a file or the command line to the value of its key, with one name for aliases.

    Args:
        key: Configuration key.
        value: The value.
        default: Another value of the key, which has the right type.

    Raises:
        UserError: If the value has another type, or is not valid in JSON.
    """
    converted = _coerce(key, value, default)
    return canonical_name(str(converted)) if key == BACKBONE_NAME else converted


def _coerce(key: str, value: object, default: object) -> object:
    """Convert `value` to the type of `default`: text to a literal, int to float, list to tuple.

    Raises:
        UserError: If the value has another type, or is not valid in JSON.
    """
    # A value that cannot be converted, such as an integer of thousands of digits, has the wrong type
    with contextlib.suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        if isinstance(value, str) and not isinstance(default, str):
            value = ast.literal_eval(value)
        elif isinstance(default, str) and isinstance(value, (int, float)):
            value = str(value)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) <= LARGEST_FLOAT else math.inf
    if isinstance(default, (tuple, list)) and isinstance(value, (tuple, list)):
        value = type(default)(value)
    if type(value) is not type(default):
        expected = f"type {type(default).__name__}, such as {default!r}"
        raise UserError(f"{key}: expected {expected}, got {shown(value)}", "config.type")
    if not isinstance(value, (int, float)) and not _is_plain(value):  # numbers have ranges
        expected = "text in UTF-8 without NUL, finite numbers of at most 64 bits, or lists of them"
        raise UserError(f"{key}: expected {expected}, got {shown(value)}", "config.plain")
    return value


def _is_plain(value: object) -> bool:
    """Whether a record can hold a value, as JSON in UTF-8."""
    try:
        text = json.dumps(value)
        parse_json(text)
    except (TypeError, ValueError, RecursionError):  # a date, NaN, a lone surrogate, a huge number
        return False
    return "\\u0000" not in text


def _complete(values: Values, baseline: OptionGroup | None) -> Config:
    """Fill the open keys from the rows that apply, and check the configuration."""
    for key in ("DATASET.NUM_SHOTS", SHOTS_PER_CLASS, f"{NODE}.BY_DATASET", f"{NODE}.BY_SHOTS"):
        OPTIONS[key].check(values[key])
    for pairs in matching_rows(values):
        for key, value in pairs_of(pairs):
            if key not in FILLABLE:
                known = ", ".join(FILLABLE)
                raise UserError(f"BY_SHOTS and BY_DATASET fill {known}, got {key}; set it directly", "config.filled")
            if values[key] == OPEN:
                _merge(values, [(key, value)])
    for key in FILLABLE:
        if values[key] == OPEN:
            raise UserError(f"{key} is {OPEN}, and BY_DATASET and BY_SHOTS have no value for it; set it", "config.open")
    if values[BACKBONE_NAME] and values[WEIGHTS] == AUTO:
        values[WEIGHTS] = default_weights(values[BACKBONE_NAME])
    cfg = _checked(values, baseline)
    if cfg.run.select_on == "val":
        candidates(cfg)
    return cfg


def _checked(values: Values, baseline: OptionGroup | None) -> Config:
    """Check the ranges of all values, the numbers of shots, and that the variant has parameters to train."""
    declared = OPTIONS if baseline is None else OPTIONS | baseline.options
    for key, value in values.items():
        declared.get(key, Option(key, value, "")).check(value)
    cfg = Config.of(values, baseline)
    check_shots(cfg.data.shots, cfg.data.shots_per_class)
    options = cfg.model
    has_parameters = options.relations and (options.text_weights or options.bias or options.variant == "full")
    if options.variant not in UNTRAINED and not has_parameters:
        untrainable = "has no parameters to train: TEXT_W and BIAS are False, or its ALPHA_* are 0"
        advice = "set one of them, or VARIANT base"
        raise UserError(f"VARIANT {options.variant} {untrainable}; {advice}", "config.untrainable")
    return cfg


def candidates(cfg: Config) -> list[tuple[tuple, Config]]:
    """List the combinations of values in SELECT, the last row changing fastest, with their configurations.

    Raises:
        UserError: If a combination is invalid, or a key is not an option of the adapter or its training.
    """
    keys = [key for key, _ in cfg.run.select]
    combinations = itertools.product(*(values for _, values in cfg.run.select))
    candidates = [(values, with_values(cfg, dict(zip(keys, values)))) for values in combinations]
    if wrong := ", ".join(sorted(set(keys) - SELECTABLE)):
        raise UserError(f"SELECT: expected options of the adapter or its training, got {wrong}", "config.select")
    return candidates
