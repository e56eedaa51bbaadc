"""Predictions of a model for concurrent requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from ...datasets.images import MAX_PIXELS, count_pixels, open_upload, reading_upload
from ...features.images import ImageReader
from ...models.images import ImageModel
from ...models.predict.files import PredictionRow, json_value
from ...models.predict.prediction import default_batch_size, rows_of
from ...utils.errors import UserError
from .batches import Batcher
from .pixels import PixelBudget, check_pixels
from .settings import MAX_DECODING_PIXELS, MAX_EXAMPLE_PIXELS, MAX_REQUEST_PIXELS

Upload = tuple[str, bytes]  # name and bytes of an image file


class Server:
    """Predictions of a model for concurrent requests, equal to those of the command `predict`.

    Attributes:
        model: The model with its backbone. A request uses one model from its start to its end.
        features: Batches of the pixels of images; the result of an image is its unit-norm features `[1, d]`.
        decoding: Pixels of the images that are being decoded.
        waiting: Pixels of the decoded images of `opened`.
    """

    def __init__(self, model: ImageModel) -> None:
        self.model = model
        self.reader = ImageReader(model.backbone.preprocess)
        self.features = Batcher[Tensor, Tensor](self._features, default_batch_size(model.backbone.input_size))
        self.decoding = PixelBudget(MAX_DECODING_PIXELS)
        self.waiting = PixelBudget(MAX_EXAMPLE_PIXELS)

    def _features(self, pixels: Sequence[Tensor]) -> Sequence[Tensor]:
        return self.model.backbone.encode_images(self.reader.finish(torch.stack([*pixels]))).split(1)

    def _read(self, data: bytes) -> Tensor | str:
        """Pixels of an image, or the reason why it cannot be read."""
        try:
            with reading_upload(data):
                decoded = self.reader.transform.decoded(data, MAX_PIXELS)
        except UserError as error:
            return str(error)
        return self.reader.transform(decoded)

    async def encode(self, images: Sequence[Upload], max_pixels: int | None = None) -> tuple[list[str], Tensor]:
        """Encode images. Only so many of them are decoded at once as `decoding` allows.

        Args:
            images: The images.
            max_pixels: Number of pixels that the images of a request may have together; None for images that no client
                put into one request.

        Returns:
            For each image, the reason why it cannot be read, or ""; and the features of the readable images.

        Raises:
            UserError: If the images have more than `max_pixels` together.
        """
        sizes = await self._sizes(images)
        if max_pixels is not None:
            check_pixels(sizes, max_pixels)

        async def read(data: bytes, size: int) -> Tensor | str:
            async with self.decoding.take(size):
                return await asyncio.to_thread(self._read, data)

        results = await asyncio.gather(*(read(data, size) for (_, data), size in zip(images, sizes)))
        rows = await self.features([pixels for pixels in results if isinstance(pixels, Tensor)])
        problems = [result if isinstance(result, str) else "" for result in results]
        return problems, torch.cat([torch.zeros(0, self.model.backbone.width), *rows])

    @asynccontextmanager
    async def opened(self, images: Sequence[Upload]) -> AsyncIterator[list[Image]]:
        """Context with decoded images. They are decoded one after another, and their pixels count until its end.

        Raises:
            UserError: If an image is unreadable, or the images have too many pixels together.
        """
        sizes = await self._sizes(images)
        check_pixels(sizes, MAX_EXAMPLE_PIXELS)
        async with self.waiting.take(sum(sizes)):
            opened = []
            for (name, data), size in zip(images, sizes):
                async with self.decoding.take(size):
                    opened.append(await asyncio.to_thread(open_named, name, data))
            yield opened

    async def _sizes(self, images: Sequence[Upload]) -> list[int]:
        """Number of pixels of each image, from its header."""
        return await asyncio.to_thread(lambda: [count_pixels(data) for _, data in images])

    async def predict(
        self, images: Sequence[Upload], top: int, open_set: float | None, coverage: float | None = None
    ) -> dict[str, Any]:
        """Classify images, with prediction sets if there is a coverage.

        Raises:
            UserError: If the model has no threshold for open-set rejection or the coverage, or the images have too many
                pixels together.
        """
        model = self.model
        if open_set is not None:
            model.model.check_open_set(open_set)
        if coverage is not None:
            model.model.set_threshold(coverage)
        problems, features = await self.encode(images, MAX_REQUEST_PIXELS)
        readable = [name for (name, _), problem in zip(images, problems) if not problem]
        logits = model.logits(features)
        sets = None if coverage is None else model.model.prediction_sets(features, logits, coverage)
        predicted = rows_of(model.model, readable, logits, top, open_set, sets)
        asked = open_set is not None, coverage is not None
        return {"predictions": [json_value(row, *asked) for row in merge(images, problems, predicted)]}


def merge(
    images: Sequence[Upload], problems: Sequence[str], predicted: Iterator[PredictionRow]
) -> Iterator[PredictionRow]:
    """Iterate over the rows of all images, from the rows of the readable ones."""
    for (name, _), problem in zip(images, problems):
        yield PredictionRow(name, error=problem) if problem else next(predicted)


def open_named(name: str, data: bytes) -> Image:
    """Open an uploaded image; UserError with its name if it is unreadable."""
    try:
        return open_upload(data)
    except UserError as error:
        raise UserError(f"image {name!r} {error}") from error
