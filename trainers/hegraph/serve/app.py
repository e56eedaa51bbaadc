"""FastAPI application of a trained model.

No address and no path in a request is opened. Limits on bytes, pixels, images and requests in flight answer with 413,
422 or 429, and every error is `{"error": "..."}`.

FastAPI is optional, so `serve.__main__` imports this file only to run the server.
"""

# No `from __future__ import annotations`: FastAPI reads the annotations of the handlers.

import asyncio
import hmac
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import torch
from fastapi import FastAPI, File, HTTPException, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline  # /docs loads nothing from other hosts
from PIL.Image import Image
from prometheus_fastapi_instrumentator import Instrumentator
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from torch import Tensor

from .. import __version__
from ..datasets.images import MAX_BYTES, open_upload
from ..models.endpoint import decode_base64
from ..models.images import ImageModel
from ..predict.files import Row, json_value
from ..predict.prediction import Options, default_batch_size, rows_of
from ..utils.errors import UserError, one_line
from ..utils.threads import cores
from .batches import Batcher

SETTINGS = "HEGRAPH_SERVE"  # environment variable with the settings of several workers, as JSON
LOOPBACK = ("127.0.0.1", "localhost", "::1")
MAX_IMAGES = 64  # images of a request
MAX_REQUESTS = 64  # requests in flight
MAX_BODY = 4 * MAX_BYTES  # bytes of a request
HEALTH = "/health"  # needs no token


class Settings(BaseModel):
    """Settings of the server.

    Attributes:
        model: Model folder.
        host: Address on which the server listens.
        token: Secret that every request must have, or "".
        workers: Number of processes of the server.
        device, backbone, pretrained, precision: Arguments of `ImageModel.load`.
        max_requests: Largest number of requests in flight of a worker.
    """

    model: Path
    host: str = LOOPBACK[0]
    token: str = ""
    workers: int = 1
    device: str = "cpu"
    backbone: str = ""
    pretrained: str = ""
    precision: str = "auto"
    max_requests: int = MAX_REQUESTS


class EncodedImage(BaseModel):
    """Image of a JSON request."""

    model_config = ConfigDict(extra="forbid")

    data: str = Field(description="bytes of an image file, encoded in base64")
    name: str = Field(default="", description="name that the answer repeats as `path`")


class ImagesRequest(BaseModel):
    """JSON request with images."""

    model_config = ConfigDict(extra="forbid")

    images: Annotated[list[EncodedImage], Field(min_length=1, max_length=MAX_IMAGES)]


Top = Annotated[int, Query(ge=1, description="number of classes of an image, for a model with one label per image")]
OpenSet = Annotated[float | None, Query(gt=0, lt=1, description="rate of known images to accept, such as 0.95")]
Files = Annotated[list[UploadFile], File(description="image files")]


def create_app(settings: Settings) -> FastAPI:
    """Create the application of a model, which is loaded at once.

    Raises:
        UserError: As of `ImageModel.load`.
    """
    arguments = settings.device, settings.backbone, settings.pretrained, settings.precision
    server = Server(ImageModel.load(settings.model, *arguments))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(server.logits.run())
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    app = FastAPIOffline(title=f"HeGraphAdapter: {settings.model.name}", version=__version__, lifespan=lifespan)
    app.add_middleware(Limits, settings=settings)
    if settings.host in LOOPBACK:  # a web page cannot reach the server under another name of this machine
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, "[::1]"])
    for kind in (StarletteHTTPException, RequestValidationError, UserError):
        app.add_exception_handler(kind, answer_error)
    Instrumentator().instrument(app).expose(app)

    @app.post("/v1/predict", summary="Classify images in base64")
    async def predict(request: ImagesRequest, top: Top = 5, open_set: OpenSet = None) -> dict[str, Any]:
        """Classify images that are encoded in base64. An unreadable image has `error` in place of classes."""
        return await server.predict(
            [(image.name, decode_base64(image.data)) for image in request.images], top, open_set
        )

    @app.post("/v1/predict/files", summary="Classify uploaded files")
    async def predict_files(files: Files, top: Top = 5, open_set: OpenSet = None) -> dict[str, Any]:
        """Classify the files of a form. An unreadable image has `error` in place of classes."""
        if len(files) > MAX_IMAGES:
            raise HTTPException(422, f"expected at most {MAX_IMAGES} images, got {len(files)}; send several requests")
        return await server.predict([(file.filename or "", await file.read()) for file in files], top, open_set)

    @app.get("/v1/model", summary="Describe the model")
    def describe() -> dict[str, Any]:
        """Classes, backbone and origin of the model."""
        saved = server.model.model
        origin = saved.model_dump(mode="json", include={"method", "variant", "trained_on", "scores", "images"})
        return origin | {
            "classes": list(saved.classnames),
            "several_labels": saved.thresholds is not None,
            "backbone": saved.backbone.title,
            "precision": server.model.backbone.precision,
            "version": __version__,
        }

    @app.get(HEALTH, summary="Check that the server answers")
    def health() -> dict[str, str]:
        """State of the server; needs no token."""
        return {"status": "ok"}

    return app


def from_environment() -> FastAPI:
    """Create the application of one of several workers, whose settings are in the environment."""
    settings = Settings.model_validate_json(os.environ[SETTINGS])
    torch.set_num_threads(max(cores() // settings.workers, 1))
    return create_app(settings)


class Server:
    """Predictions of a model for concurrent requests, equal to those of the command `predict`.

    Attributes:
        model: The model with its backbone.
        logits: Batches of opened images; the result of an image is its logits `[1, K]`, or the reason why its pixels
            cannot be used.
    """

    def __init__(self, model: ImageModel) -> None:
        self.model = model
        self.logits = Batcher[Image, Tensor | str](self._logits, default_batch_size(model.backbone.input_size))

    def _logits(self, images: Sequence[Image]) -> list[Tensor | str]:
        [(_, problems, features)] = self.model.encode(images, len(images))
        rows = iter(self.model.logits(features).split(1))
        return [problem or next(rows) for problem in problems]

    async def predict(self, images: Sequence[tuple[str, bytes]], top: int, open_set: float | None) -> dict[str, Any]:
        """Classify images, each as name and bytes of a file.

        Raises:
            UserError: If the model has no threshold for open-set rejection.
        """
        saved, options = self.model.model, Options(top, "jsonl", None, open_set)
        if open_set is not None:
            saved.is_known(torch.zeros(0, len(saved.classnames)), open_set)
        opened = await asyncio.gather(*(asyncio.to_thread(open_or_reason, data) for _, data in images))
        results = iter(await self.logits([image for image in opened if isinstance(image, Image)]))
        rows = []
        for (name, _), image in zip(images, opened):
            result = image if isinstance(image, str) else next(results)
            if isinstance(result, str):
                rows.append(Row(name, error=result))
            else:
                rows += rows_of(saved, [name], result, options)
        return {"predictions": [json_value(row, open_set is not None) for row in rows]}


def open_or_reason(data: bytes) -> Image | str:
    """Open an image from the bytes of a file, or return the reason why it cannot be read."""
    try:
        return open_upload(data)
    except UserError as error:
        return str(error)


def answer_error(request: Request, error: Exception) -> JSONResponse:
    """Answer an exception with `{"error": "..."}`."""
    if isinstance(error, StarletteHTTPException):
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)
    if isinstance(error, RequestValidationError):
        problem = error.errors()[0]
        text = f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
        return JSONResponse({"error": one_line(text)}, 422)
    return JSONResponse({"error": one_line(str(error))}, 422)


class Limits:
    """Middleware that checks the token and limits the requests in flight and their bytes."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app, self.settings, self.in_flight = app, settings, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == HEALTH:
            return await self.app(scope, receive, send)
        if error := self._refusal(Headers(scope=scope)):
            return await answer_error(Request(scope), error)(scope, receive, send)
        self.in_flight += 1
        received = 0

        async def receive_limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY:
                raise too_large()
            return message

        try:
            await self.app(scope, receive_limited, send)
        finally:
            self.in_flight -= 1

    def _refusal(self, headers: Headers) -> HTTPException | None:
        """Error for a request without the token, a busy server, or a large body."""
        sent, expected = headers.get("authorization", ""), f"Bearer {self.settings.token}"
        if self.settings.token and not hmac.compare_digest(sent.encode(), expected.encode()):
            return HTTPException(401, "expected the header Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})
        if self.in_flight >= self.settings.max_requests:
            return HTTPException(429, f"{self.in_flight} requests are in flight; try again later", {"Retry-After": "1"})
        length = headers.get("content-length", "0")
        return too_large() if length.isdecimal() and int(length) > MAX_BODY else None


def too_large() -> HTTPException:
    """Create the error for a request with more than `MAX_BODY` bytes."""
    return HTTPException(413, f"expected at most {MAX_BODY >> 20} MB in a request; send several requests")
