"""Requests of Label Studio, and its labeling configuration."""

from typing import Annotated, Any, NamedTuple
from xml.etree import ElementTree

from pydantic import AwareDatetime, BaseModel, BeforeValidator, Field

from ...utils.errors import UserError
from ...utils.text import normalized_name

TaskId = Annotated[int, Field(ge=1, lt=2**63)]
ProjectId = Annotated[int, BeforeValidator(lambda value: str(value).partition(".")[0])]  # "ID.TIME"


class Task(BaseModel):
    """Task of a request."""

    id: TaskId
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

    task: TaskId


class Event(BaseModel):
    """Change in a project. The new content is not read from the request, but from Label Studio."""

    action: str
    project: Project
    annotation: Annotation | list[Annotation] = []


class Chosen(BaseModel):
    """Value of a result of `<Choices>`."""

    choices: list[str]


class SubmittedAnnotation(BaseModel):
    """Annotation of Label Studio. Its result is checked when it counts, as an older one may be damaged."""

    id: int
    was_cancelled: bool = False
    updated_at: AwareDatetime
    result: Any = None


class AnnotatedTask(BaseModel):
    """Task of Label Studio with its annotations. Drafts and comments are not read."""

    data: dict[str, Any] = {}
    annotations: list[SubmittedAnnotation]

    @property
    def newest(self) -> SubmittedAnnotation | None:
        """The annotation that counts, of whichever annotator; None if all are cancelled, or there is none."""
        submitted = [each for each in self.annotations if not each.was_cancelled]
        return max(submitted, key=lambda each: each.updated_at, default=None)


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

    def choice_of(self, name: str) -> str | None:
        """Choice with the name of a class, compared as in data sets; None if there is none."""
        key = normalized_name(name)
        return next((choice for choice in self.choices if normalized_name(choice) == key), None)


def read_labeling(config: str) -> Labeling:
    """Read a labeling configuration; UserError if it has no choices of an image."""
    try:
        root = ElementTree.fromstring(config)
    except ElementTree.ParseError as error:
        raise UserError(f"the labeling configuration is damaged: {error}") from error
    images = {tag.get("name"): tag.get("value", "") for tag in root.iter("Image")}
    for tag in root.iter("Choices"):
        image = tag.get("toName")
        if image in images:
            choices = [each.get("alias", each.get("value", "")) for each in tag.iter("Choice")]
            key = images[image].removeprefix("$")
            return Labeling(tag.get("name", ""), str(image), key, choices, tag.get("choice") == "multiple")
    raise UserError('expected <Image name="X"> and <Choices toName="X"> in the labeling configuration')
