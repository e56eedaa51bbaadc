"""FastAPI application of a trained model.

No address and no path in a request is opened. Limits on bytes, pixels, images, time and requests in progress answer
with 408, 413, 422 or 429, and every error is `{"error": "..."}`.

FastAPI is optional, so `commands.serve` imports this file only to run the server.
"""

# No `from __future__ import annotations`: FastAPI reads the annotations of the handlers.

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, File, Query, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline  # /docs loads nothing from other hosts
from starlette.exceptions import HTTPException as StarletteHTTPException

from ... import __version__
from ...models.endpoint import decode_base64
from ...models.folder import load_model
from ...models.images import ImageModel
from ...utils.errors import UserError
from ..access import Guard, is_loopback
from .access import declared_token, is_open
from .errors import answer_error, declared
from .label_studio import Backend, add_label_studio
from .learning import Learner
from .limits import Limits, Places
from .metrics import add_metrics
from .schemas import (
    AddedAnswer,
    EncodedImage,
    ExamplesAnswer,
    ExamplesForm,
    ExamplesRequest,
    HealthAnswer,
    ImagesForm,
    ImagesRequest,
    IssuesAnswer,
    IssuesQuery,
    ModelAnswer,
    PredictAnswer,
    PredictQuery,
    RemovedAnswer,
    RemoveQuery,
    SuggestAnswer,
    SuggestQuery,
)
from .server import Server, Upload
from .settings import HEALTH, Settings
from .studio_api import LabelStudio

READ_ERRORS = declared(400, 401, 403, 422, 429, 503)
IMAGE_ERRORS = declared(400, 401, 403, 408, 413, 422, 429, 503)
CHANGE_ERRORS = declared(400, 401, 403, 404, 408, 409, 413, 422, 429, 503)
DESCRIPTION = 'Predictions of a trained model. Errors are `{"error": "..."}`.'


def create_app(settings: Settings) -> FastAPI:
    """Create the application of a model, which is loaded at once.

    Raises:
        UserError: If the model cannot be loaded or, with `learn`, not be trained further or is in use, or if Label
            Studio does not answer or refuses the token.
    """
    api = connect(settings)
    server = load_server(settings)
    places = Places()
    backend = None
    if api and isinstance(server, Learner):
        backend = Backend(server, api, settings.token)
    runs = [server.features.run]
    if backend:
        runs.append(backend.run)
    app = FastAPIOffline(
        title=title_of(settings), version=__version__, description=DESCRIPTION, lifespan=lifespan_of(server, runs)
    )
    app.state.places = places
    app.add_middleware(Limits, settings=settings, places=places)
    app.add_middleware(Guard, host=settings.host, token=settings.token, is_open=is_open)
    for kind in (StarletteHTTPException, RequestValidationError, UserError):
        app.add_exception_handler(kind, answer_error)
    add_metrics(app, settings)
    add_health(app)
    router = APIRouter(dependencies=declared_token(settings))
    add_predictions(router, server)
    if isinstance(server, Learner):
        add_learning(router, server)
    if backend:
        add_label_studio(router, backend)
    app.include_router(router)
    return app


def title_of(settings: Settings) -> str:
    """Title of the page: the name of the model folder, or of the output folder whose `model` it is."""
    folder = settings.model.absolute()
    name = folder.parent.name if folder.name == "model" else folder.name
    return f"HeGraphAdapter: {name}"


def lifespan_of(server: Server, runs: Sequence[Callable[[], Coroutine[Any, Any, None]]]) -> Callable[[FastAPI], Any]:
    """Context of the application, in which tasks run until it ends."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(run()) for run in runs]
        yield
        app.state.places.end()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        if isinstance(server, Learner):
            await asyncio.to_thread(server.close)

    return lifespan


def connect(settings: Settings) -> LabelStudio | None:
    """Connect to Label Studio if it is in the settings.

    Raises:
        UserError: If it does not answer or refuses the token, or the network could change the model without a token.
    """
    if not settings.label_studio:
        return None
    if not is_loopback(settings.host) and not settings.token:
        problem = f"{settings.host} opens the requests of Label Studio to the network, and they change the model"
        raise UserError(f"{problem}: give --token-file FILE", "label_studio.open")
    api = LabelStudio(settings.label_studio, settings.label_studio_token)
    api.json("GET", "/api/current-user/whoami")
    return api


def load_server(settings: Settings) -> Server:
    """Load the model; a model that learns is used in the precision of its training by default."""
    arguments = (settings.device, settings.backbone, settings.pretrained, settings.precision)
    if settings.learn:
        return Learner.load(settings.model, *arguments)
    return Server(ImageModel.load(load_model(settings.model), *arguments))


def add_health(app: FastAPI) -> None:
    """Add the request that needs neither a token nor a free place."""

    @app.head(HEALTH, include_in_schema=False)
    @app.get(HEALTH, summary="Check that the server answers", responses=declared(400, 403))
    async def health() -> HealthAnswer:
        """State of the server; needs no token."""
        return HealthAnswer()


def add_predictions(router: APIRouter, server: Server) -> None:
    """Add the predictions and the description of the model."""

    @router.post(
        "/v1/predict",
        summary="Classify images in base64",
        response_model=PredictAnswer,
        response_model_exclude_unset=True,
        responses=IMAGE_ERRORS,
    )
    async def predict(request: ImagesRequest, query: Annotated[PredictQuery, Query()]) -> Any:
        """Classify images that are encoded in base64. An unreadable image has `error` in place of classes."""
        return await server.predict(await decoded(request.images), query.top, query.open_set, query.coverage)

    @router.post(
        "/v1/predict/files",
        summary="Classify uploaded files",
        response_model=PredictAnswer,
        response_model_exclude_unset=True,
        responses=IMAGE_ERRORS,
    )
    async def predict_files(form: Annotated[ImagesForm, File()], query: Annotated[PredictQuery, Query()]) -> Any:
        """Classify the files of a form. An unreadable image has `error` in place of classes."""
        return await server.predict(await contents(form.files), query.top, query.open_set, query.coverage)

    @router.get("/v1/model", summary="Describe the model", response_model=ModelAnswer, responses=READ_ERRORS)
    async def describe() -> Any:
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


def add_learning(router: APIRouter, learner: Learner) -> None:
    """Add the requests that change the model, and those that help to label."""

    @router.get(
        "/v1/examples", summary="List the labelled images", response_model=ExamplesAnswer, responses=READ_ERRORS
    )
    def list_examples() -> Any:
        """Id and labels of each labelled image of the model."""
        return {"examples": [example._asdict() for example in learner.examples()]}

    @router.post(
        "/v1/examples",
        summary="Add labelled images in base64, and classes",
        response_model=AddedAnswer,
        responses=CHANGE_ERRORS,
    )
    async def add(request: ExamplesRequest) -> Any:
        """Add images and classes, or change the labels of images. Answers with the ids when the model is saved."""
        labels = [image.labels for image in request.images]
        return {"ids": await learner.add(await decoded(request.images), labels, request.classes)}

    @router.post(
        "/v1/examples/files", summary="Add labelled files", response_model=AddedAnswer, responses=CHANGE_ERRORS
    )
    async def add_files(form: Annotated[ExamplesForm, File()]) -> Any:
        """Add the files of a form, which all have the same labels. Answers with the ids when the model is saved."""
        return {"ids": await learner.add(await contents(form.files), [form.labels] * len(form.files))}

    @router.delete(
        "/v1/examples",
        summary="Remove labelled images and classes",
        response_model=RemovedAnswer,
        responses=CHANGE_ERRORS,
    )
    async def remove(query: Annotated[RemoveQuery, Query()]) -> Any:
        """Remove images by id, and classes by name. Answers when the model is saved."""
        await learner.remove(query.ids, query.classes)
        return {"removed": [*query.ids, *query.classes]}

    @router.post(
        "/v1/suggest", summary="Order unlabelled images in base64", response_model=SuggestAnswer, responses=IMAGE_ERRORS
    )
    async def suggest(request: ImagesRequest, query: Annotated[SuggestQuery, Query()]) -> Any:
        """Select the images to label next; the most useful one comes first."""
        return await learner.suggest(await decoded(request.images), query.n, query.top)

    @router.post(
        "/v1/suggest/files", summary="Order unlabelled files", response_model=SuggestAnswer, responses=IMAGE_ERRORS
    )
    async def suggest_files(form: Annotated[ImagesForm, File()], query: Annotated[SuggestQuery, Query()]) -> Any:
        """Select the files of a form to label next; the most useful one comes first."""
        return await learner.suggest(await contents(form.files), query.n, query.top)

    @router.get("/v1/issues", summary="List suspicious labels", response_model=IssuesAnswer, responses=READ_ERRORS)
    def issues(query: Annotated[IssuesQuery, Query()]) -> Any:
        """Labelled images whose label is likely wrong, with a more probable class."""
        return {"issues": learner.issues(query.above)}


async def decoded(images: Sequence[EncodedImage]) -> list[Upload]:
    """Name and bytes of the images of a JSON request, decoded one after another outside the event loop."""
    return [(image.name, await asyncio.to_thread(decode_base64, image.data)) for image in images]


async def contents(files: Sequence[UploadFile]) -> list[Upload]:
    """Name and bytes of the files of a form."""
    return [(file.filename or "", await file.read()) for file in files]
