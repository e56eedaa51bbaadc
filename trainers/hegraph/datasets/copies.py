"""Copies of images: files with equal pixels, also in another format or with other metadata.

Pixels are those that an encoder gets: upright, in RGB, and on white. A file that cannot be read has copies with the
same bytes only. Headers are read first, then the pixels of images of equal size: those of JPEG files at an eighth of
the sides where all of them are JPEG, and at full size if these are equal.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..utils.files import hash_file
from ..utils.progress import Progress
from ..utils.threads import MAX_THREADS, cores, in_batches
from .decoding import FACTORS, REDUCED, LazyImage
from .images import open_header, open_image, pixel_hash, upright_size

READ_TOGETHER = 64  # images of a batch of threads
REDUCIBLE = ("JPEG", "MPO")  # formats that `LazyImage` decodes at a reduced scale

Read = Callable[[], "Path | bytes"]  # returns the file of an image, or its bytes
Compute = Callable[["Path | bytes"], Hashable]


def content_keys(images: Sequence[Read]) -> list[Hashable]:
    """Return one key per image, so that two images have equal keys if and only if one is a copy of the other."""
    headers = _in_threads(partial(_computed, _header), images)
    others = {size for size, is_reducible in headers if not is_reducible}
    keys: list[Hashable] = [size for size, _ in headers]

    def add(compute: Compute, among: Sequence[int]) -> list[int]:
        """Add a value to the keys of some images, and return the images whose keys are still not unique."""
        values = _in_threads(partial(_computed, compute), [images[n] for n in among])
        for n, value in zip(among, values):
            keys[n] = (keys[n], value)
        return _repeated(keys, among)

    same_size = _repeated(keys, range(len(images)))
    reducible = [n for n in same_size if headers[n][0] not in others]
    add(_pixels, [n for n in same_size if headers[n][0] in others])
    add(_pixels, add(_reduced_pixels, reducible))
    return keys


def _repeated(keys: Sequence[Hashable], among: Sequence[int]) -> list[int]:
    """Return the positions among some whose key is not unique."""
    counts = Counter(keys[n] for n in among)
    return [n for n in among if counts[keys[n]] > 1]


def _header(source: Path | bytes) -> Hashable:
    """Size of an upright image, and whether it can be decoded at a reduced scale."""
    with open_header(source) as file:
        return upright_size(file), file.format in REDUCIBLE


def _reduced_pixels(source: Path | bytes) -> Hashable:
    return pixel_hash(LazyImage.read(source, REDUCED).decoded(FACTORS[-1]).pixels)


def _pixels(source: Path | bytes) -> Hashable:
    return pixel_hash(open_image(source))


def _computed(compute: Compute, read: Read) -> Hashable:
    """Compute a value of an image. For one that cannot be read, it is the hash of its bytes."""
    source = read()
    try:
        return compute(source)
    except MemoryError:
        raise
    except Exception:  # Pillow raises exceptions of many types on damaged bytes
        return _bytes_hash(source), False


def _bytes_hash(source: Path | bytes) -> Hashable:
    """Hash of the bytes of a file; for one without readable bytes, a value that equals no other."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    try:
        return hash_file(source) if source.is_file() else object()  # a pipe would block
    except OSError:
        return object()


def _in_threads(work: Callable[[Read], Any], images: Sequence[Read]) -> list[Any]:
    """Return the results of `work` for all images, in order."""
    done: list[Any] = []
    with Progress(len(images), "comparing images") as progress:
        for _, results in in_batches(work, images, READ_TOGETHER, min(cores(), MAX_THREADS)):
            done += results
            progress.show(len(done))
    return done
