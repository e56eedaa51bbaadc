"""Encoded images of a teach project: their features in memory and on disk, and their thumbnails.

FOLDER/.hegraph/features-<key>.safetensors      features of a backbone, by the SHA-256 of the image file
FOLDER/.hegraph/thumbnails/<SHA-256>.jpg        thumbnails, the same for all backbones

An image is identified by the SHA-256 of its file, so that a moved image is not encoded again.
"""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ...datasets.images import reason
from ...features.backbones.base import Backbone
from ...features.bank import has_unit_norm
from ...utils.errors import UserError, first_line
from ...utils.files import atomic_path, hash_json, write_tensors
from ...utils.reading import read_tensors
from ...utils.threads import map_in_threads
from .contents import Contents, Picture
from .journal import STATE_FOLDER
from .project import Project

logger = logging.getLogger(__name__)

IMAGES_AT_ONCE = 16  # images that are encoded together
SAVE_SECONDS = 2.0  # between two writes of the features while images are encoded
THUMBNAIL_SIDE = 384  # in pixels; tiny images, such as scans, are enlarged to at least half of it


class EncodedImages:
    """Images of a project that a backbone has encoded. Features of earlier sessions are read from disk.

    Thumbnails may be made in any thread. For everything else, `Session` holds its lock.

    Args:
        project: Folder of images.
        backbone: Loaded backbone.
        unreadable: Reasons why images are unreadable, by SHA-256, to which further ones are added.

    Attributes:
        features: Unit-norm image features `[d]` by SHA-256.
        file: File of the features.
        thumbnails: Folder of the thumbnails.

    Raises:
        UserError: If the folder of the thumbnails is a link.
    """

    def __init__(self, project: Project, backbone: Backbone, unreadable: dict[str, str]) -> None:
        self.project = project
        self.backbone = backbone
        self.unreadable = unreadable
        self.thumbnails = project.path_of(f"{STATE_FOLDER}/thumbnails/any").parent
        self._key = hash_json({**backbone.fingerprint, "decode": backbone.decode})
        self.file = project.folder / STATE_FOLDER / f"features-{self._key[:16]}.safetensors"
        self.features = self._read_features()
        self._saved = len(self.features)  # number of features on disk
        self._saved_at = 0.0  # time of the last write

    # Encoding

    def missing(self, pictures: Sequence[Picture]) -> list[Picture]:
        """Readable images without features, each image once."""
        by_digest = {picture.digest: picture for picture in pictures}
        return [by_digest[key] for key in by_digest if key not in self.features and key not in self.unreadable]

    def of_classes(self, names: Sequence[str], contents: Contents) -> dict[tuple[str, int], Picture]:
        """Encoded images of the classes `names`, by SHA-256 and label."""
        encoded = {}
        for label, name in enumerate(names):
            for picture in contents.classes[name]:
                if picture.digest in self.features:
                    encoded[picture.digest, label] = picture
        return encoded

    def problems(self, contents: Contents) -> list[str]:
        """Reasons why images are unreadable."""
        return [self.unreadable[p.digest] for p in contents.pictures() if p.digest in self.unreadable]

    def encode_all(self, pictures: Sequence[Picture]) -> None:
        """Encode the missing ones of some images, and save the features.

        Raises:
            UserError: If the features cannot be written at the end.
        """
        for batch in batches(self.missing(pictures)):
            self.encode(batch)
            self.save_in_time()
        self.save()

    def encode_for(self, seconds: float, pictures: Sequence[Picture], stopping: threading.Event) -> None:
        """Encode images, at least `IMAGES_AT_ONCE` and further ones for some seconds, or until `stopping` is set."""
        started = time.monotonic()
        for batch in batches(pictures):
            self.encode(batch)
            if stopping.is_set() or time.monotonic() - started >= seconds:
                return

    def encode(self, pictures: Sequence[Picture]) -> None:
        """Encode images together, and note the unreadable ones."""
        read = dict(zip(pictures, map_in_threads(self._pixels, pictures)))
        for picture, problem in read.items():
            moved = not (self.project.folder / picture.path).exists()  # meanwhile; it is read again at its new place
            if isinstance(problem, str) and not moved:
                self.unreadable[picture.digest] = f"{picture.path} {problem}"
        pixels = {p.digest: image for p, image in read.items() if isinstance(image, Tensor)}
        if pixels:
            rows = self.backbone.encode_images(torch.stack([*pixels.values()]))
            self.features |= zip(pixels, (row.clone() for row in rows))

    def _pixels(self, picture: Picture) -> Tensor | str:
        """Preprocess an image for the backbone and write its thumbnail; returns the reason if it is unreadable."""
        try:
            decoded = self.backbone.preprocess.decoded(self.project.read_bytes(picture))
            pixels = self.backbone.preprocess(decoded)
            image = decoded.pixels
            image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
            factor = max(1, THUMBNAIL_SIDE // (2 * max(image.size)))
            image = image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)
            with suppress(UserError), atomic_path(self._thumbnail_file(picture), self.project.folder) as temporary:
                image.save(temporary, "JPEG", quality=85)  # on a full disk the page shows the file name
            return pixels
        except Exception as error:  # Pillow raises many types for damaged bytes
            return reason(error)

    # Files

    def save(self) -> None:
        """Write new features to disk. Raise UserError if that fails."""
        if len(self.features) != self._saved:
            write_tensors(self.file, self.features, {"backbone": self._key}, self.project.folder)
            self._saved = len(self.features)
            self._saved_at = time.monotonic()

    def save_in_time(self) -> None:
        """Write new features if the last time is `SAVE_SECONDS` ago. A full disk does not stop the encoding."""
        if time.monotonic() - self._saved_at >= SAVE_SECONDS:
            with suppress(UserError):
                self.save()

    def thumbnail(self, picture: Picture) -> Path | None:
        """File of the thumbnail of an image, made if missing; None for an image that is not encoded."""
        path = self._thumbnail_file(picture)
        if not path.is_file() and picture.digest in self.features:
            self._pixels(picture)
        return path if path.is_file() else None

    def _thumbnail_file(self, picture: Picture) -> Path:
        return self.thumbnails / f"{picture.digest}.jpg"

    def _read_features(self) -> dict[str, Tensor]:
        """Read the features of an earlier session by SHA-256.

        The result is empty if another backbone made them, or, with a warning, if the file is unusable.
        """
        if self.file.is_symlink() or not self.file.exists():
            return {}
        try:
            features, metadata = read_tensors(self.file, "features of images")
            if metadata.get("backbone") != self._key:
                return {}
            for row in features.values():
                norm = row.float().norm()
                shape = [self.backbone.width]
                if row.dtype != torch.float32 or list(row.shape) != shape or not has_unit_norm(norm):
                    got = f"{row.dtype} {list(row.shape)} of norm {norm:.3g}".removeprefix("torch.")
                    raise UserError(f"{self.file}: expected float32 rows {shape} of norm 1, got {got}")
            return features
        except UserError as error:
            logger.warning("%s; the images are encoded again", first_line(error))
            return {}


def batches(pictures: Sequence[Picture]) -> Iterator[Sequence[Picture]]:
    """Divide images into batches that are encoded together."""
    for start in range(0, len(pictures), IMAGES_AT_ONCE):
        yield pictures[start : start + IMAGES_AT_ONCE]
