"""Grid of a sweep: the product of data sets, configurations, methods, shots, seeds and values of further keys."""

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

from ...baselines import METHODS, MODULES, method_options, needs_backbone
from ...config import Config
from ...config_files import load_cfg, with_values
from ...features.backbones.identity import resolve_precision
from ...features.bank import SUFFIX
from ...utils.command_line import command
from ...utils.devices import available_device
from ...utils.errors import UserError, unknown
from ...utils.option import NODE, OUR_METHOD, describe_shots
from ...utils.reading import Count, StrictModel, check_regular, read_yaml, validate
from ...utils.text import shortened
from ..run_folder import PRECISION

logger = logging.getLogger(__name__)

ALL_METHODS = (*METHODS, OUR_METHOD)
ALL = "all"  # stands for all methods
GRID_KEYS = ("OUTPUT_DIR", "SEED", "DATASET.NUM_SHOTS", "TRAINER.NAME", "DATASET.ROOT", "RESUME")
LONGEST_NAME = 255  # bytes of a file name, on every common file system
FEATURES_DIR = f"{NODE}.FEATURES.DIR"


@dataclass(frozen=True)
class Run:
    """One run of a grid, with the arguments of its command line.

    Attributes:
        folder: Output folder.
        source: Feature bank, or configuration of the data set.
        config: Configuration of the method: a path, or the name of a shipped file.
        keys: Further configuration keys with their values, which take precedence.
        root: Folder of the data sets; unused with a feature bank.
        label: Description of the case and the varied values, for people.
        separate: Whether to run it in a new process.
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
        """Path of the feature bank; None for a data set."""
        return Path(self.source) if self.source.endswith(SUFFIX) else None

    @property
    def title(self) -> str:
        """Description of the run for people."""
        words = (f"{name_of(self.source)} {self.method} {name_of(self.config)}", self.label, describe_shots(self.shots))
        return ", ".join([*filter(None, words), f"seed {self.seed}"])

    @property
    def loads(self) -> tuple[str, str]:
        """Identity of the data that are slow to load; runs with equal values can share them."""
        config = "" if self.bank else self.config
        return self.source, config

    def configuration(self) -> Config:
        """Load the checked configuration of the run.

        Without a feature bank, this machine resolves the precision "auto", so that a remote worker uses the same one.

        Raises:
            UserError: If a file cannot be read, or a key or a value is invalid.
        """
        flags: dict[str, Any] = {"DATASET.ROOT": "" if self.bank else self.root, "OUTPUT_DIR": str(self.folder)}
        flags |= {"DATASET.NUM_SHOTS": self.shots, "SEED": self.seed, "TRAINER.NAME": self.method}
        opts = [word for pair in self.keys for word in pair]
        cfg = load_cfg("" if self.bank else self.source, self.config, flags, opts, method_options(self.method))
        if self.bank:
            return cfg
        device = available_device(cfg.run.use_cuda)
        return with_values(cfg, {PRECISION: resolve_precision(cfg.backbone.precision, cfg.backbone.name, device)})

    def arguments(self) -> list[str]:
        """Arguments of the command line of this run."""
        data = ["--features", self.source] if self.bank else ["--root", self.root, "--dataset-config-file", self.source]
        return [
            *data, "--shots", str(self.shots), "--seed", str(self.seed), "--trainer", self.method,
            "--config-file", self.config, "--output-dir", str(self.folder),
            *(str(word) for pair in self.keys for word in pair),
        ]  # fmt: skip

    def command(self) -> str:
        """Command line of this run."""
        return command(shlex.join(self.arguments()))


def name_of(source: str) -> str:
    """Name of a feature bank, a data set or a configuration in output folders."""
    path = Path(source)
    return path.stem if path.suffix in (SUFFIX, ".yaml", ".yml") else path.name


def _listed(value: Any) -> Any:
    """Convert a value to a tuple, of one entry unless it is a list."""
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _counted(value: Any) -> Any:
    """Convert a value to a tuple, and its strings to integers."""
    return tuple(int(n) if isinstance(n, str) and re.fullmatch(r"-?\d{1,9}", n) else n for n in _listed(value))


Names = Annotated[tuple[str, ...], BeforeValidator(_listed), Field(min_length=1)]
Shots = Annotated[tuple[int, ...], BeforeValidator(_counted), Field(min_length=1)]
Seeds = Annotated[tuple[Count, ...], BeforeValidator(_counted), Field(min_length=1)]
Values = Annotated[tuple[Any, ...], BeforeValidator(_listed), Field(min_length=1)]


class Grid(StrictModel):
    """Schema of a grid file, documented in docs/guides/sweep.md. Flags of the same names take precedence.

    The folders of a case with an empty name are the ones of a grid without cases. An empty `root` means the root in the
    data set's configuration, or "data".
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
        """List the runs, grouped by data set.

        Raises:
            UserError: If a name is unknown, a feature bank is missing, the grid sets a key itself, or a folder is
                outside `output` or belongs to two runs.
        """
        for key in (*self.vary, *self.set, *itertools.chain(*self.cases.values())):
            if key in GRID_KEYS:
                flags = "--shots, --seeds, --methods, --root or --output"
                raise UserError(f"{key} is set by {flags}; use these", "grid.key")
        for method in {*self.methods} - {*MODULES, ALL}:
            raise unknown("method", method, (*MODULES, ALL))
        runs = [run for source in self.datasets for run in self._runs_of(source)]
        if not runs:
            raise UserError("the grid has no run: all methods need images, got feature banks only", "grid.empty")
        folders: dict[Path, Run] = {}
        for run in runs:
            other = folders.setdefault(run.folder, run)
            if other is not run:
                two = f"two runs have the folder {run.folder}: {other.title} and {run.title}"
                advice = "remove duplicates, rename files of the same name, and put every varied key into --suffix"
                raise UserError(f"{two}; {advice}", "grid.folder")
        return runs

    def _runs_of(self, source: str) -> Iterator[Run]:
        is_bank = source.endswith(SUFFIX)
        if is_bank:
            check_regular(Path(source))
        root = self.root or ("" if is_bank else load_cfg(source).data.root) or "data"
        methods = list(ALL_METHODS if ALL in self.methods else self.methods)
        for method in [method for method in methods if is_bank and needs_backbone(method)]:
            logger.info("%s is skipped: it needs images, and %s is a feature bank", method, source)
            methods.remove(method)
        pairs = {FEATURES_DIR: str(Path(self.output) / "features")} | self.set
        varied = [tuple(zip(self.vary, values)) for values in itertools.product(*self.vary.values())]
        each = itertools.product(self.configs, methods, self.shots, self.cases, varied, self.seeds)
        for config, method, shots, case, values, seed in each:
            names = {key.rpartition(".")[2]: str(value) for key, value in values}
            below = f"{name_of(source)}/{method}/{name_of(config)}_{shots}shots{self._ending(case, names)}/seed{seed}"
            if ".." in PurePath(below).parts or "\0" in below:
                parts = "--suffix, cases and file names"
                raise UserError(f"{parts} must stay below {self.output}, got {below!r}", "grid.outside")
            for name in PurePath(below).parts:
                if (length := len(os.fsencode(name))) > LONGEST_NAME:
                    problem = f"expected folder names of at most {LONGEST_NAME} bytes, got {length}"
                    advice = "use a shorter case or value, or --suffix"
                    raise UserError(f"{problem}: {shortened(name, 60)!r}; {advice}", "grid.name")
            label = ", ".join(filter(None, (case, *(f"{name}={value}" for name, value in names.items()))))
            keys = (*pairs.items(), *self.cases[case].items(), *values)
            yield Run(Path(self.output) / below, source, config, method, shots, seed, keys, root, label, self.separate)

    def _ending(self, case: str, names: Mapping[str, str]) -> str:
        """Return the end of a folder name: the case, and the varied values."""
        case = f"_{case}".replace("/", "-") if case else ""
        if self.suffix is None:
            return case + "".join(f"_{name}={value}" for name, value in names.items()).replace("/", "-")
        return case + re.sub(r"\{(\w+)\}", lambda braces: names.get(braces[1], braces[0]), self.suffix)


def read_grid(path: Path | None, flags: Mapping[str, Any]) -> Grid:
    """Read a grid from a YAML file, or from flags alone. Flags are fields of `Grid`, and take precedence.

    The flags `vary` and `set` add to the values of the file.

    Raises:
        UserError: If the file cannot be read, a key is unknown, or a value has the wrong type.
    """
    tree = {} if path is None else read_yaml(path, "a grid")
    where = "the grid" if path is None else str(path)
    values = validate(dict[str, Any], tree, where)
    for name in ("vary", "set"):
        pairs = values.get(name) or {}
        if isinstance(pairs, dict):  # otherwise, `validate` raises
            values[name] = pairs | flags.get(name, {})
    values |= {name: value for name, value in flags.items() if name not in ("vary", "set")}
    for name in ("datasets", "configs"):
        if not values.get(name):
            raise UserError(f"the grid has no run: add --{name}, or {name} to the grid file", "grid.empty")
    return validate(Grid, values, where)
