"""FastAPI application of a trained model.

No address and no path in a request is opened. Limits on bytes, pixels, images and requests in flight answer with 413,
422 or 429, and every error is `{"error": "..."}`.

FastAPI is optional, so `commands.serve` imports this file only to run the server.
"""

# No `from __future__ import annotations`: FastAPI reads the annotations of the handlers.

import asyncio
import base64
import hmac
import os
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
from fastapi import FastAPI, File, Form, HTTPException, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline  # /docs loads nothing from other hosts
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_fastapi_instrumentator import Instrumentator
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ... import __version__
from ...datasets.images import MAX_BYTES
from ...estimator.labels import SUSPICIOUS
from ...features.backbones.identity import AUTO
from ...models.endpoint import decode_base64
from ...models.folder import load_model
from ...models.images import ImageModel
from ...utils.errors import UserError
from ...utils.text import one_line
from ...utils.threads import cores
from .label_studio import Backend, LabelStudio, add_label_studio
from .learning import CHANGED, UNKNOWN, Learner
from .server import Server, Upload

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
        learn: Whether requests may change the model; needs a single worker.
        label_studio, label_studio_token: Address of Label Studio, or "", and a token of it; need `learn`.
        max_requests: Largest number of requests in flight of a worker.
    """

    model: Path
    host: str = LOOPBACK[0]
    token: str = ""
    workers: int = 1
    device: str = "cpu"
    backbone: str = ""
    pretrained: str = ""
    precision: str = AUTO
    learn: bool = False
    label_studio: str = ""
    label_studio_token: str = ""
    max_requests: int = MAX_REQUESTS


class Strict(BaseModel):
    """Part of a request, in which unknown keys and parameters are an error."""

    model_config = ConfigDict(extra="forbid")


class EncodedImage(Strict):
    """Image of a JSON request."""

    data: str = Field(description="bytes of an image file, encoded in base64")
    name: str = Field(default="", max_length=4096, description="name that the answer repeats as `path`")


class ImagesRequest(Strict):
    """JSON request with images."""

    images: Annotated[list[EncodedImage], Field(min_length=1, max_length=MAX_IMAGES)]


class LabelledImage(EncodedImage):
    """Image of a JSON request with its labels."""

    labels: list[str] = Field(description="class names; exactly one for a model with one label per image")


class ExamplesRequest(Strict):
    """JSON request with labelled images and further classes."""

    images: Annotated[list[LabelledImage], Field(max_length=MAX_IMAGES)] = []
    classes: list[str] = Field([], description="names of classes, which need no image")


class PredictQuery(Strict):
    """Query of a request for predictions."""

    top: int = Field(5, ge=1, description="number of classes of an image, for a model with one label per image")
    open_set: float | None = Field(None, gt=0, lt=1, description="rate of known images to accept, such as 0.95")


class SuggestQuery(Strict):
    """Query of a request for the images to label next."""

    n: int = Field(20, ge=1, description="number of images to select")
    top: int = Field(3, ge=1, description="number of classes of an image")


class IssuesQuery(Strict):
    """Query of a request for suspicious labels."""

    above: float = Field(SUSPICIOUS, description="lowest score to list")


class RemoveQuery(Strict):
    """Query of a request that removes images and classes."""

    ids: list[str] = Field([], alias="id", description="ids of images")
    classes: list[str] = Field([], alias="class", description="names of classes")


Files = Annotated[list[UploadFile], File(description="image files")]
Labels = Annotated[list[str], Form(description="class names, which all files of the form have")]


def create_app(settings: Settings) -> FastAPI:
    """Create the application of a model, which is loaded at once.

    Raises:
        UserError: As of `ImageModel.load` and `connect`.
    """
    api, server = connect(settings), load_server(settings)
    runs = [server.features.run]

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(run()) for run in runs]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        if isinstance(server, Learner):
            server.close()

    app = FastAPIOffline(title=f"HeGraphAdapter: {settings.model.name}", version=__version__, lifespan=lifespan)
    app.add_middleware(Limits, settings=settings)
    for kind in (StarletteHTTPException, RequestValidationError, UserError):
        app.add_exception_handler(kind, answer_error)
    add_metrics(app)

    @app.post("/v1/predict", summary="Classify images in base64")
    async def predict(request: ImagesRequest, query: Annotated[PredictQuery, Query()]) -> dict[str, Any]:
        """Classify images that are encoded in base64. An unreadable image has `error` in place of classes."""
        return await server.predict(decoded(request.images), query.top, query.open_set)

    @app.post("/v1/predict/files", summary="Classify uploaded files")
    async def predict_files(files: Files, query: Annotated[PredictQuery, Query()]) -> dict[str, Any]:
        """Classify the files of a form. An unreadable image has `error` in place of classes."""
        return await server.predict(await contents(files), query.top, query.open_set)

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

    if isinstance(server, Learner):
        add_learning(app, server)
        if api:
            backend = Backend(server, api, settings.token)
            add_label_studio(app, backend)
            runs.append(backend.run)
    return app


def connect(settings: Settings) -> LabelStudio | None:
    """Connect to Label Studio if it is in the settings; UserError if it does not answer, or refuses the token."""
    if not settings.label_studio:
        return None
    api = LabelStudio(settings.label_studio, settings.label_studio_token)
    api.json("GET", "/api/current-user/whoami")
    return api


def load_server(settings: Settings) -> Server:
    """Load the model; a model that learns is used in the precision of its training by default."""
    saved, precision = load_model(settings.model), settings.precision
    if settings.learn and precision == AUTO:
        precision = saved.backbone.precision
    names = settings.backbone, settings.pretrained
    model = ImageModel.load(saved, settings.device, *names, precision)
    return Learner(settings.model, model, *names) if settings.learn else Server(model)


def add_metrics(app: FastAPI) -> None:
    """Add counts and durations of the requests of this application, and the memory of the process."""
    registry = CollectorRegistry()  # the default one counts the first application of a process only
    ProcessCollector(registry=registry)
    Instrumentator(registry=registry).instrument(app).expose(app)


def add_learning(app: FastAPI, learner: Learner) -> None:
    """Add the requests that change the model, and those that help to label."""

    @app.get("/v1/examples", summary="List the labelled images")
    def list_examples() -> dict[str, Any]:
        """Id and labels of each labelled image of the model."""
        return {"examples": [example._asdict() for example in learner.examples()]}

    @app.post("/v1/examples", summary="Add labelled images in base64, and classes")
    async def add(request: ExamplesRequest) -> dict[str, Any]:
        """Add images and classes, or change the labels of images. Answers with the ids when the model is saved."""
        labels = [image.labels for image in request.images]
        return {"ids": await learner.add(decoded(request.images), labels, request.classes)}

    @app.post("/v1/examples/files", summary="Add labelled files")
    async def add_files(files: Files, labels: Labels) -> dict[str, Any]:
        """Add the files of a form, which all have the same labels. Answers with the ids when the model is saved."""
        return {"ids": await learner.add(await contents(files), [labels] * len(files))}

    @app.delete("/v1/examples", summary="Remove labelled images and classes")
    async def remove(query: Annotated[RemoveQuery, Query()]) -> dict[str, Any]:
        """Remove images by id, and classes by name. Answers when the model is saved."""
        await learner.remove(query.ids, query.classes)
        return {"removed": [*query.ids, *query.classes]}

    @app.post("/v1/suggest", summary="Order unlabelled images in base64")
    async def suggest(request: ImagesRequest, query: Annotated[SuggestQuery, Query()]) -> dict[str, Any]:
        """Select the images to label next; the most useful one comes first."""
        return await learner.suggest(decoded(request.images), query.n, query.top)

    @app.post("/v1/suggest/files", summary="Order unlabelled files")
    async def suggest_files(files: Files, query: Annotated[SuggestQuery, Query()]) -> dict[str, Any]:
        """Select the files of a form to label next; the most useful one comes first."""
        return await learner.suggest(await contents(files), query.n, query.top)

    @app.get("/v1/issues", summary="List suspicious labels")
    def issues(query: Annotated[IssuesQuery, Query()]) -> dict[str, Any]:
        """Labelled images whose label is likely wrong, with a more probable class."""
        return {"issues": learner.issues(query.above)}


def decoded(images: Sequence[EncodedImage]) -> list[Upload]:
    """Name and bytes of the images of a JSON request."""
    return [(image.name, decode_base64(image.data)) for image in images]


async def contents(files: Sequence[UploadFile]) -> list[Upload]:
    """Name and bytes of the files of a form."""
    if len(files) > MAX_IMAGES:
        raise HTTPException(422, f"expected at most {MAX_IMAGES} images, got {len(files)}; send several requests")
    return [(file.filename or "", await file.read()) for file in files]


def from_environment() -> FastAPI:
    """Create the application of one of several workers, whose settings are in the environment."""
    settings = Settings.model_validate_json(os.environ[SETTINGS])
    torch.set_num_threads(max(cores() // settings.workers, 1))
    return create_app(settings)


def answer_error(request: Request, error: Exception) -> JSONResponse:
    """Answer an exception with `{"error": "..."}`."""
    if isinstance(error, StarletteHTTPException):
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)
    if isinstance(error, RequestValidationError):
        problem = error.errors()[0]
        text = f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
        if problem["loc"] == ("body",):  # also JSON without its header, which curl does not send by itself
            text = "body: expected a JSON object, and the header Content-Type: application/json"
        return JSONResponse({"error": one_line(text)}, 422)
    code = error.code if isinstance(error, UserError) else ""
    return JSONResponse({"error": one_line(str(error))}, {UNKNOWN: 404, CHANGED: 409}.get(code, 422))


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
        """Error for a request without the token, of another site, to a busy server, or with a large body."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.settings.host in LOOPBACK and re.sub(r":\d+$", "", host).strip("[]").lower() not in LOOPBACK:
            # A web page could reach the server under another name of this machine
            return HTTPException(400, f"expected a request to {' or '.join(LOOPBACK)}, got one to {host!r}")
        sent, expected = sent_token(headers.get("authorization", "")), self.settings.token
        if expected and not hmac.compare_digest(sent, expected.encode()):
            return HTTPException(401, "expected the header Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})
        other_site = origin is not None and origin.partition("://")[2] != host  # "null" in a sandbox of a page
        if self.settings.learn and not expected and other_site:  # a form needs no CORS
            return HTTPException(403, f"pages of {origin} may not change the model; use a token")
        if self.in_flight >= self.settings.max_requests:
            return HTTPException(429, f"{self.in_flight} requests are in flight; try again later", {"Retry-After": "1"})
        length = headers.get("content-length", "0")
        return too_large() if length.isdecimal() and int(length) > MAX_BODY else None


def sent_token(header: str) -> bytes:
    """Token in a header `Authorization: Bearer TOKEN`, or the password of `Basic`, which Label Studio sends."""
    scheme, _, value = header.partition(" ")
    if scheme != "Basic":
        return value.encode() if scheme == "Bearer" else b""
    try:
        return base64.b64decode(value, validate=True).partition(b":")[2]
    except ValueError:
        return b""


def too_large() -> HTTPException:
    """Create the error for a request with more than `MAX_BODY` bytes."""
    return HTTPException(413, f"expected at most {MAX_BODY >> 20} MB in a request; send several requests")
