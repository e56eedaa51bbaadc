"""Encoded images of a prediction that is not finished, so that the same command continues after an interrupt.

Files of a few seconds of work each are in a folder of the cached features, and are removed at the end.

Shapes: B images of a batch, d feature width.
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from ...config import default_values
from ...features.cache import CHUNKS
from ...features.chunks import WRITE_SECONDS
from ...utils.errors import UserError
from ...utils.files import absolute, hash_json, write_tensors
from ...utils.option import NODE
from ...utils.reading import read_tensors
from ...utils.signals import Interrupted
from ..images import EncodedBatch, ImageModel

logger = logging.getLogger(__name__)

FOLDER = f"{NODE}.FEATURES.DIR"  # its default is the folder of the cached features
FORM = "encoded images"

Batch = tuple[list[str], Tensor]  # reason for each unreadable image, "" for a readable one, and features of the others


class Unfinished:
    """Batches of an unfinished prediction.

    Args:
        key: Hash of the images and of everything that determines their features.

    Attributes:
        written: Number of images in files.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self.folder = Path(default_values()[FOLDER]) / "predict" / f"images-{key[:16]}{CHUNKS}"
        self.written = 0
        self._unwritten: list[Batch] = []
        self._last_time = time.monotonic()

    def read(self) -> list[Batch]:
        """Read the batches of an earlier command, up to the first missing or damaged file."""
        batches: list[Batch] = []
        while (file := self._next_file()).is_file():
            try:
                tensors, metadata = read_tensors(file, FORM)
                if metadata.get("key") != self.key:
                    break
                problems: list[list[str]] = json.loads(metadata["problems"])
                sizes = [of_batch.count("") for of_batch in problems]
                features = tensors["features"].split(sizes)
            except (UserError, LookupError, TypeError, ValueError, RuntimeError):
                logger.warning("%s is damaged; its images are encoded again", file)
                break
            batches += zip(problems, features)
            self.written += sum(map(len, problems))
        return batches

    def add(self, problems: Sequence[str], features: Tensor) -> None:
        """Add a batch, and write the last ones if the last time is `WRITE_SECONDS` ago."""
        self._unwritten.append(([*problems], features))
        if time.monotonic() - self._last_time >= WRITE_SECONDS:
            self.write()

    def write(self) -> None:
        """Write the batches in memory to a file. Without permission or space, nothing is kept."""
        if not self._unwritten:
            return
        problems = [of_batch for of_batch, _ in self._unwritten]
        tensors = {"features": torch.cat([features for _, features in self._unwritten])}
        with suppress(UserError):
            write_tensors(self._next_file(), tensors, {"key": self.key, "problems": json.dumps(problems)})
            self.written += sum(map(len, problems))
            self._unwritten.clear()
        self._last_time = time.monotonic()

    def remove(self) -> None:
        """Delete all files."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _next_file(self) -> Path:
        return self.folder / f"{self.written}.safetensors"


def encode_and_keep(
    model: ImageModel, images: Sequence[str], batch_size: int, show: Callable[[int], None]
) -> Iterator[EncodedBatch]:
    """Iterate over batches as `ImageModel.encode`. After an interrupt, the same call continues.

    Raises:
        Interrupted: At Ctrl-C, with the number of images that are encoded.
    """
    unfinished = Unfinished(key_of(model, images, batch_size))
    done = 0
    for stored_problems, stored_features in unfinished.read():
        yield images[done : done + len(stored_problems)], stored_problems, stored_features
        done += len(stored_problems)
        show(done)
    if done:
        logger.info("%s: continuing after %d of %d images", unfinished.folder, done, len(images))
    before = done
    rest = model.encode(images[before:], batch_size, lambda number: show(before + number))
    try:
        for _, problems, features in rest:
            unfinished.add(problems, features)
            start = done
            done += len(problems)
            yield images[start:done], problems, features
    except BaseException as stop:  # also if the caller takes no further batches
        unfinished.write()
        if not isinstance(stop, KeyboardInterrupt):
            raise
        kept = f"{unfinished.written} of {len(images)} images are encoded and will not be encoded again"
        raise Interrupted(kept if unfinished.written else "") from stop
    unfinished.remove()


def key_of(model: ImageModel, images: Sequence[str], batch_size: int) -> str:
    """Hash of images and of everything that determines their features."""
    files = []
    for image in images:
        try:
            status = os.stat(image)
            files.append([str(absolute(image)), status.st_size, status.st_mtime_ns])
        except OSError:  # an error of its row
            files.append([str(absolute(image)), None, None])
    backbone = model.backbone
    return hash_json({"images": files, "batch": batch_size, "decode": backbone.decode, **backbone.fingerprint})
