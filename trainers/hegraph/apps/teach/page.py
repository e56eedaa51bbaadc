"""Gradio page of a session. Each action on a board changes the project, and the session updates all boards.

A *board* is the HTML of one part of the page. `board.html` renders the boards, and `board.js` sends the clicks on them.
Gradio is optional and slow to import, so `commands.teach` imports this file only to build the page.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from html import escape
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote
from uuid import uuid4

import gradio as gr

from ...datasets.folder import NONE_OF_THESE
from ...estimator.model_selection.backbones import advice, recommend, to_frame
from ...estimator.model_selection.candidates import parse_candidate
from ...models.export.onnx_file import require_packages, write_onnx
from ...models.folder import save_model
from ...models.images import ImageModel
from ...utils.errors import UserError
from ...utils.reading import parse_json, validate
from ...utils.text import one_line
from ..demo.answer import styled, template
from ..demo.drawing import as_png, ink_of_canvas, scan_of_ink
from ..demo.page import CAMERA_JS, Answers, Page, add_try, canvas, error_html, html, uploaded_file
from .contents import UNLABELLED, Picture, images
from .project import read_upload
from .session import Session
from .view import MAX_LISTED

CSS = (Path(__file__).parent / "board.css").read_text(encoding="utf-8")
TEMPLATE = template(Path(__file__).parent / "board.html")
BOARD_JS, RECORDER_JS, TABS_JS = (
    (Path(__file__).parent / f"{name}.js").read_text(encoding="utf-8") for name in ("board", "recorder", "tabs")
)
BOARDS = ("status", "classes", "check", "label")  # macros of the template
TABS = (*BOARDS[1:], "try", "export", "backbone")
OPEN_FIRST_TAB = f"() => document.querySelector('#tab-{TABS[0]}').click()"
EXPORTS = {
    "model.zip": ("Model folder", "Zip file with the model, for <code>predict</code>, <code>demo</code>, "
                  "<code>train-more</code> and Python. Unpack it first."),
    "model.onnx": ("ONNX file", "Model with its image encoder in one file, for programs without torch."),
    "project.zip": ("Whole project", "Zip file with all images and their classes, to continue on another machine."),
}  # fmt: skip
POLL_SECONDS = 2  # between two checks for changes of other tabs
MAX_ACTIONS = MAX_LISTED  # at the same time: one for each listed image
TABS_HTML = str(TEMPLATE.make_module().tabs(TABS))  # type: ignore[attr-defined]
ZIP_CHOOSER = styled('<label class="drop">Open a project.zip<input type="file" data-do="zip" accept=".zip"></label>')

T = TypeVar("T")
Outcome = tuple[str, str]  # of an action: message, and description of a problem; "" for none


class Upload(NamedTuple):
    """Uploaded file: its path on this machine and its name on the machine of the user."""

    path: str
    name: str


class Teacher:
    """Handlers of the page. They return the HTML of all boards and the number of the view."""

    def __init__(self, session: Session, uploads: Path) -> None:
        self.session, self.uploads = session, uploads
        self.accepts_drawings = session.has_digits(session.view.contents.classes)
        self._outcomes: dict[str, Outcome] = {}  # of the last action of each tab of a browser

    def answers(self) -> Answers:
        """Answers of the latest model."""
        session = self.session

        def thumbnail(position: int) -> str:
            pictures = session.view.trained_on  # another tab may have changed them
            path = session.thumbnail(pictures[position]) if position < len(pictures) else None
            return f"gradio_api/file={quote(str(path))}" if path else ""

        return Answers(session.model, thumbnail, self.uploads, self.accepts_drawings)

    def act(self, drawing: Any, event: gr.EventData, request: gr.Request) -> Iterator[tuple]:
        """Handle an event of a board."""
        data = event._data if isinstance(event._data, dict) else {}
        texts = {key: value for key, value in data.items() if isinstance(value, str)}
        yield from self.refresh(lambda: self.do(texts, drawing), request.session_hash or "")

    def load(self) -> Iterator[tuple]:
        """Yield the boards at once, and again as `refresh`."""
        yield self.boards()
        yield from self.refresh()

    def refresh(self, action: Callable[[], Outcome] = lambda: ("", ""), tab: str = "") -> Iterator[tuple]:
        """Run an action of a tab, then yield the boards while images are encoded and changes of labels are tried.

        The boards show the outcome of the last action of the tab, which may be a later one.
        """
        try:
            self._outcomes[tab] = action()
            for _ in chain(self.session.update(), self.session.try_changes()):
                yield self.boards(*self._outcomes[tab])
        except UserError as error:
            self._outcomes[tab] = "", one_line(f"Error: {error}")
            yield self.boards(*self._outcomes[tab])

    def boards(self, message: str = "", problem: str = "") -> tuple:
        """Render the latest view; returns the HTML of `BOARDS` and the number of the view."""
        session = self.session
        view = session.view
        contents = view.contents
        macros = TEMPLATE.make_module({
            "folder": session.project.folder.name, "view": view, "contents": contents,
            "message": message, "problem": problem,
            "accepts_drawings": self.accepts_drawings, "stopped": session.stopping.is_set(),
            "duplicates": {digest: names for digest, names in contents.classes_of().items() if len(names) > 1},
            "pictures": {picture.digest: picture for picture in contents.pictures()},
            "thumbnail": lambda picture: quote(str(session.thumbnail(picture) or "")),
            "UNLABELLED": UNLABELLED, "NONE_OF_THESE": NONE_OF_THESE,
        })  # fmt: skip
        return (*(str(getattr(macros, name)()) for name in BOARDS), view.number)

    def poll(self, number: int, request: gr.Request) -> tuple:
        """Render the boards if another tab has changed the project since the view `number`."""
        if number == self.session.view.number:
            return (gr.skip(),) * (len(BOARDS) + 1)
        return self.boards(*self._outcomes.get(request.session_hash or "", ("", "")))

    def do(self, data: dict[str, str], drawing: Any = None) -> Outcome:
        """Perform one action on the project."""
        session = self.session
        project = session.project
        picture = Picture(data.get("image", ""), data.get("digest", ""))
        moved = received(list[Picture], data, "images") if "images" in data else [picture]
        place, to, name = (data.get(key, "") for key in ("place", "to", "name"))
        actions: dict[str, Callable[[], str | None]] = {
            "add-class": lambda: f"Class {project.add_class(name)} added; drop images on it",
            "rename": lambda: f"Class {place} renamed to {project.rename_class(place, name)}",
            "delete": lambda: project.delete_class(place),
            "move": lambda: project.move(moved, to),
            "confirm": lambda: project.confirm(picture),
            "keep-in": lambda: project.keep_in_one_class(picture.digest, to),
            "undo": lambda: f"Undone: {project.undo()}",
            "stop": session.stopping.set,
            "resume": session.stopping.clear,
        }
        action = data.get("do", "")
        if action in ("add", "zip"):
            return self.add_uploads(place, data)
        if action == "draw":
            return self.add_drawing(place, drawing)
        return (actions[action]() or "", "") if action in actions else ("", "Unknown action")

    def add_drawing(self, place: str, drawing: Any) -> Outcome:
        """Add the digit on the canvas."""
        if not drawing:
            raise UserError("the canvas is empty")
        scan = as_png(scan_of_ink(ink_of_canvas(drawing)))
        return self.summarize([self.session.project.add(place, [(f"drawing-{uuid4().hex[:8]}.png", scan)])])

    def add_uploads(self, place: str, data: dict[str, str]) -> Outcome:
        """Add uploaded images or zip files, and delete the uploads."""
        uploads = received(list[Upload], data, "files")
        files = {uploaded_file(each.path, self.uploads): each.name for each in uploads}
        problems = [f"{name} did not arrive, or is too large" for name in received(list[str], data, "failed")]
        try:
            if data["do"] == "zip":
                return self.summarize([self.add_zip(path, name) for path, name in files.items()], problems)
            contents = ((name, read_upload(path.open("rb"))) for path, name in files.items())
            return self.summarize([self.session.project.add(place, contents)], problems)
        finally:
            for path in files:
                path.unlink(missing_ok=True)

    def add_zip(self, path: Path, name: str) -> tuple[int, list[str]]:
        """Add an uploaded zip file, as `Project.add_zip`. Errors contain the name on the user's machine."""
        try:
            return self.session.project.add_zip(path)
        except UserError as error:
            return 0, [str(error).replace(str(path), name)]

    def summarize(self, results: list[tuple[int, list[str]]], problems: Sequence[str] = ()) -> Outcome:
        """Sum up results of `Project.add` with further problems, and resume the encoding."""
        self.session.stopping.clear()
        count = sum(number for number, _ in results)
        problems = [*problems, *(problem for _, more in results for problem in more)]
        problem = one_line(f"Not added: {'; '.join(problems)}") if problems else ""
        message = f"{images(count)} added" if count else ""
        return message, problem

    def compare(self, offline: bool) -> tuple[Any, str, Any]:
        """Compare backbones; returns the table, the advice or error as HTML, and the choices of `switch`."""
        try:
            results = self.session.compare(offline)
            text = escape(advice(results, *recommend(results)))
        except UserError as error:
            return None, error_html(error), gr.update(choices=[])
        names = [str(result.candidate) for result in results if not result.error]
        return to_frame(results).round(2), styled(f"<p>{text}.</p>"), gr.update(choices=names, value=names[0])

    def switch(self, chosen: str) -> Iterator[tuple]:
        """Continue with a backbone that `compare` lists."""

        def action() -> Outcome:
            if not chosen:
                raise UserError("compare backbones first, and choose one")
            candidate = parse_candidate(chosen, [])
            self.session.switch(candidate.name, candidate.tag)
            return f"The backbone is {chosen}", ""

        yield from self.refresh(action)

    def export(self, name: str) -> tuple[str, str | None]:
        """Write one of `EXPORTS`; returns the error as HTML, and the path of the file."""
        path = Path(tempfile.mkdtemp(dir=self.uploads), name)
        try:
            if name == "project.zip":
                self.session.project.write_zip(path)
                return "", str(path)
            if name == "model.zip":
                save_model(self.session.model_to_export(), path.with_name("model"))
                shutil.make_archive(str(path.with_suffix("")), "zip", path.parent, "model")
            else:
                require_packages()
                model, _ = self.session.model()
                write_onnx(model, ImageModel.load(model, "cpu", precision="fp32").backbone, path)
        except UserError as error:
            return error_html(UserError(str(error).replace(str(path), name))), None
        return "", str(path)


def received(kind: type[T], data: dict[str, str], key: str) -> T:
    """Parse the JSON in the value `key` of an event. Raise UserError if it does not have the type `kind`."""
    try:
        return validate(kind, parse_json(data[key]), key)
    except (ValueError, LookupError) as error:
        raise UserError(f"the {key} arrived damaged; send them again") from error


def panel(name: str) -> gr.Column:
    """Add the panel of a tab."""
    return gr.Column(elem_id=f"panel-{name}")


def build_page(session: Session, uploads: Path) -> gr.Blocks:
    """Build the page of a session. `uploads` is Gradio's folder of uploads."""
    teacher = Teacher(session, uploads)
    board = partial(html, js_on_load=BOARD_JS + CAMERA_JS + RECORDER_JS)
    with Page(title=f"Teach {session.project.folder.name}", analytics_enabled=False, fill_width=True) as page:
        with gr.Column(elem_id="top"):
            boards = [board("", elem_id="status")]
            html(TABS_HTML, js_on_load=TABS_JS)
        drawing: Any = gr.State()
        for name in BOARDS[1:]:
            with panel(name):
                if name == "classes" and teacher.accepts_drawings:
                    with gr.Accordion("Draw an image", open=False, elem_id="draw"):
                        drawing = canvas("sketch")
                boards.append(board("", elem_id=name))
        with panel("try"):
            add_try(teacher.answers())
        with panel("export"):
            error = html("")
            file = gr.File(label="Exported file", interactive=False, render=False, elem_id="file")
            for name, (text, purpose) in EXPORTS.items():
                html(styled(f"<p>{purpose}</p>"))
                exporting = gr.Button(text, elem_id=f"export-{name.replace('.', '-')}")
                exporting.click(partial(teacher.export, name), None, [error, file], api_visibility="private")
            file.render()
            chooser = board(ZIP_CHOOSER, elem_id="zip")
        with panel("backbone"):
            html(styled("<p>Which backbone fits these images? Each image is classified by a model without it.</p>"))
            offline = gr.Checkbox(True, label="Only weights on this machine (others are up to 1.7 GB)")
            comparing = gr.Button("Compare backbones", elem_id="compare-backbones")
            table = gr.Dataframe(interactive=False, elem_id="backbones")
            reason = html("")
            chosen = gr.Dropdown(label="Backbone", choices=[])
            switching = gr.Button("Use this backbone", elem_id="use-backbone")
        number = gr.State(-1)
        outputs = [*boards, number]
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        for each in (*boards, chooser):
            each.act(teacher.act, drawing, outputs, trigger_mode="multiple", concurrency_limit=MAX_ACTIONS, **quiet)
        page.load(None, js=OPEN_FIRST_TAB)
        page.load(teacher.load, None, outputs, **quiet)
        comparing.click(teacher.compare, offline, [table, reason, chosen], api_visibility="private")
        switching.click(teacher.switch, chosen, outputs, **quiet)
        gr.Timer(POLL_SECONDS).tick(teacher.poll, number, outputs, concurrency_limit=MAX_ACTIONS, **quiet)
    return page
