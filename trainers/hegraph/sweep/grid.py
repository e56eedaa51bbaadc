"""What a sweep runs: the product of data sets, configurations, methods, shots, seeds and the values of further keys."""

from __future__ import annotations

import itertools
import logging
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from ..backbones.identity import resolve_precision
from ..baselines import ALL_BASELINES, METHODS, method_options, needs_backbone
from ..config import Config
from ..config_files import load_cfg, with_values
from ..experiments.run_folder import PRECISION
from ..features.bank import SUFFIX
from ..utils.devices import available_device
from ..utils.errors import UserError, command, shortened, unknown
from ..utils.option import OUR_METHOD
from ..utils.reading import Count, StrictModel, check_regular, read_yaml, validate

logger = logging.getLogger(__name__)

ALL_METHODS = (*METHODS, OUR_METHOD)
ALL = "all"  # in place of methods: every one
OF_THE_GRID = ("OUTPUT_DIR", "SEED", "DATASET.NUM_SHOTS", "TRAINER.NAME", "DATASET.ROOT", "RESUME")
LONGEST_NAME = 255  # bytes of a file name, on every common file system
FEATURES_DIR = "TRAINER.HEGRAPHADAPTER.FEATURES.DIR"


@dataclass(frozen=True)
class Run:
    """One run of a grid: what the command line of a single run would say.

    Attributes:
        folder: The output folder.
        source: The feature bank, or the configuration of the data set.
        config: The configuration of the method, a path or a name that ships.
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
    keys: tuple[tuple[str, Any], ...] = ()
    root: str = ""
    label: str = ""
    separate: bool = False

    @property
    def bank(self) -> Path | None:
        """The feature bank, if the run is made of one."""
        return Path(self.source) if self.source.endswith(SUFFIX) else None

    @property
    def title(self) -> str:
        """The run in a few words."""
        words = (f"{name_of(self.source)} {self.method} {name_of(self.config)}", self.label, f"{self.shots} shots")
        return ", ".join([*filter(None, words), f"seed {self.seed}"])

    @property
    def loads(self) -> tuple[str, str]:
        """What takes long to open: runs with equal values share it."""
        return self.source, "" if self.bank else self.config

    def configuration(self) -> Config:
        """The checked configuration; UserError as `load_cfg`. With a run of images, what this machine makes of the
        precision "auto" goes to any other.
        """
        flags = {
            "DATASET.ROOT": "" if self.bank else self.root,
            "OUTPUT_DIR": str(self.folder),
            "DATASET.NUM_SHOTS": self.shots,
            "SEED": self.seed,
            "TRAINER.NAME": self.method,
        }
        opts = [word for pair in self.keys for word in pair]
        cfg = load_cfg("" if self.bank else self.source, self.config, flags, opts, method_options(self.method))
        if self.bank:
            return cfg
        backbone, device = cfg.backbone, available_device(cfg.run.use_cuda)
        return with_values(cfg, {PRECISION: resolve_precision(backbone.precision, backbone.name, device)})

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


def name_of(source: str) -> str:
    """The name of a bank, a data set or a configuration in the output folders."""
    path = Path(source)
    return path.stem if path.suffix in (SUFFIX, ".yaml", ".yml") else path.name


def _listed(value: Any) -> Any:
    """A single value as a list of one; PyYAML and callers give lists and tuples."""
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _counted(value: Any) -> Any:
    """The same of numbers, which flags give as words."""
    return tuple(int(n) if isinstance(n, str) and re.fullmatch(r"-?\d{1,9}", n) else n for n in _listed(value))


Names = Annotated[tuple[str, ...], BeforeValidator(_listed), Field(min_length=1)]
Shots = Annotated[tuple[int, ...], BeforeValidator(_counted), Field(min_length=1)]
Seeds = Annotated[tuple[Count, ...], BeforeValidator(_counted), Field(min_length=1)]
Values = Annotated[tuple[Any, ...], BeforeValidator(_listed), Field(min_length=1)]


class Grid(StrictModel):
    """What is asked for. A file of the grid has these names as its keys, and flags of the same names win over it.

    `docs/sweep.md` says what each is. A case without a name has the folders of a grid without cases, and a `root` of ""
    takes the one of the data set's configuration, or else the folder "data".
    """

    datasets: Names
    configs: Names
    methods: Names = (OUR_METHOD,)
    shots: Shots = (16,)
    seeds: Seeds = (1, 2, 3)
    cases: dict[str, dict[str, Any]] = Field({"": {}}, min_length=1)
    vary: dict[str, Values] = Field({})
    set: dict[str, Any] = Field({})
    root: str = ""
    output: str = "output"
    suffix: str | None = None
    separate: bool = False

    def runs(self) -> list[Run]:
        """The runs in the order in which one process does them: those of one data set together. UserError if a name is
        not known, a bank is missing, a key is the grid's own, or a folder lies outside `output` or is that of two runs.
        """
        for key in (*self.vary, *self.set, *itertools.chain(*self.cases.values())):
            if key in OF_THE_GRID:
                raise UserError(f"{key} is the grid's own; give --shots, --seeds, --methods, --root or --output")
        for method in {*self.methods} - {*ALL_BASELINES, OUR_METHOD, ALL}:
            raise unknown("method", method, (*ALL_BASELINES, OUR_METHOD, ALL))
        found = [run for source in self.datasets for run in self._runs_of(source)]
        if not found:
            raise UserError("the grid has no run: every method needs images, and there are only feature banks")
        folders: dict[Path, Run] = {}
        for run in found:
            if (other := folders.setdefault(run.folder, run)) is not run:
                raise UserError(
                    f"two runs of the grid have the folder {run.folder}: {other.title} and {run.title}; say everything "
                    "once, give files of one name other names, and let --suffix name every varied key"
                )
        return found

    def _runs_of(self, source: str) -> Iterator[Run]:
        is_bank = source.endswith(SUFFIX)
        if is_bank:
            check_regular(Path(source))
        root = self.root or ("" if is_bank else load_cfg(source).data.root) or "data"
        methods = list(ALL_METHODS if ALL in self.methods else self.methods)
        for method in [method for method in methods if is_bank and needs_backbone(method)]:
            logger.info("%s is left out: it needs images, and %s is a feature bank", method, source)
            methods.remove(method)
        pairs = {FEATURES_DIR: str(Path(self.output) / "features")} | self.set
        varied = [tuple(zip(self.vary, values)) for values in itertools.product(*self.vary.values())]
        each = itertools.product(self.configs, methods, self.shots, self.cases, varied, self.seeds)
        for config, method, shots, case, values, seed in each:
            names = {key.rpartition(".")[2]: str(value) for key, value in values}
            below = f"{name_of(source)}/{method}/{name_of(config)}_{shots}shots{self._ending(case, names)}/seed{seed}"
            if ".." in PurePath(below).parts or "\0" in below:
                raise UserError(f"--suffix, cases and names of files may not lead out of {self.output}: {below!r}")
            for name in PurePath(below).parts:
                if (length := len(os.fsencode(name))) > LONGEST_NAME:
                    raise UserError(
                        f"the name of a folder may have {LONGEST_NAME} bytes, got {length}: {shortened(name, 60)!r}; "
                        "give a shorter case or value, or --suffix"
                    )
            label = ", ".join(filter(None, (case, *(f"{name}={value}" for name, value in names.items()))))
            keys = (*pairs.items(), *self.cases[case].items(), *values)
            yield Run(Path(self.output) / below, source, config, method, shots, seed, keys, root, label, self.separate)

    def _ending(self, case: str, names: Mapping[str, str]) -> str:
        """What stands behind the folder of shots: the case, and the values of varied keys, given by name."""
        case = f"_{case}".replace("/", "-") if case else ""
        if self.suffix is None:
            return case + "".join(f"_{name}={value}" for name, value in names.items()).replace("/", "-")
        return case + re.sub(r"\{(\w+)\}", lambda braces: names.get(braces[1], braces[0]), self.suffix)


def read_grid(path: Path | None, given: Mapping[str, Any]) -> Grid:
    """The grid of a YAML file, or of flags alone; fields of `Grid` that flags give win over the file.

    What flags give of `vary` and `set` is added to the file's.

    Raises:
        UserError: If the file cannot be read, or a key or the type of a value is wrong.
    """
    tree = {} if path is None else read_yaml(path, "a grid")
    where = "the grid" if path is None else str(path)
    values = validate(dict[str, Any], tree, where)
    for name in ("vary", "set"):
        if isinstance(said := values.get(name) or {}, dict):  # `check` tells what is wrong with another
            values[name] = said | given.get(name, {})
    values |= {name: value for name, value in given.items() if name not in ("vary", "set")}
    for name in ("datasets", "configs"):
        if not values.get(name):
            raise UserError(f"the grid has no run: give --{name}, or {name} in the grid's file")
    return validate(Grid, values, where)
