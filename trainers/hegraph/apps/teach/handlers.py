"""Requests of the page: changes of the project, the parts of the page, exports, and the comparison of backbones.

The functions that `page.py` publishes get one JSON object and return one. They never raise: an error is the value
`problem` of the answer.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote
from uuid import uuid4

from pydantic import Field

from ...estimator.model_selection.candidates import parse_candidate
from ...models.export.onnx_file import require_packages, write_onnx
from ...models.folder import save_model
from ...models.images import ImageModel
from ...utils.errors import UserError
from ...utils.reading import LenientModel, validate
from ...utils.text import one_line
from ..demo.drawing import as_png, ink_of_canvas, scan_of_ink
from ..demo.page import Answers, uploaded_file
from .backbone_table import compare_backbones, table_html
from .board import FIRST_THUMBS, Board
from .contents import Picture, images
from .sample import sample_images
from .uploads import read_upload
from .worker import Worker

Outcome = tuple[str, str]  # of an action: message, and description of a problem; "" for none


class Upload(NamedTuple):
    """Uploaded file: its path on this machine, and its path on the machine of the user, within a dropped folder."""

    path: str
    name: str


class Request(LenientModel):
    """Request of the page. `do` is the action; the other fields name its objects."""

    do: str = ""
    place: str = ""
    to: str = ""
    name: str = ""
    digest: str = ""
    image: str = ""
    images: list[Picture] = Field(default=[], strict=False)
    files: list[Upload] = Field(default=[], strict=False)
    failed: list[str] = Field(default=[])
    drawing: str = ""
    number: int = -1
    limit: int = FIRST_THUMBS
    offline: bool = True


class Teacher:
    """Handlers of the page.

    Args:
        worker: Threads of the session.
        uploads: Gradio's folder of uploads, which also gets the exported files.
    """

    def __init__(self, worker: Worker, uploads: Path) -> None:
        self.worker = worker
        self.session = worker.session
        self.uploads = uploads
        self.board = Board(worker)

    def answers(self) -> Answers:
        """Answers of the latest model."""
        session = self.session

        def thumbnail(position: int) -> str:
            pictures = session.view.trained_on  # another tab may have changed them
            path = session.encoded_images.thumbnail(pictures[position]) if position < len(pictures) else None
            return file_url(path) if path else ""

        return Answers(session.model, thumbnail, self.uploads, session.has_digits(session.view.contents.classes))

    def functions(self) -> list[Callable[[Any], dict[str, Any]]]:
        """Functions that the script of the page calls."""

        def answering(handle: Callable[[Request], dict[str, Any]], name: str) -> Callable[[Any], dict[str, Any]]:
            def function(value: Any) -> dict[str, Any]:
                try:
                    self.worker.note_request()
                    return handle(validate(Request, value, "the request"))
                except UserError as error:
                    return {"problem": one_line(f"Error: {error}")}

            function.__name__ = name
            return function

        handlers = (self.changes, self.act, self.thumbs, self.export, self.compare)
        return [answering(handle, f"teach_{handle.__name__}") for handle in handlers]

    def changes(self, request: Request) -> dict[str, Any]:
        """Parts of the page that changed after version `number`."""
        return self.board.changes(request.number)

    def act(self, request: Request) -> dict[str, Any]:
        """Perform an action. The answer has its message, and the parts that changed after version `number`."""
        message = problem = ""
        try:
            message, problem = self.do(request)
            self.session.refresh(quick=True)
        except UserError as error:
            problem = one_line(f"Error: {error}")
        finally:
            self.worker.wake()
        return {"message": message, "problem": problem, **self.board.changes(request.number)}

    def thumbs(self, request: Request) -> dict[str, Any]:
        """Images of a place, at most `limit`."""
        return self.board.thumbs(request.place, request.limit)

    def do(self, request: Request) -> Outcome:
        """Perform one action on the project. Raise UserError if it is refused."""
        project = self.session.project
        picture = Picture(request.image, request.digest)
        place = request.place
        to = request.to
        actions: dict[str, Callable[[], str | None]] = {
            "add-class": lambda: f"Class {project.add_class(request.name)} added; drop images on it",
            "rename": lambda: f"Class {place} renamed to {project.rename_class(place, request.name)}",
            "delete": lambda: project.delete_class(place),
            "move": lambda: project.move(request.images or [picture], to),
            "accept": lambda: f"{images(project.accept(self.session.view.acceptable))} accepted; Undo takes all back",
            "confirm": lambda: project.confirm(picture),
            "keep-in": lambda: project.keep_in_one_class(picture.digest, to),
            "undo": lambda: f"Undone: {project.undo()}",
            "stop": self.session.stopping.set,
            "resume": self.session.stopping.clear,
            "switch": lambda: self.switch(to),
        }
        additions: dict[str, Callable[[], Outcome]] = {
            "add": lambda: self.add_uploads(request),
            "zip": lambda: self.add_uploads(request),
            "draw": lambda: self.add_drawing(place, request.drawing),
            "sample": self.add_sample,
        }
        if request.do in additions:
            return additions[request.do]()
        return (actions[request.do]() or "", "") if request.do in actions else ("", "Unknown action")

    # Additions

    def add_drawing(self, place: str, drawing: str) -> Outcome:
        """Add the digit on the canvas."""
        if not drawing:
            raise UserError("the canvas is empty")
        scan = as_png(scan_of_ink(ink_of_canvas(drawing)))
        return self.summarize([self.session.project.add(place, [(f"drawing-{uuid4().hex[:8]}.png", scan)])])

    def add_sample(self) -> Outcome:
        """Add the images of the example project."""
        files = ((f"{place}/{name}", as_png(image)) for place, name, image in sample_images())
        return self.summarize([self.session.project.add_folders(files)])

    def add_uploads(self, request: Request) -> Outcome:
        """Add uploaded images or zip files, and delete the uploads. Without a place, folders are classes."""
        project = self.session.project
        files = {uploaded_file(each.path, self.uploads): each.name for each in request.files}
        problems = [f"{name} did not arrive, or is too large" for name in request.failed]
        contents = ((name, read_upload(path.open("rb"))) for path, name in files.items())
        try:
            if request.do == "zip":
                results = [self.add_zip(path, name) for path, name in files.items()]
            elif request.place:
                results = [project.add(request.place, contents)]
            else:
                results = [project.add_folders(contents)]
            return self.summarize(results, problems)
        finally:
            for path in files:
                path.unlink(missing_ok=True)

    def add_zip(self, path: Path, name: str) -> tuple[int, list[str]]:
        """Add an uploaded zip file, as `Project.add_zip`. Errors contain the name on the user's machine."""
        try:
            return self.session.project.add_zip(path)
        except UserError as error:
            return 0, [str(error).replace(str(path), name)]

    def summarize(self, results: Iterable[tuple[int, list[str]]], problems: Sequence[str] = ()) -> Outcome:
        """Sum up results of `Project.add` with further problems, and resume the encoding."""
        self.session.stopping.clear()
        count = sum(number for number, _ in results)
        refused = [problem for _, more in results for problem in more]
        all_problems = [*problems, *refused]
        problem = one_line(f"Not added: {'; '.join(all_problems)}") if all_problems else ""
        message = f"{images(count)} added" if count else ""
        return message, problem

    # Backbones and exports

    def compare(self, request: Request) -> dict[str, Any]:
        """Compare backbones on the labelled images; returns the table as HTML."""
        results = compare_backbones(self.session, request.offline)
        return {"html": table_html(results, self.session)}

    def switch(self, chosen: str) -> str:
        """Continue with a backbone that `compare` lists; returns a message."""
        candidate = parse_candidate(chosen, [])
        self.session.switch(candidate.name, candidate.tag)
        return f"The backbone is {chosen}"

    def export(self, request: Request) -> dict[str, Any]:
        """Write the file `name`, "model.zip", "model.onnx" or "project.zip"; returns its URL."""
        path = Path(tempfile.mkdtemp(dir=self.uploads), request.name)
        try:
            self.write_export(request.name, path)
        except UserError as error:
            return {"problem": one_line(f"Error: {error}").replace(str(path), request.name)}
        return {"url": file_url(path)}

    def write_export(self, name: str, path: Path) -> None:
        """Write an exported file. Raise UserError if there is no such file, no model, or no space."""
        if name == "project.zip":
            self.session.project.write_zip(path)
        elif name == "model.zip":
            save_model(self.session.model_to_export(), path.with_name("model"))
            shutil.make_archive(str(path.with_suffix("")), "zip", path.parent, "model")
        elif name == "model.onnx":
            require_packages()
            model, _ = self.session.model()
            write_onnx(model, ImageModel.load(model, "cpu", precision="fp32").backbone, path)
        else:
            raise UserError("there is no such file")


def file_url(path: Path) -> str:
    """URL of a file that Gradio serves."""
    return f"gradio_api/file={quote(str(path))}"
