"""Machine learning backend of Label Studio: predictions of tasks, and training on annotations.

Label Studio sends `/setup` when a project is connected, `/predict` for tasks, and `/webhook` after a change. The
annotations, the labeling configuration and the images are read through the API of the server that the command line
names: no other address is opened, and a forged request adds no label. The token that `/setup` contains is not used.

The score of a prediction is the position of its task in the order of `suggest`, from 0 to 1, because Label Studio sorts
tasks by this score. The probability is the score inside the result.
"""

# No `from __future__ import annotations`: FastAPI reads the annotations of the handlers.

import asyncio
import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Any, NamedTuple
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import requests
import torch
from fastapi import APIRouter, Request
from pydantic import BaseModel, BeforeValidator, Field
from requests.adapters import HTTPAdapter
from torch import Tensor
from urllib3 import Retry
from urllib3.exceptions import HTTPError

from ...datasets.images import MAX_BYTES
from ...estimator.labels.suggest import suggest
from ...models.images import ImageModel
from ...utils.errors import UserError, first_line
from ...utils.files import write_json
from ...utils.reading import is_plain_url, read_json, validate
from ...utils.text import one_line, shown
from .learning import Learner

logger = logging.getLogger(__name__)

FILES = ("/data/upload/", "/data/local-files/")  # paths of task files in Label Studio
BUSY = (500, 502, 503)  # answers of a busy Label Studio: with SQLite, "database is locked" is a 500
TIMEOUT = 30  # seconds of a request to Label Studio
PAGE = 100  # tasks of a request to Label Studio
BATCH = 32  # images in memory at once
MAX_FEATURES = 50_000  # images whose features stay in memory, 100 MB with width 512
HAS_ANNOTATION = {"filter": "filter:tasks:total_annotations", "operator": "greater", "type": "Number", "value": 0}
ANNOTATED = {"conjunction": "and", "items": [HAS_ANNOTATION]}  # filters of the Data Manager
READ_ALL = ("ANNOTATIONS_DELETED", "TASKS_DELETED", "START_TRAINING")  # actions after which all annotations are read
URL = "label_studio.url"  # code of errors
ALL = 0  # stands for all tasks of a project; tasks are numbered from 1
STORING_SECONDS = 60  # until Label Studio has stored the predictions of a request

ProjectId = Annotated[int, BeforeValidator(lambda value: str(value).partition(".")[0])]  # "ID.TIME"
# Id of the training image of a task; early versions stored it with the numbers of the annotations
ImageId = Annotated[str, BeforeValidator(lambda value: value.get("example") if isinstance(value, dict) else value)]


class Task(BaseModel):
    """Task of a request."""

    id: int
    data: dict[str, Any]


class PredictRequest(BaseModel):
    """Request for the predictions of tasks."""

    project: ProjectId
    tasks: list[Task]
    label_config: str


class SetupRequest(BaseModel):
    """Request when a project is connected, and before predictions."""

    project: ProjectId
    label_config: str = Field(alias="schema")


class Project(BaseModel):
    """Project of an event."""

    id: int


class Annotation(BaseModel):
    """Annotation of an event, with the number of its task."""

    task: int


class Event(BaseModel):
    """Change in a project. The new content is not read from the request, but from Label Studio."""

    action: str
    project: Project
    annotation: Annotation | list[Annotation] = []


class Labeling(NamedTuple):
    """Choices of a labeling configuration.

    Attributes:
        control: Name of the `<Choices>`.
        image: Name of the `<Image>`.
        key: Key of the address of the image in the data of a task.
        choices: Class names.
        several: Whether an image may have several choices.
    """

    control: str
    image: str
    key: str
    choices: list[str]
    several: bool


def read_labeling(config: str) -> Labeling:
    """Read a labeling configuration; UserError if it has no choices of an image."""
    try:
        root = ElementTree.fromstring(config)
    except ElementTree.ParseError as error:
        raise UserError(f"the labeling configuration is damaged: {error}") from error
    images = {tag.get("name"): tag.get("value", "") for tag in root.iter("Image")}
    for tag in root.iter("Choices"):
        if (image := tag.get("toName")) in images:
            choices = [each.get("alias", each.get("value", "")) for each in tag.iter("Choice")]
            key = images[image].removeprefix("$")
            return Labeling(tag.get("name", ""), str(image), key, choices, tag.get("choice") == "multiple")
    raise UserError('expected <Image name="X"> and <Choices toName="X"> in the labeling configuration')


class LabelStudio:
    """API of a Label Studio server.

    Args:
        url: Address of the server.
        token: Personal access token, which is exchanged for access tokens of some minutes, or a legacy token.

    Raises:
        UserError: If the address is no plain URL. Of all methods: if the server does not answer as expected.
    """

    def __init__(self, url: str, token: str) -> None:
        self.url, self._token, self._header = url.rstrip("/"), token, ""
        if not is_plain_url(url):  # the message does not repeat it, as it may contain a password
            expected = "expected a URL of Label Studio such as http://localhost:8080"
            raise UserError(f"{expected}, with no user, password, query or fragment", URL)
        self._session = requests.Session()
        self._session.auth = self._authorize  # a function, so that ~/.netrc is not read
        again = Retry(2, backoff_factor=0.5, status_forcelist=BUSY, allowed_methods=None, raise_on_status=False)
        self._session.mount(self.url, HTTPAdapter(max_retries=again))

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = self._header
        return request

    def _send(self, method: str, path: str, **arguments: Any) -> requests.Response:
        try:
            return self._session.request(
                method, self.url + path, allow_redirects=False, stream=True, timeout=TIMEOUT, **arguments
            )
        except requests.RequestException as error:
            problem = f"cannot reach Label Studio at {self.url}: {type(error).__name__}"
            raise UserError(problem, URL) from error

    def request(self, method: str, path: str, **arguments: Any) -> requests.Response:
        """Send a request, with a new access token if the last one has expired."""
        response = self._send(method, path, **arguments)
        if response.status_code == 401:
            self._header = ""
            self._header = self._new_header()
            response = self._send(method, path, **arguments)
        if response.status_code == 401:
            problem = "expected a personal access token (Account & Settings)"
            raise UserError(f"Label Studio at {self.url} refused the token; {problem}", "label_studio.token")
        if not response.ok or response.is_redirect:
            problem = f"Label Studio at {self.url} answered {response.status_code} to {method} {path}"
            raise UserError(problem, "label_studio.status")
        return response

    def _new_header(self) -> str:
        if "." not in self._token:  # a legacy token
            return f"Token {self._token}"
        response = self._send("POST", "/api/token/refresh", json={"refresh": self._token})
        return f"Bearer {response.json()['access']}" if response.ok else ""

    def json(self, method: str, path: str, **arguments: Any) -> Any:
        """Answer to a request as JSON."""
        try:
            return self.request(method, path, **arguments).json()
        except requests.RequestException as error:
            raise UserError(f"expected Label Studio at {self.url}, got another server", URL) from error

    def annotated_tasks(self, project: int, numbers: Iterable[int] | None = None) -> list[dict[str, Any]]:
        """Tasks of a project that have annotations, or those with some numbers among them."""
        selected = {"all": True, "excluded": []} if numbers is None else {"all": False, "included": [*numbers]}
        query = json.dumps({"filters": ANNOTATED, "selectedItems": selected})
        values = {"project": project, "fields": "all", "query": query, "page_size": PAGE}
        tasks, total = list[dict[str, Any]](), 1
        while len(tasks) < total:
            answer = self.json("GET", "/api/tasks", params=values | {"page": len(tasks) // PAGE + 1})
            tasks, total = tasks + answer["tasks"], answer["total"] if answer["tasks"] else 0
        return tasks

    def file(self, address: Any) -> bytes:
        """Content of a task file; UserError for any other address, and for a large file."""
        with self.request("GET", self.path(address)) as response:
            try:
                content = response.raw.read(MAX_BYTES + 1, decode_content=True)
            except HTTPError as error:
                raise UserError(f"{address}: the download broke off: {type(error).__name__}", URL) from error
        if len(content) > MAX_BYTES:
            raise UserError(f"{address}: expected at most {MAX_BYTES >> 20} MB")
        return content

    def path(self, address: Any) -> str:
        """Path and query of a task file; UserError for an address that is not one of Label Studio's files."""
        with suppress(ValueError):
            url, base = urlsplit(address if isinstance(address, str) else ""), urlsplit(self.url)
            path = f"{url.path}?{url.query}".rstrip("?")
            same = (url.scheme, url.netloc) in (("", ""), (base.scheme, base.netloc))
            inside = url.path.removeprefix(base.path).startswith(FILES)
            if same and inside and ".." not in re.split(r"[/\\=&]", unquote(path)):
                return path.removeprefix(base.path)
        problem = f"expected a file of Label Studio at {self.url}, such as {FILES[0]}1/image.png, got {shown(address)}"
        raise UserError(problem, "label_studio.file")


class Backend:
    """Predictions for Label Studio, and training on its annotations.

    Args:
        learner: The model.
        api: API of Label Studio.
        token: Token of this server, which the webhooks of Label Studio must send; "" for none.
    """

    def __init__(self, learner: Learner, api: LabelStudio, token: str = "") -> None:
        self.learner, self.api, self.token = learner, api, token
        self.path = learner.folder.with_name(f".{learner.folder.name}.label_studio.json")
        links = read_json(self.path) if self.path.exists() else {}
        self.links = validate(dict[int, dict[int, ImageId]], links, str(self.path), convert=True)  # by project and task
        self.features = dict[tuple[int, int], tuple[Any, Tensor]]()  # address and features by project and task
        self.waiting, self.wake = defaultdict[int, set[int]](set), asyncio.Event()
        self.webhooks: dict[int, str] = {}  # address of the webhook of each project, without scheme
        self._shown: set[asyncio.Task] = set()
        self._version: tuple[ImageModel | None, str] = None, ""

    @property
    def version(self) -> str:
        """Name of the current model, which changes with each training."""
        if self._version[0] is not self.learner.model:
            name = f"{self.learner.folder.name} {datetime.now():%Y-%m-%d %H:%M:%S.%f}"
            self._version = self.learner.model, name[:-4]
        return self._version[1]

    # Requests

    def setup(self, request: SetupRequest, address: str) -> dict[str, Any]:
        """Connect a project; UserError if its labeling configuration does not fit the model."""
        several = self.learner.model.model.thresholds is not None
        if read_labeling(request.label_config).several != several:
            raise UserError(f'expected <Choices choice="{"multiple" if several else "single"}"> for this model')
        first = request.project not in self.webhooks
        self.links.setdefault(request.project, {})
        self.webhooks[request.project] = f"{address}/webhook"
        self.schedule(request.project, [ALL] if first else [])
        return {"model_version": self.version}

    def webhook(self, event: Event) -> None:
        """Schedule an update after a change. Deletions do not name their tasks."""
        if event.project.id in self.links:
            annotations = event.annotation if isinstance(event.annotation, list) else [event.annotation]
            self.schedule(event.project.id, [ALL] if event.action in READ_ALL else [each.task for each in annotations])

    def schedule(self, project: int, tasks: Iterable[int]) -> None:
        """Schedule an update of the model from tasks of a project; `ALL` stands for all of them."""
        self.waiting[project].update(tasks)
        self.wake.set()

    async def predict(self, request: PredictRequest) -> dict[str, Any]:
        """Predict tasks. A task whose image cannot be read has no choice."""
        labeling, version, model = read_labeling(request.label_config), self.version, self.learner.model
        features = await self.encode(request.project, request.tasks, labeling.key)
        earlier = {task: row for (project, task), (_, row) in self.features.items() if project == request.project}
        linked = self.links.get(request.project, {})
        pool = {task: row for task, row in (earlier | features).items() if task not in linked}
        scores = await asyncio.to_thread(scores_of, model, pool)
        results = dict(zip(features, results_of(model, [*features.values()], labeling)))
        if len(request.tasks) > 1:
            showing = asyncio.create_task(self.select_version(request.project, version))
            self._shown.add(showing)
            showing.add_done_callback(self._shown.discard)
        answers = [
            {"result": results.get(task.id, []), "score": scores.get(task.id, 1.0), "model_version": version}
            for task in request.tasks
        ]
        return {"results": answers, "model_version": version}

    async def encode(self, project: int, tasks: Sequence[Task], key: str) -> dict[int, Tensor]:
        """Features `[d]` of the tasks whose image can be read. The last `MAX_FEATURES` stay in memory."""
        addresses = {task.id: task.data.get(key) for task in tasks}
        features = dict[int, Tensor]()
        for task, address in addresses.items():
            known, row = self.features.get((project, task), (None, None))
            if row is not None and known == address:
                features[task] = row
        missing = [task for task in addresses if task not in features]
        for start in range(0, len(missing), BATCH):
            part = missing[start : start + BATCH]
            files = await asyncio.gather(*(self.file(addresses[task]) for task in part))
            problems, rows = await self.learner.encode([("", file) for file in files])
            for task, file, problem in zip(part, files, problems):
                if file and problem:
                    logger.warning("task %d: %s", task, problem)
            encoded = dict(zip([task for task, problem in zip(part, problems) if not problem], rows))
            features |= encoded
            self.features |= {(project, task): (addresses[task], row) for task, row in encoded.items()}
        for oldest in [*self.features][:-MAX_FEATURES]:
            del self.features[oldest]
        return features

    async def file(self, address: Any) -> bytes:
        """Content of a task file, or b"" with a warning."""
        try:
            return await asyncio.to_thread(self.api.file, address)
        except UserError as error:
            logger.warning("%s", one_line(str(error)))
            return b""

    async def select_version(self, project: int, version: str) -> None:
        """Select the predictions of a version in a project, as soon as Label Studio has stored them.

        Label Studio sorts tasks by the scores of the selected version only.
        """
        try:
            for _ in range(STORING_SECONDS):
                await asyncio.sleep(1)
                if version in await self.call("GET", f"/api/projects/{project}/model-versions"):
                    await self.call("PATCH", f"/api/projects/{project}/", json={"model_version": version})
                    return
        except UserError as error:
            logger.warning("%s", one_line(str(error)))

    async def call(self, method: str, path: str, **arguments: Any) -> Any:
        """Answer of Label Studio's API."""
        return await asyncio.to_thread(self.api.json, method, path, **arguments)

    # Changes

    async def run(self) -> None:
        """Update the model after changes, until the task is cancelled."""
        while True:
            await self.wake.wait()
            self.wake.clear()
            waiting, self.waiting = self.waiting, defaultdict(set)
            for project, tasks in waiting.items():
                try:
                    await self.update(project, tasks)
                except Exception as error:  # such as a Label Studio that does not answer
                    logger.warning("project %d: %s", project, one_line(first_line(error)))
                    self.waiting[project] |= tasks  # until the next change

    async def update(self, project: int, numbers: set[int]) -> None:
        """Update the classes from the labeling configuration, and the training images from the annotations of tasks."""
        labeling = read_labeling((await self.call("GET", f"/api/projects/{project}/"))["label_config"])
        if self.token and (address := self.webhooks.get(project)):
            await self.authorize(project, address)
        links, selected = self.links[project], None if ALL in numbers or len(numbers) > PAGE else numbers
        tasks: dict[int, Any] = {number: {"annotations": []} for number in (links if selected is None else selected)}
        if numbers:
            annotated = await asyncio.to_thread(self.api.annotated_tasks, project, selected)
            tasks |= {task["id"]: task for task in annotated}
        items = [*tasks.items()]
        for start in range(0, max(len(items), 1), BATCH):  # also without a task, for new choices
            await self.learn(links, dict(items[start : start + BATCH]), labeling)
        write_json(self.path, self.links)

    async def learn(self, links: dict[int, str], tasks: dict[int, dict[str, Any]], labeling: Labeling) -> None:
        """Add the images of annotated tasks with their labels, and remove those of other tasks."""
        examples = {example.id: sorted(example.labels) for example in self.learner.examples()}
        images, removed = dict[int, tuple[bytes, list[str]]](), set[str]()
        for number, task in tasks.items():
            labels = labels_of(task, labeling)
            if labels is None:
                removed.add(links.pop(number, ""))
            elif examples.get(links.get(number, "")) == sorted(labels):
                continue
            elif file := await self.file(task["data"].get(labeling.key)):
                images[number] = file, labels
        new = [name for name in labeling.choices if name not in self.learner.model.model.classnames]
        try:
            await self.add(links, images, new)
        except UserError:  # an image has two labels, or a class needs an image, because the model has no text
            for number, image in images.items():
                try:
                    await self.add(links, {number: image}, [])
                except UserError as error:
                    logger.warning("%s", one_line(str(error)))
        used = {example for row in self.links.values() for example in row.values()}  # by another task with this image
        if removed := removed.intersection(examples) - used:
            await self.learner.remove([*removed])

    async def add(self, links: dict[int, str], images: dict[int, tuple[bytes, list[str]]], classes: list[str]) -> None:
        """Add classes, and the images of tasks, each with its labels."""
        if images or classes:
            files = [(f"task {number}", file) for number, (file, _) in images.items()]
            ids = await self.learner.add(files, [labels for _, labels in images.values()], classes)
            links |= zip(images, ids)

    async def authorize(self, project: int, address: str) -> None:
        """Let the webhook of a project send the token; Label Studio creates it without."""
        headers = {"Authorization": f"Bearer {self.token}"}
        for webhook in await self.call("GET", "/api/webhooks/", params={"project": project}):
            if webhook["url"].partition("://")[2] == address and webhook["headers"] != headers:
                await self.call("PATCH", f"/api/webhooks/{webhook['id']}/", json={"headers": headers})


def labels_of(task: dict[str, Any], labeling: Labeling) -> list[str] | None:
    """Labels of the newest annotation of a task; None without an annotation, and for a skipped task."""
    submitted = [each for each in task["annotations"] if not each["was_cancelled"]]
    for annotation in sorted(submitted, key=lambda each: each["updated_at"])[-1:]:
        for item in annotation["result"]:
            if item["from_name"] == labeling.control:
                return item["value"]["choices"]
    return None


def scores_of(model: ImageModel, pool: dict[int, Tensor]) -> dict[int, float]:
    """Scores of unlabelled tasks from their features: 0 for the task to label first, below 1 for the last."""
    if not pool:
        return {}
    tasks, features, thresholds = [*pool], torch.stack([*pool.values()]), model.model.thresholds
    if thresholds is None:
        order = suggest(model.model, features, len(tasks))
    else:  # first the image with the logit that is nearest to its threshold
        order = (model.logits(features) - thresholds).abs().amin(dim=1).argsort(stable=True).tolist()
    return {tasks[index]: rank / len(tasks) for rank, index in enumerate(order)}


def results_of(model: ImageModel, features: Sequence[Tensor], labeling: Labeling) -> list[list[dict[str, Any]]]:
    """Results of images with features `[d]` each: predicted choices, and the probability of the least probable one.

    Classes that are no choices of the project are not predicted.
    """
    saved = model.model
    columns = [index for index, name in enumerate(saved.classnames) if name in labeling.choices]
    if not columns or not features:
        return [[] for _ in features]
    logits = model.logits(torch.stack([*features]))[:, columns]
    probabilities = saved.calibrate(logits)
    if saved.thresholds is None:
        chosen = logits.argmax(dim=1, keepdim=True) == torch.arange(len(columns))
    else:
        chosen = logits >= saved.thresholds[columns]
    results = []
    for row, values in zip(chosen, probabilities):
        names = [saved.classnames[columns[index]] for index in row.nonzero().flatten().tolist()]
        result = {"from_name": labeling.control, "to_name": labeling.image, "type": "choices"}
        score = {"value": {"choices": names}, "score": round(float(values[row].min()), 4)} if names else {}
        results.append([result | score] if names else [])
    return results


def add_label_studio(app: APIRouter, backend: Backend) -> None:
    """Add the requests of Label Studio to the routes of an application, which must run `backend.run` meanwhile."""

    @app.post("/setup", summary="Connect a project of Label Studio")
    async def setup(request: SetupRequest, http: Request) -> dict[str, Any]:
        """Version of the model, which changes with each training."""
        return backend.setup(request, http.url.netloc + http.url.path.removesuffix("/setup"))

    @app.post("/predict", summary="Predict tasks of Label Studio")
    async def predict(request: PredictRequest) -> dict[str, Any]:
        """Choices of tasks, with scores in the order in which the tasks should be labelled."""
        return await backend.predict(request)

    @app.post("/webhook", summary="Update the model after a change in Label Studio")
    async def webhook(event: Event) -> dict[str, Any]:
        """The update follows after the answer."""
        backend.webhook(event)
        return {}
