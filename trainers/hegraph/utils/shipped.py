"""The configuration files that ship with this package, by name: `mini` and `digits` instead of their paths."""

from __future__ import annotations

from pathlib import Path

from .errors import unknown

DATA_SET, METHOD = "data set", "method"  # what a configuration file is about

# Not resolved: with `install.sh --link` the package is a link, and the folder is that of the CoOp checkout.
_PACKAGE = Path(__file__).parents[1]
_INSTALLED = _PACKAGE / "configs"  # a wheel carries the files inside the package
CONFIGS = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parents[1] / "configs"
FOLDERS = {DATA_SET: CONFIGS / "datasets", METHOD: CONFIGS / "trainers" / "HeGraphAdapter"}


def find_config_file(kind: str, given: str | Path) -> Path:
    """The file that a user means by a path or by the name of a file that ships for this kind, such as `mini`.

    A file wins over a name. A path to nothing is returned as it came, for the reader of the file to complain about.

    Raises:
        UserError: If it is a name, and no file of that name ships; the nearest is named.
    """
    path, name = Path(given), str(given)
    if path.is_file() or path.suffix or path.name != name:
        return path
    shipped = {file.stem: file for file in FOLDERS[kind].glob("*.yaml")}
    if name not in shipped:
        raise unknown(f"{kind} configuration", name, shipped)
    return shipped[name]
