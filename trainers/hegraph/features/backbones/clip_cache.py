"""Weights that OpenAI's `clip` package downloaded, as CoOp's own trainers have it do."""

import logging
import os
from functools import cache
from pathlib import Path

from ...utils.files import file_version, hash_file
from ...utils.reading import reading

logger = logging.getLogger(__name__)

CLIP_CACHE = Path("~/.cache/clip")  # the default folder of `clip.load`


def find_cached_by_clip(url: str) -> Path | None:
    """Find the file of a URL in the cache of `clip`, and compare its checksum.

    The last folder of the URL is the SHA-256 of the file. A file with another content is left alone, with a warning.

    Args:
        url: URL of OpenAI's weights; "" for other weights.
    """
    *_, checksum, name = ["", "", *url.split("/")]
    path = CLIP_CACHE.expanduser() / name
    if len(checksum) != 64 or not os.path.isfile(path):
        return None
    with reading(path, "a file of weights"):
        found = _hash(*file_version(path))
    if found != checksum:
        logger.warning("%s is not used: its SHA-256 is %.12s..., not %.12s...", path, found, checksum)
        return None
    return path


@cache
def _hash(path: Path, size: int, changed: int) -> str:
    """Hash of a file; size and time of the last change are keys of the cache."""
    return hash_file(path)
