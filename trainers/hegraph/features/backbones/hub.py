"""Files of the Hub: from the cache, or downloaded. huggingface_hub is imported inside functions, because it is slow."""

from collections.abc import Sequence
from pathlib import Path

from ...utils.errors import UserError, first_line

TIMEOUT = 5  # seconds to wait for the Hub


def cached_file(repository: str, filenames: Sequence[str]) -> Path | None:
    """First file of a repository "ORGANISATION/NAME" in the cache, or None; UserError for an invalid name."""
    from huggingface_hub import constants, try_to_load_from_cache

    try:
        paths = [try_to_load_from_cache(repository, filename) for filename in filenames]
    except ValueError as error:
        expected = f"expected the name of a repository of {constants.ENDPOINT}, ORGANISATION/NAME"
        raise UserError(f"{expected}, got {repository!r}: {first_line(error)}") from error
    return next((Path(path) for path in paths if isinstance(path, str)), None)


def fetch_file(repository: str, filenames: Sequence[str], what: str, needed: str, use: str) -> Path:
    """First file that is in the cache, or else in the repository, which is then downloaded.

    `filenames` have the same content, the preferred one first. Other arguments as in `require_hub`.

    Raises:
        UserError: If the Hub cannot be reached, or the file cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download

    if path := cached_file(repository, filenames):
        return path
    require_hub(repository, what, needed, use)
    for filename in filenames:
        try:
            return Path(hf_hub_download(repository, filename))
        except Exception as error:  # type depends on the version of huggingface_hub
            reason = first_line(error)
    raise UserError(f"cannot download {' or '.join(filenames)} of {repository}: {reason}")


def require_hub(repository: str, what: str, needed: str, use: str) -> None:
    """Check once that the Hub answers within `TIMEOUT`; huggingface_hub itself would try for a minute.

    Raises:
        UserError: If it does not answer. The message names `what` is being loaded, the files `needed`, and how to `use`
            them after a download on another machine.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT)
    except Exception as error:  # type depends on the version of huggingface_hub
        page = f"{constants.ENDPOINT}/{repository}"  # at the start, because long messages are shortened in the middle
        problem = f"{what} needs {needed} from {page}, which cannot be reached: download elsewhere, {use}"
        raise UserError(f"{problem}; hegraph-mini needs no download") from error


def fetch_snapshot(repository: str, filenames: Sequence[str], what: str, needed: str, use: str) -> Path:
    """Folder with those of some files that a repository has; downloads them. Other arguments as in `require_hub`.

    Raises:
        UserError: If the Hub cannot be reached, or the files cannot be downloaded.
    """
    from huggingface_hub import snapshot_download

    require_hub(repository, what, needed, use)
    try:
        return Path(snapshot_download(repository, allow_patterns=[*filenames]))
    except Exception as error:  # type depends on the version of huggingface_hub
        raise UserError(f"cannot download {needed} of {repository}: {first_line(error)}") from error
