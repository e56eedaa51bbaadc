"""Machine learning backend of Label Studio: predictions of tasks, and training on annotations.

Label Studio sends `/setup` when a project is connected, `/predict` for tasks, and `/webhook` after a change. The
annotations, the labeling configuration and the images are read through the API of the server that the command line
names: no other address is opened, and a forged request adds no label. The token that `/setup` contains is not used.

The score of a prediction is the position of its task in the order of `suggest`, from 0 to 1, because Label Studio sorts
tasks by this score. The probability is the score inside the result.
"""

# No `from __future__ import annotations`: FastAPI reads the annotations of the handlers.

import asyncio
import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request
from torch import Tensor

from ...models.images import ImageModel
from ...utils.errors import UserError, first_line
from ...utils.reading import validate
from ...utils.text import normalized_name, one_line
from .errors import declared
from .learning import Learner
from .studio_answers import newest_labels, order_of, results_of
from .studio_api import PAGE, URL, LabelStudio
from .studio_links import Links
from .studio_requests import AnnotatedTask, Event, Labeling, PredictRequest, SetupRequest, Task, read_labeling

logger = logging.getLogger(__name__)

TASKS_AT_ONCE = 32  # images in memory at once
MAX_FEATURES = 50_000  # images whose features stay in memory, 100 MB with width 512
READ_ALL = ("ANNOTATIONS_DELETED", "TASKS_DELETED", "START_TRAINING")  # actions after which all annotations are read
ALL = 0  # stands for all tasks of a project; tasks are numbered from 1
ERRORS = declared(400, 401, 403, 408, 413, 422, 429, 503)
STORING_SECONDS = 60  # until Label Studio has stored the predictions of a request


class Backend:
    """Predictions for Label Studio, and training on its annotations.

    Args:
        learner: The model.
        api: API of Label Studio.
        token: Token of this server, which the webhooks of Label Studio must send; "" for none.

    Raises:
        UserError: If the file of `Links` is damaged.
    """

    def __init__(self, learner: Learner, api: LabelStudio, token: str = "") -> None:
        self.learner = learner
        self.api = api
        self.token = token
        self.links = Links(learner.folder)
        self.features = dict[tuple[int, int], tuple[Any, Tensor]]()  # address and features by project and task
        self.scores = dict[int, tuple[ImageModel, dict[int, float]]]()  # scores of tasks, and their model, by project
        self.waiting = defaultdict[int, set[int]](set)  # tasks to read by project
        self.wake = asyncio.Event()
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
        labeling = read_labeling(request.label_config)
        if labeling.several != several:
            kind = "several labels per image" if several else "one label per image"
            expected = f'expected <Choices choice="{"multiple" if several else "single"}"> in the labeling interface'
            found = f'got choice="{"multiple" if labeling.several else "single"}"'
            remedy = "change it under Settings, Labeling Interface, or connect another model"
            raise UserError(f"{expected} of project {request.project}, as the model has {kind}, {found}; {remedy}")
        first = request.project not in self.webhooks
        self.links.connect(request.project)
        self.webhooks[request.project] = f"{address}/webhook"
        self.schedule(request.project, [ALL] if first else [])
        return {"model_version": self.version}

    def webhook(self, event: Event) -> None:
        """Schedule an update after a change. Deletions do not name their tasks."""
        if event.project.id in self.links.projects:
            annotations = event.annotation if isinstance(event.annotation, list) else [event.annotation]
            self.schedule(event.project.id, [ALL] if event.action in READ_ALL else [each.task for each in annotations])

    def schedule(self, project: int, tasks: Iterable[int]) -> None:
        """Schedule an update of the model from tasks of a project; `ALL` stands for all of them."""
        self.waiting[project].update(tasks)
        self.wake.set()

    async def predict(self, request: PredictRequest) -> dict[str, Any]:
        """Predict tasks, and select the predictions of several tasks in Label Studio as soon as they are stored.

        A task has no choice if its image cannot be read. Its score is 1 if its image cannot be read or is labelled.

        Raises:
            UserError: If the labeling configuration has no choices of an image.
        """
        labeling = read_labeling(request.label_config)
        version = self.version
        model = self.learner.model
        features = await self.encode(request.project, request.tasks, labeling.key)
        scores = await self.scores_of(request.project, model, features)
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

    async def scores_of(self, project: int, model: ImageModel, features: Mapping[int, Tensor]) -> dict[int, float]:
        """Scores of the unlabelled tasks of a project, computed once for each model and each new image.

        Args:
            project: The project.
            model: The model of the request.
            features: Features of tasks, which are among the scored ones unless they are labelled.
        """
        linked = self.links.of(project)
        scored_by, scores = self.scores.get(project, (None, {}))
        if scored_by is not model or not scores.keys() >= features.keys() - linked.keys():
            earlier = {task: row for (other, task), (_, row) in self.features.items() if other == project}
            pool = {task: row for task, row in (earlier | dict(features)).items() if task not in linked}
            scores = await asyncio.to_thread(order_of, model, pool)
            self.scores[project] = model, scores
        return {task: score for task, score in scores.items() if task not in linked}

    async def encode(self, project: int, tasks: Sequence[Task], key: str) -> dict[int, Tensor]:
        """Features `[d]` of the tasks whose image can be read. The last `MAX_FEATURES` stay in memory."""
        addresses = {task.id: task.data.get(key) for task in tasks}
        features = dict[int, Tensor]()
        for task, address in addresses.items():
            known, row = self.features.get((project, task), (None, None))
            if row is not None and known == address:
                features[task] = row
        missing = [task for task in addresses if task not in features]
        for start in range(0, len(missing), TASKS_AT_ONCE):
            part = missing[start : start + TASKS_AT_ONCE]
            files = await asyncio.gather(*(self.file(addresses[task]) for task in part))
            problems, rows = await self.learner.encode([("", file) for file in files])
            for task, file, problem in zip(part, files, problems):
                if file and problem:
                    logger.warning("task %d: %s", task, problem)
            encoded = dict(zip([task for task, problem in zip(part, problems) if not problem], rows))
            features |= encoded
            self.features |= {(project, task): (addresses[task], row) for task, row in encoded.items()}
            self.scores.pop(project, None)
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
            waiting = self.waiting
            self.waiting = defaultdict(set)
            for project, tasks in waiting.items():
                try:
                    await self.update(project, tasks)
                except Exception as error:  # such as a Label Studio that does not answer
                    logger.warning("project %d: %s", project, one_line(first_line(error)))
                    self.waiting[project] |= tasks  # until the next change

    async def update(self, project: int, numbers: set[int]) -> None:
        """Update the model from a project: new classes from its choices, training images from annotations of tasks.

        The webhook of the project gets the token first, if it lacks it. A task that Label Studio cannot show, and an
        image that cannot be learned or removed, are left out with a warning after a second attempt.

        Args:
            project: The project.
            numbers: Its tasks. `ALL`, or more than `PAGE` of them, stand for all tasks.

        Raises:
            UserError: If Label Studio does not answer as expected, so that the update has to be repeated.
        """
        labeling = read_labeling((await self.call("GET", f"/api/projects/{project}/"))["label_config"])
        address = self.webhooks.get(project)
        if self.token and address:
            await self.authorize(project, address)
        read_all = ALL in numbers or len(numbers) > PAGE
        tasks = await self.read_tasks(project, None if read_all else numbers)
        items = [*tasks.items()]
        for start in range(0, max(len(items), 1), TASKS_AT_ONCE):  # also without a task, for new choices
            await self.learn(project, dict(items[start : start + TASKS_AT_ONCE]), labeling)

    async def read_tasks(self, project: int, numbers: Collection[int] | None) -> dict[int, dict[str, Any]]:
        """Tasks with their annotations by number; None reads all tasks that are annotated or have a training image."""
        if numbers is None:
            tasks = await asyncio.to_thread(self.api.annotated_tasks, project)
            return {number: {"annotations": []} for number in self.links.of(project)} | by_number(tasks)
        if not numbers:
            return {}
        without = {number: dict[str, Any](annotations=[]) for number in numbers}
        try:
            return without | by_number(await asyncio.to_thread(self.api.annotated_tasks, project, numbers))
        except UserError as error:
            if error.code == URL:
                raise
        await asyncio.to_thread(self.api.check_tasks, project)  # UserError if Label Studio shows no task at all
        found = dict[int, dict[str, Any]]()
        for number in numbers:
            try:
                tasks = await asyncio.to_thread(self.api.annotated_tasks, project, [number])
            except UserError as error:
                if error.code == URL:
                    raise
                logger.warning("task %d is left out: %s", number, one_line(str(error)))
            else:
                found |= {number: without[number]} | by_number(tasks)
        return found

    async def learn(self, project: int, tasks: Mapping[int, dict[str, Any]], labeling: Labeling) -> None:
        """Add the images of annotated tasks with their labels, and release those of other tasks."""
        examples = {example.id: example.labels for example in self.learner.examples()}
        links = self.links.of(project)
        images = dict[int, tuple[bytes, list[str]]]()
        ended = []
        for number, content in tasks.items():
            try:
                task = validate(AnnotatedTask, content, "its annotations")
                labels = newest_labels(task, labeling)
            except UserError as error:
                logger.warning("task %d is left out: %s", number, one_line(str(error)))
                continue
            if labels is None:
                ended.append(number)
            elif not same_names(examples.get(links.get(number, "")), labels):
                file = await self.file(task.data.get(labeling.key))
                if file:
                    images[number] = file, labels
        known = {normalized_name(name) for name in self.learner.model.model.classnames}
        new = [name for name in labeling.choices if normalized_name(name) not in known]
        try:
            await self.add(project, images, new)
        except UserError as error:  # an image has two labels, or a class needs an image, because the model has no text
            if not images:
                logger.warning("%s", one_line(str(error)))
            for number, image in images.items():
                await self.attempt(number, self.add(project, {number: image}, []))
        ended = [number for number in ended if number in links]
        try:
            await self.release(project, ended)
        except UserError:
            for number in ended:
                await self.attempt(number, self.release(project, [number]))

    async def attempt(self, number: int, change: Any) -> None:
        """Wait for the change of a task; a task that the model refuses is left out with a warning."""
        try:
            await change
        except UserError as error:
            logger.warning("task %d is left out: %s", number, one_line(str(error)))

    async def add(self, project: int, images: Mapping[int, tuple[bytes, list[str]]], classes: list[str]) -> None:
        """Add classes, and the images of tasks, each with its labels.

        The links are written first: a process that is killed between the two knows which images were in the model.
        """
        if not images and not classes:
            return
        files = [(f"task {number}", file) for number, (file, _) in images.items()]
        before = {number: image for number, image in self.links.of(project).items() if number in images}
        examples = {example.id: example.labels for example in self.learner.examples()}
        self.links.add(project, dict(zip(images, await self.learner.identify(files))), examples)
        try:
            await self.learner.add(files, [labels for _, labels in images.values()], classes)
        except BaseException:
            self.links.remove(project, [number for number in images if number not in before])
            self.links.add(project, before, {})
            raise

    async def release(self, project: int, numbers: Collection[int]) -> None:
        """Undo the annotations of tasks: images from Label Studio are removed, others get their earlier labels.

        The links are removed last, so that a change that fails is repeated.
        """
        if not numbers:
            return
        examples = {example.id: example.labels for example in self.learner.examples()}
        ended = self.links.unused_without(project, numbers).intersection(examples)
        originals = {image: self.links.original(image) for image in ended}
        removed = [image for image, labels in originals.items() if labels is None]
        classnames = self.learner.model.model.classnames
        relabelled = {}
        for image, labels in originals.items():
            if labels is not None and labels != examples[image] and {*labels} <= {*classnames}:
                relabelled[image] = labels
        if removed:
            await self.learner.remove(removed)
        if relabelled:
            await self.learner.relabel(relabelled)
        self.links.remove(project, numbers)

    async def authorize(self, project: int, address: str) -> None:
        """Let the webhook of a project send the token; Label Studio creates it without."""
        headers = {"Authorization": f"Bearer {self.token}"}
        for webhook in await self.call("GET", "/api/webhooks/", params={"project": project}):
            if webhook["url"].partition("://")[2] == address and webhook["headers"] != headers:
                await self.call("PATCH", f"/api/webhooks/{webhook['id']}/", json={"headers": headers})


def by_number(tasks: Iterable[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Tasks by number."""
    return {task["id"]: task for task in tasks}


def same_names(names: Collection[str] | None, others: Collection[str]) -> bool:
    """Whether two collections have the same class names; False without the first."""
    return names is not None and {*map(normalized_name, names)} == {*map(normalized_name, others)}


def add_label_studio(router: APIRouter, backend: Backend) -> None:
    """Add the requests of Label Studio to the routes of an application, which must run `backend.run` meanwhile.

    Refusals are logged as well, because Label Studio shows their status only.
    """

    @router.post("/setup", summary="Connect a project of Label Studio", responses=ERRORS)
    async def setup(request: SetupRequest, http: Request) -> dict[str, Any]:
        """Version of the model, which changes with each training."""
        with logged_refusals("/setup"):
            return backend.setup(request, http.url.netloc + http.url.path.removesuffix("/setup"))

    @router.post("/predict", summary="Predict tasks of Label Studio", responses=ERRORS)
    async def predict(request: PredictRequest) -> dict[str, Any]:
        """Choices of tasks, with scores in the order in which the tasks should be labelled."""
        with logged_refusals("/predict"):
            return await backend.predict(request)

    @router.post("/webhook", summary="Update the model after a change in Label Studio", responses=ERRORS)
    async def webhook(event: Event) -> dict[str, Any]:
        """The update follows after the answer."""
        backend.webhook(event)
        return {}


@contextmanager
def logged_refusals(path: str) -> Iterator[None]:
    """Log the refusal of a request to a path."""
    try:
        yield
    except UserError as error:
        logger.warning("refused %s of Label Studio: %s", path, one_line(str(error)))
        raise
