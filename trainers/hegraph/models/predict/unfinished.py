"""Encoded images of a prediction that is not finished, so that the same command continues after an interrupt.

Files of a few seconds of work each are in a folder of the cached features, and are removed at the end. A step is the
part of a batch that the backbone encodes in one call, so that a slow backbone loses seconds as well.

Shapes: B images of a step, d feature width.
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor

from ...config import default_values
from ...features.cache import CHUNKS
from ...features.chunks import WRITE_SECONDS, keeping
from ...utils.errors import UserError
from ...utils.files import absolute, hash_json, write_tensors
from ...utils.option import NODE
from ...utils.reading import read_tensors
from ..images import EncodedBatch, ImageModel, join_steps

logger = logging.getLogger(__name__)

FOLDER = f"{NODE}.FEATURES.DIR"  # its default is the folder of the cached features
FORM = "encoded images"

Step = tuple[list[str], Tensor]  # reason for each unreadable image, "" for a readable one, and features of the others


class Unfinished:
    """Steps of an unfinished prediction.

    Args:
        key: Hash of the images and of everything that determines their features.

    Attributes:
        written: Number of images in files.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self.folder = Path(default_values()[FOLDER]) / "predict" / f"images-{key[:16]}{CHUNKS}"
        self.written = 0
        self._unwritten: list[Step] = []
        self._last_time = time.monotonic()

    def read(self) -> list[Step]:
        """Read the steps of an earlier command, up to the first missing or damaged file."""
        steps: list[Step] = []
        while (file := self._next_file()).is_file():
            try:
                tensors, metadata = read_tensors(file, FORM)
                if metadata.get("key") != self.key:
                    break
                problems: list[list[str]] = json.loads(metadata["problems"])
                sizes = [of_step.count("") for of_step in problems]
                features = tensors["features"].split(sizes)
            except (UserError, LookupError, TypeError, ValueError, RuntimeError):
                logger.warning("%s is damaged; its images are encoded again", file)
                break
            steps += zip(problems, features)
            self.written += sum(map(len, problems))
        return steps

    def add(self, problems: Sequence[str], features: Tensor) -> None:
        """Add a step, and write the last ones if the last time is `WRITE_SECONDS` ago."""
        self._unwritten.append(([*problems], features))
        if time.monotonic() - self._last_time >= WRITE_SECONDS:
            self.write()

    def write(self) -> None:
        """Write the steps in memory to a file. Without permission or space, nothing is kept."""
        if not self._unwritten:
            return
        problems = [of_step for of_step, _ in self._unwritten]
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


@contextmanager
def resumable_batches(
    model: ImageModel, images: Sequence[str], batch_size: int, show: Callable[[int], None]
) -> Iterator[Iterator[EncodedBatch]]:
    """Context with an iterator over batches as `ImageModel.encode`.

    After an exception in the block, the next call continues with the images that are not encoded yet.

    Raises:
        Interrupted: At Ctrl-C in the block, with the number of images that are encoded.
    """
    unfinished = Unfinished(key_of(model, images, batch_size))

    def write() -> int:
        unfinished.write()
        return unfinished.written

    with keeping(write, len(images), "images"):
        yield join_steps(_kept_steps(model, images, batch_size, unfinished), batch_size, show)
    unfinished.remove()


def _kept_steps(
    model: ImageModel, images: Sequence[str], batch_size: int, unfinished: Unfinished
) -> Iterator[EncodedBatch]:
    """Iterate over the steps of an earlier command, and encode and keep the others."""
    done = 0
    for problems, features in unfinished.read():
        yield images[done : done + len(problems)], problems, features
        done += len(problems)
    if done:
        logger.info("%s: continuing after %d of %d images", unfinished.folder, done, len(images))
    for step_images, step_problems, features in model.encode_steps(images[done:], batch_size, done % batch_size):
        unfinished.add(step_problems, features)
        yield step_images, step_problems, features


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
