"""Files of the Hugging Face hub: from its cache on this machine, or else downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.utils import get_session

from ..utils.errors import UserError, first_line

TIMEOUT = 5  # seconds that the hub has to answer


def cached_file(repository: str, filenames: Sequence[str]) -> Path | None:
    """The first of the files that the cache holds of "ORGANISATION/NAME", or None; UserError for another name."""
    try:
        paths = [try_to_load_from_cache(repository, filename) for filename in filenames]
    except ValueError as error:
        raise UserError(f"{repository!r} is no repository of {constants.ENDPOINT}: {first_line(error)}") from error
    return next((Path(path) for path in paths if isinstance(path, str)), None)


def fetch_file(repository: str, filenames: Sequence[str], what: str, needed: str, use: str) -> Path:
    """The first of the files that the cache holds, or else the first that the repository has, downloaded.

    `filenames` are of the same content, the preferred one first; the rest, and what is raised, as of `require_hub`.
    """
    if path := cached_file(repository, filenames):
        return path
    require_hub(repository, what, needed, use)
    for filename in filenames:
        try:
            return Path(hf_hub_download(repository, filename))
        except Exception as error:  # of huggingface_hub, requests or httpx: it depends on the version
            reason = first_line(error)
    raise UserError(f"cannot download {' or '.join(filenames)} of {repository}: {reason}")


def require_hub(repository: str, what: str, needed: str, use: str) -> None:
    """Asks once whether the hub answers within `TIMEOUT`; huggingface_hub itself would try for a minute.

    Raises:
        UserError: If it does not: `what` is wanted, the files `needed` have to be downloaded by hand, and the user is
            then to `use` them.
    """
    hub = constants.ENDPOINT
    try:
        get_session().head(hub, timeout=TIMEOUT)
    except Exception as error:  # of requests or httpx: it depends on the version
        raise UserError(
            f"{what} is not on this machine, and {hub} cannot be reached: download {needed} from {hub}/{repository} "
            f"elsewhere and {use}"
        ) from error
