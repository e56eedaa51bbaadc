"""What a sweep runs: the product of data sets, configurations, methods, shots, seeds and the values of further keys."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from ..baselines import METHODS, method_options, needs_backbone
from ..config_files import load_cfg
from ..utils.commands import command
from ..utils.errors import UserError, unknown
from ..utils.reading import read_yaml
from ..utils.shipped import DATA_SET, METHOD, find_config_file

OURS = "HeGraphAdapter"
ALL_METHODS = (*METHODS, OURS)
ALL = "all"  # in place of methods: every one
BANK = ".safetensors"  # a data set of this suffix is a feature bank
OF_THE_GRID = ("OUTPUT_DIR", "SEED", "DATASET.NUM_SHOTS", "TRAINER.NAME", "DATASET.ROOT", "RESUME")
FEATURES_DIR = "TRAINER.HEGRAPHADAPTER.FEATURES.DIR"
Pairs = tuple[tuple[str, Any], ...]  # configuration keys with their values


@dataclass(frozen=True)
class Run:
    """One run of a grid: what the command line of a single run would say.

    Attributes:
        folder: The output folder.
        source: The feature bank, or the configuration of the data set.
        config: The configuration of the method, a path or a name that ships.
        method: As `--trainer` says it.
        shots, seed: Training images per class, and the seed.
        keys: Further configuration keys with their values; they win over everything else.
        root: The folder of the data sets; not used with a bank.
        label: The case and the values of varied keys, in words.
        separate: Whether it is done in a process of its own.
    """

    folder: Path
    source: str
    config: str
    method: str
    shots: int
    seed: int
    keys: Pairs = ()
    root: str = ""
    label: str = ""
    separate: bool = False

    @property
    def bank(self) -> Path | None:
        """The feature bank, if the run is made of one."""
        return Path(self.source) if self.source.endswith(BANK) else None

    @property
    def title(self) -> str:
        """The run in a few words."""
        words = (f"{name_of(self.source)} {self.method} {name_of(self.config)}", self.label, f"{self.shots} shots")
        return ", ".join([*filter(None, words), f"seed {self.seed}"])

    @property
    def loads(self) -> tuple[str, str]:
        """What takes long to open: runs with equal values share it."""
        return self.source, "" if self.bank else self.config

    def configuration(self) -> CfgNode:
        """The checked configuration.

        Raises:
            UserError: As `load_cfg`.
        """
        flags = {
            "DATASET.ROOT": "" if self.bank else self.root,
            "OUTPUT_DIR": str(self.folder),
            "DATASET.NUM_SHOTS": self.shots,
            "SEED": self.seed,
            "TRAINER.NAME": self.method,
        }
        opts = [word for pair in self.keys for word in pair]
        return load_cfg("" if self.bank else self.source, self.config, flags, opts, method_options(self.method))

    def arguments(self) -> list[str]:
        """The arguments of the command line that does this run alone."""
        data = ["--features", self.source] if self.bank else ["--root", self.root, "--dataset-config-file", self.source]
        return [
            *data, "--shots", str(self.shots), "--seed", str(self.seed), "--trainer", self.method,
            "--config-file", self.config, "--output-dir", str(self.folder),
            *(str(word) for pair in self.keys for word in pair),
        ]  # fmt: skip

    def command(self) -> str:
        """The command line that does this run alone."""
        return command(shlex.join(self.arguments()))


@dataclass(frozen=True)
class Grid:
    """What is asked for. A file of the grid has these names as its keys, and flags of the same names win over it.

    Attributes:
        datasets: Feature banks, or configurations of data sets: paths, or names that ship.
        configs: Configurations of the method: paths, or names that ship.
        methods: As `--trainer` says them; "all" stands for every one.
        shots, seeds: Training images per class, and seeds.
        cases: Name -> the configuration keys that make the case, with their values. Each case is run, in folders with
            its name behind them; a case without a name has the folders of a grid without cases.
        vary: Configuration key -> its values, each of which is run.
        set: Configuration key -> the value that it has in all runs.
        root: The folder of the data sets; "" takes what the configuration of each says, or else the folder "data".
        output: The folder that the output folders of the runs go to.
        suffix: Is put behind the folder of shots and the name of the case; `{NAME}` in it stands for the value of the
            varied key that ends in NAME. None names every varied key with its value.
        separate: Whether each run is done in a process of its own.
    """

    datasets: Sequence[str] = ()
    configs: Sequence[str] = ()
    methods: Sequence[str] = (OURS,)
    shots: Sequence[int] = (16,)
    seeds: Sequence[int] = (1, 2, 3)
    cases: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"": {}})
    vary: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    set: Mapping[str, Any] = field(default_factory=dict)
    root: str = ""
    output: str = "output"
    suffix: str | None = None
    separate: bool = False

    def runs(self) -> tuple[list[Run], list[str]]:
        """The runs in the order in which one process does them: those of one data set together.

        Returns:
            The runs, and a line for each method that is left out of a feature bank because it needs images.

        Raises:
            UserError: If a name is not known, a bank is missing, a list is empty, a key is the grid's own, or two runs
                have one folder.
        """
        self._check()
        pairs = dict(self.set)
        pairs.setdefault(FEATURES_DIR, str(Path(self.output) / "features"))
        methods = ALL_METHODS if ALL in self.methods else self.methods
        found, left_out = [], []
        for source in self.datasets:
            for method in methods:
                if source.endswith(BANK) and needs_backbone(method):
                    left_out.append(f"{method} is left out: it needs images, and {source} is a feature bank")
            there = [m for m in methods if not (source.endswith(BANK) and needs_backbone(m))]
            root = self.root or root_of(source) or "data"
            each = itertools.product(self.configs, there, self.shots, self.cases, self._varied(), self.seeds)
            for config, method, shots, case, varied, seed in each:
                folder = self._folder(source, method, config, shots, case, varied) / f"seed{seed}"
                keys = (*pairs.items(), *self.cases[case].items(), *varied)
                label = ", ".join(filter(None, (case, *(f"{key.rpartition('.')[2]}={value}" for key, value in varied))))
                found.append(Run(folder, source, config, method, shots, seed, keys, root, label, self.separate))
        if not found:
            raise UserError("the grid has no run: every method needs images, and there are only feature banks")
        folders: dict[Path, Run] = {}
        for run in found:
            if (other := folders.setdefault(run.folder, run)) is not run:
                raise UserError(
                    f"two runs of the grid have the folder {run.folder}: {other.title} and {run.title}; say everything "
                    "once, give files of one name other names, and let --suffix name every varied key"
                )
        return found, left_out

    def _folder(self, source: str, method: str, config: str, shots: int, case: str, varied: Pairs) -> Path:
        names = {key.rpartition(".")[2]: str(value) for key, value in varied}
        if self.suffix is None:
            suffix = "".join(f"_{name}={value}" for name, value in names.items()).replace("/", "-")
        else:
            # Python's format would take more than names, and may make a text of any length
            words = re.split(r"\{(\w+)\}", self.suffix)  # plain text and names in turn
            if any(name not in names for name in words[1::2]) or re.search("[{}]", "".join(words[::2])):
                raise UserError(
                    f"--suffix {self.suffix!r}: braces hold the name of a varied key ({', '.join(names) or 'none'})"
                )
            suffix = "".join(names[word] if number % 2 else word for number, word in enumerate(words))
        case = f"_{case}".replace("/", "-") if case else ""
        return Path(self.output) / name_of(source) / method / f"{name_of(config)}_{shots}shots{case}{suffix}"

    def _varied(self) -> list[Pairs]:
        return [tuple(zip(self.vary, values)) for values in itertools.product(*self.vary.values())]

    def _check(self) -> None:
        for name in ("datasets", "configs", "methods", "shots", "seeds", "cases"):
            if not getattr(self, name):
                flag = "case" if name == "cases" else name
                raise UserError(f"the grid has no run: give --{flag}, or {name} in the grid's file")
        for key in (*self.vary, *self.set, *itertools.chain(*self.cases.values())):
            if key in OF_THE_GRID:
                raise UserError(
                    f"{key} is set by the grid itself; give --shots, --seeds, --methods, --root or --output, or their "
                    "names in the grid's file"
                )
        for key, values in self.vary.items():
            if not values:
                raise UserError(f"the grid has no run: {key} is varied over no value")
        for method in self.methods:
            if method not in (*ALL_METHODS, ALL):
                raise unknown("method", method, (*ALL_METHODS, ALL))
        for seed in self.seeds:
            if seed < 0:
                raise UserError(f"the seeds of a sweep are from 0, got {seed}")
        for source in self.datasets:
            if not source.endswith(BANK):
                find_config_file(DATA_SET, source)
            elif not Path(source).is_file():
                raise UserError(f"there is no feature bank {source}")
        for config in self.configs:
            find_config_file(METHOD, config)


def name_of(source: str) -> str:
    """The name of a bank, a data set or a configuration in the output folders."""
    path = Path(source)
    return path.stem if path.suffix in (BANK, ".yaml", ".yml") else path.name


def root_of(source: str) -> str:
    """The DATASET.ROOT that the configuration of a data set says; "" for none, and for a feature bank."""
    if source.endswith(BANK):
        return ""
    tree = read_yaml(find_config_file(DATA_SET, source), "cannot read the configuration")
    data = tree.get("DATASET") if isinstance(tree, dict) else None
    root = data.get("ROOT") if isinstance(data, dict) else None
    return root if isinstance(root, str) else ""  # `load_cfg` tells what is wrong with another


def read_grid(path: Path | None, given: Mapping[str, Any]) -> Grid:
    """The grid of a file, with what flags have given in place of what the file says.

    Args:
        path: A YAML file whose keys are the fields of `Grid`; None if everything is given by flags.
        given: Fields of `Grid`. `vary` and `set` are added to the file's, others replace them.

    Raises:
        UserError: If the file cannot be read, or a key or the type of a value is wrong.
    """
    tree = {} if path is None else _read_file(path)
    where = "the grid" if path is None else str(path)
    known = [f.name for f in fields(Grid)]
    for name in tree:
        if name not in known:
            raise unknown(f"key of {where}", str(name), known)
    values = tree | {name: value for name, value in given.items() if name not in ("vary", "set")}
    for name, kind in (("datasets", str), ("configs", str), ("methods", str), ("shots", int), ("seeds", int)):
        if name in values:
            values[name] = _list(where, name, values[name], kind)
    for name in ("vary", "set"):
        said = values.get(name) or {}
        if not isinstance(said, dict) or not all(isinstance(key, str) for key in said):
            raise UserError(f"{where}: {name} must hold KEY: ... lines, got {said!r:.80}")
        values[name] = {**said, **given.get(name, {})}
    if "cases" in values:
        values["cases"] = _cases(where, values["cases"])
    values["vary"] = {key: _list(where, f"vary of {key}", found, object) for key, found in values["vary"].items()}
    for name in ("root", "output", "suffix"):
        if name in values and not isinstance(values[name], str):
            raise UserError(f"{where}: {name} must be text, got {values[name]!r:.80}")
    if not isinstance(values.get("separate", False), bool):
        raise UserError(f"{where}: separate must be true or false, got {values['separate']!r:.80}")
    if "root" in values:
        values["root"] = values["root"] or "."
    return Grid(**values)


def _cases(where: str, said: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(said, dict) or not all(isinstance(keys, dict) for keys in said.values()):
        raise UserError(f"{where}: cases must hold NAME: {{KEY: VALUE, ...}} lines, got {said!r:.80}")
    return {str(name): keys for name, keys in said.items()}


def _list(where: str, name: str, value: Any, kind: type) -> list:
    found = list(value) if isinstance(value, (list, tuple)) else [value]
    for entry in found:
        if not isinstance(entry, kind) or (kind is int and isinstance(entry, bool)):
            wanted = {str: "a list of names", int: "a list of whole numbers"}[kind]
            raise UserError(f"{where}: {name} must be {wanted}, got {entry!r:.80}")
    return list(dict.fromkeys(found)) if kind is not object else found


def _read_file(path: Path) -> dict:
    tree = read_yaml(path, "cannot read the grid")
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold KEY: VALUE lines, got {tree!r:.80}")
    return tree
