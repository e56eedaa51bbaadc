"""Which training images belong to which tasks of Label Studio, in a file beside the model folder."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator

from ...utils.files import write_json
from ...utils.reading import read_json, validate

# Id of the training image of a task; early versions stored it with the numbers of the annotations
ImageId = Annotated[str, BeforeValidator(lambda value: value.get("example") if isinstance(value, dict) else value)]


class Stored(BaseModel):
    """Content of the file.

    Attributes:
        tasks: Id of the training image by project and task.
        originals: Labels that images of the model had before their first annotation, by id.
    """

    tasks: dict[int, dict[int, ImageId]] = {}
    originals: dict[str, list[str]] = {}


class Links:
    """Training images of tasks. A change is on disk before the model changes, so a killed process forgets none.

    Args:
        folder: Model folder.

    Raises:
        UserError: If the file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder.with_name(f".{folder.name}.label_studio.json")
        content: Any = read_json(self.path) if self.path.exists() else {}
        if isinstance(content, dict) and "tasks" not in content:  # earlier versions stored the tasks alone
            content = {"tasks": content}
        self._stored = validate(Stored, content, str(self.path), convert=True)

    @property
    def projects(self) -> Collection[int]:
        """Connected projects."""
        return self._stored.tasks.keys()

    def of(self, project: int) -> Mapping[int, str]:
        """Id of the training image by task of a project."""
        return self._stored.tasks.get(project, {})

    def original(self, image: str) -> list[str] | None:
        """Labels of an image before its first annotation; None if the image came from Label Studio."""
        return self._stored.originals.get(image)

    def connect(self, project: int) -> None:
        """Add a project."""
        if project not in self._stored.tasks:
            self._stored.tasks[project] = {}
            self._write()

    def add(self, project: int, images: Mapping[int, str], examples: Mapping[str, list[str]]) -> None:
        """Add the images of tasks, and remember the labels of those that are in the model already.

        Args:
            project: The project.
            images: Id of the image by task.
            examples: Labels of the images of the model, by id.
        """
        linked = self._linked()
        for image in images.values():
            if image in examples and image not in linked:
                self._stored.originals[image] = examples[image]
        self._stored.tasks.setdefault(project, {}).update(images)
        self._write()

    def unused_without(self, project: int, tasks: Collection[int]) -> set[str]:
        """Images of tasks that no other task has."""
        links = self.of(project)
        remaining = set[str]()
        for other, images in self._stored.tasks.items():
            remaining.update(image for task, image in images.items() if other != project or task not in tasks)
        return {links[task] for task in tasks if task in links} - remaining

    def remove(self, project: int, tasks: Collection[int]) -> None:
        """Remove tasks, after the model was changed."""
        for task in tasks:
            self._stored.tasks[project].pop(task, None)
        linked = self._linked()
        self._stored.originals = {image: row for image, row in self._stored.originals.items() if image in linked}
        self._write()

    def _linked(self) -> set[str]:
        """Images of all tasks."""
        return {image for images in self._stored.tasks.values() for image in images.values()}

    def _write(self) -> None:
        write_json(self.path, self._stored.model_dump())
