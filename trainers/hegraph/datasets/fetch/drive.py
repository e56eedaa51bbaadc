"""One file from Google Drive, by gdown."""

from __future__ import annotations

import inspect
import os
from pathlib import Path

import requests

from ...utils.errors import UserError
from .disk import cannot_write, need_room, writing
from .failures import Broken
from .parts import Patience, progress_bar
from .sources import Source
from .web import describe

DRIVE = "gdrive:"  # what the address of such a file begins with; the file's id follows


def drive_page(url: str) -> str:
    """The address at which a browser shows the file."""
    return f"https://drive.google.com/file/d/{url[len(DRIVE) :]}/view"


def fetch_from_drive(url: str, part: Path, source: Source, patience: Patience) -> None:
    """Makes `part` whole, but does not check its content.

    Raises:
        Broken: If Google Drive does not give the file.
        UserError: If the disk is full or cannot be written.
    """
    import gdown  # slow to import

    if "timeout" not in inspect.signature(gdown.download).parameters:
        raise Broken(f"gdown {gdown.__version__} would wait for ever on a stalled server: pip install 'gdown>=6.3'")
    identifier = url[len(DRIVE) :]
    fetched = part.with_name(f"{part.name}.{identifier}")  # gdown's own partial files have names that begin like this
    with progress_bar(part.stem, source.size) as bar:

        def show(received: int, total: int | None) -> None:
            if not bar.n:
                need_room(part.parent, (total or source.size or 0) - received)
            bar.total = total
            bar.update(received - bar.n)

        try:
            gdown.download(
                id=identifier, output=str(fetched), quiet=True, resume=True, progress=show, retries=patience.retries,
                timeout=patience.timeouts,
            )  # fmt: skip
        except UserError:
            raise
        except Exception as error:  # gdown raises many kinds, such as KeyError for a missing header
            if isinstance(error, OSError) and not isinstance(error, requests.RequestException):
                raise cannot_write(part, error) from error
            raise Broken(f"gdown: {describe(error, patience.timeout)}") from error
    with writing(part):
        part.touch()
        mode = part.stat().st_mode  # only their owner may read the files that gdown makes
        os.replace(fetched, part)
        part.chmod(mode)
