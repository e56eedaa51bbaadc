"""Files of the Hugging Face hub: from its cache on this machine, or else downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.utils import get_session

from ..utils.errors import UserError, first_line

TIMEOUT = 5  # seconds that the hub has to answer


def cached_file(repository: str, filenames: Sequence[str]) -> Path | None:
    """The first of the files that the Hugging Face cache holds; None if it holds none of them.

    Raises:
        UserError: If a repository cannot be called so.
    """
    try:
        paths = [try_to_load_from_cache(repository, filename) for filename in filenames]
    except ValueError as error:
        raise UserError(f"{repository!r} is no repository of {constants.ENDPOINT}: {first_line(error)}") from error
    return next((Path(path) for path in paths if isinstance(path, str)), None)


def fetch_file(repository: str, filenames: Sequence[str], what: str, needed: str, use: str) -> Path:
    """The first of the files that the cache holds, or else the first that the repository has, downloaded.

    Args:
        repository: As "ORGANISATION/NAME".
        filenames: The same content under several names, the preferred one first.
        what, needed, use: As of `require_hub`.

    Raises:
        UserError: If the file is neither here nor can be downloaded.
    """
    if path := cached_file(repository, filenames):
        return path
    require_hub(repository, what, needed, use)
    reasons: list[Exception] = []
    for filename in filenames:
        try:
            return Path(hf_hub_download(repository, filename))
        except Exception as error:  # of huggingface_hub, requests or httpx: it depends on the version
            reasons.append(error)
    raise UserError(
        f"cannot download {' or '.join(filenames)} of {repository}: {first_line(reasons[-1])}"
    ) from reasons[-1]


def require_hub(repository: str, what: str, needed: str, use: str) -> None:
    """Asks once, for a few seconds, whether the hub answers; huggingface_hub itself would try for a minute.

    Args:
        repository: As "ORGANISATION/NAME".
        what: What is wanted, for the message.
        needed: The files that the user would download by hand.
        use: What the user would then do with them.

    Raises:
        UserError: If the hub does not answer.
    """
    hub = constants.ENDPOINT
    try:
        get_session().head(hub, timeout=TIMEOUT)
    except Exception as error:  # of requests or httpx: it depends on the version
        raise UserError(
            f"{what} is not on this machine, and {hub} cannot be reached: download {needed} from {hub}/{repository} "
            f"elsewhere and {use}"
        ) from error
