"""What a failed run of a sweep leaves in its folder: why it failed, and what it was asked to do."""

from __future__ import annotations

import datetime
import os
import socket
import traceback
from pathlib import Path

from ..config import Config
from ..utils.errors import UserError, first_line
from ..utils.files import hash_json, write_json
from ..utils.reading import read_json
from .identity import run_config

ERROR = "error.json"


def write_failure(folder: Path, error: Exception, cfg: Config, source: str, command: str) -> None:
    """Writes `error.json`.

    Args:
        folder: The output folder of the run.
        error: What it raised.
        cfg: The checked configuration.
        source: The feature bank, or the configuration of the data set.
        command: The command line that does this run alone.

    Raises:
        UserError: If the folder cannot be written.
    """
    failure = {
        "message": str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}",
        "traceback": "".join(traceback.format_exception(error)),
        "configuration": run_config(cfg),
        "seed": cfg.run.seed,
        "data": source,
        "command": command,
        "attempt": hash_attempt(cfg, source),
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "failed_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    write_json(folder / ERROR, failure)


def has_failed(folder: Path, cfg: Config, source: str) -> bool:
    """Whether a folder says that this very run has failed: this configuration and seed on a source of this name."""
    try:
        said = read_json(folder / ERROR) if (folder / ERROR).exists() else None
    except UserError:  # a damaged file says nothing
        return False
    return isinstance(said, dict) and said.get("attempt") == hash_attempt(cfg, source)


def remove_failure(folder: Path) -> None:
    """Removes what an earlier attempt has left."""
    (folder / ERROR).unlink(missing_ok=True)


def hash_attempt(cfg: Config, source: str) -> str:
    """Hash of what a run was asked to do. The data themselves are not part of it, since they may be what is missing."""
    return hash_json([run_config(cfg), cfg.run.seed, Path(source).name])
