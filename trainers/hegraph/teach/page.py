"""The page, made with Gradio: what was done on a board becomes a change of the project, and all is shown anew.

`board.html` makes the boards, and `board.js` sends the clicks on them. Gradio takes seconds to import and is optional,
so this file is imported where the page is made.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import gradio as gr
from PIL import Image

from ..datasets.folder import NONE_OF_THESE
from ..demo.answer import MACROS, answer, template, wrapped
from ..demo.drawing import as_png, ink_of_canvas, scan_of_ink
from ..demo.page import Answers, Page, answer_part, canvas, complaint, html, uploaded_file
from ..export.onnx_file import require_packages, write_onnx
from ..models.folder import save_model
from ..models.images import ImageModel
from ..utils.errors import UserError, one_line
from ..utils.reading import LenientModel, parse_json, validate
from .project import UNLABELLED, Picture, start_of
from .session import LISTED, Session

TEMPLATE = template(Path(__file__).parent / "board.html")
BOARD_JS = (Path(__file__).parent / "board.js").read_text(encoding="utf-8")
BOARDS = ("status", "classes", "check", "label")  # macros of the template
TAKEN = {"model.zip": "Model folder", "model.onnx": "ONNX file", "project.zip": "Whole project"}
NEAREST = 5  # training images that are shown beside an answer
SECONDS = 2  # between two looks at what other tabs have done
ZIP = wrapped('<label class="drop">Open a project.zip<input type="file" data-do="zip" accept=".zip"></label>')


class Upload(LenientModel):
    """A file that was uploaded: where Gradio has put it, and its name on the user's machine."""

    path: str
    name: str


class Teacher(Answers):
    """What the page says of an image that is tried, and the handlers of the boards: what they return is shown, the
    boards and the number of the view.
    """

    def __init__(self, session: Session, uploads: Path) -> None:
        self.session, self.uploads, self.sampled = session, uploads, session.of_digits(session.view.contents.classes)

    def explain(self, picture: Image.Image) -> tuple:
        session, model = self.session, self.session.model()
        feature = session.backbone.encode_images([picture])
        found = answer(model, feature)
        labelled = {p: name for name, pictures in session.view.contents.classes.items() for p in pictures}
        cosines = {p: float(session.features[p.digest] @ feature[0]) for p in labelled if p.digest in session.features}
        nearest = sorted(cosines, key=lambda p: -cosines[p])[:NEAREST]
        shown = [(session.thumbnail(p), f"{labelled[p]}: cosine {cosines[p]:.2f}") for p in nearest]
        pictures = [(str(path), caption) for path, caption in shown if path]
        names, taught = next(iter(found.zero_shot)), found.winner.name
        both = f"say <b>{escape(taught)}</b>, too" if names == taught else f"say <b>{escape(names)}</b>"
        why = f"<h2>Why</h2><p>The images say <b>{escape(taught)}</b>; the names of the classes alone {both}.</p>"
        return wrapped(f"{MACROS.unusual(found)}{why}"), found.adapted, found.zero_shot, pictures or None

    def act(self, drawing: Any, event: gr.EventData) -> Iterator[tuple]:
        """Does what was asked for on a board."""
        data = event._data if isinstance(event._data, dict) else {}
        texts = {key: value for key, value in data.items() if isinstance(value, str)}
        yield from self.shown(lambda: self.do(texts, drawing))

    def shown(self, work: Callable[[], tuple[str, str]] = lambda: ("", "")) -> Iterator[tuple]:
        """The boards after some work, which returns what was done and what is wrong, and while images are encoded."""
        said = problem = ""
        try:
            said, problem = work()
            for _ in self.session.update():
                yield self.boards(said, problem)
        except UserError as error:
            yield self.boards(said, one_line(f"Error: {error}"))

    def boards(self, said: str = "", problem: str = "") -> tuple:
        """`BOARDS` as HTML: the last view, what was done, and what is wrong; and the number of the view."""
        view, session = self.session.view, self.session
        contents = view.contents
        macros = TEMPLATE.make_module({
            "view": view, "contents": contents, "said": said, "problem": problem,
            "draws": self.sampled, "stopped": session.stopping.is_set(),
            "twice": {digest: names for digest, names in contents.classes_of().items() if len(names) > 1},
            "pictures": {picture.digest: picture for picture in contents.pictures()},
            "thumbnail": lambda picture: quote(str(session.thumbnail(picture) or "")),
            "UNLABELLED": UNLABELLED, "NONE_OF_THESE": NONE_OF_THESE,
        })  # fmt: skip
        return (*(str(getattr(macros, name)()) for name in BOARDS), view.number)

    def look(self, seen: int) -> Any:
        """The boards, if another tab has changed something since this one was shown."""
        return self.boards() if seen != self.session.view.number else (gr.skip(),) * (len(BOARDS) + 1)

    def do(self, data: dict[str, str], drawing: Any = None) -> tuple[str, str]:
        """Does one thing to the project; returns what was done, and what of it could not be."""
        project, session = self.session.project, self.session
        picture = Picture(data.get("image", ""), data.get("digest", ""))
        place, to, name = (data.get(key, "") for key in ("place", "to", "name"))
        match data.get("do"):
            case "add-class":
                return f"Class {project.add_class(name)} added; drop images on it", ""
            case "rename":
                return f"Class {place} is called {project.rename_class(place, name)} now", ""
            case "delete":
                project.delete_class(place)
            case "move":
                project.move(picture, to)
            case "keep":
                project.keep(picture)
            case "settle":
                project.settle(picture.digest, to)
            case "draw":
                if not drawing:
                    raise UserError("nothing is drawn")
                scan = as_png(scan_of_ink(ink_of_canvas(drawing)))
                return self.added([project.add(place, [(f"drawing-{uuid4().hex[:8]}.png", scan)])])
            case "add" | "zip":
                return self.sent(place, data)
            case "undo":
                return f"Taken back: {project.undo()}", ""
            case "stop":
                session.stopping.set()
            case "go-on":
                session.stopping.clear()
            case _:
                return "", "This button does nothing"
        return "", ""

    def sent(self, place: str, data: dict[str, str]) -> tuple[str, str]:
        """Adds images or zip files that were uploaded, and says which have not arrived."""
        try:
            uploads = validate(list[Upload], parse_json(data["files"]), "files")
            files = {uploaded_file({"path": each.path}, self.uploads): each.name for each in uploads}
            failed = validate(list[str], parse_json(data["failed"]), "failed")
        except (ValueError, LookupError) as error:
            raise UserError("the files came damaged; send them again") from error
        lost = [f"{name} did not arrive, or is too large" for name in failed]
        try:
            if data["do"] == "zip":
                return self.added([self.add_zip(path, name) for path, name in files.items()], lost)
            images = ((name, start_of(path.open("rb"))) for path, name in files.items())
            return self.added([self.session.project.add(place, images)], lost)
        finally:
            for path in files:
                path.unlink(missing_ok=True)

    def add_zip(self, path: Path, name: str) -> tuple[int, list[str]]:
        """Adds a zip file that was uploaded; returns how many images, and why others were not added."""
        try:
            return self.session.project.add_zip(path)
        except UserError as error:
            return 0, [str(error).replace(str(path), name)]

    def added(self, found: list[tuple[int, list[str]]], lost: Sequence[str] = ()) -> tuple[str, str]:
        """What is said of images that were added, by what the project returned, and of those that were `lost`."""
        self.session.stopping.clear()
        count, problems = sum(each for each, _ in found), [*lost, *(said for _, others in found for said in others)]
        problem = one_line(f"Not added: {'; '.join(problems)}") if problems else ""
        return f"{count} image{'' if count == 1 else 's'} added" if count else "", problem

    # Take along

    def take(self, name: str) -> tuple[str, str | None]:
        """A file to take along: what is wrong with it, as HTML, and its path."""
        path = Path(tempfile.mkdtemp(dir=self.uploads), name)
        try:
            if name == "project.zip":
                self.session.project.write_zip(path)
                return "", str(path)
            model = self.session.model()
            if name == "model.zip":
                save_model(model, path.with_name("model"))
                shutil.make_archive(str(path.with_suffix("")), "zip", path.parent, "model")
            else:
                require_packages()
                write_onnx(model, ImageModel.load(model, "cpu", precision="fp32").backbone, path)
        except UserError as error:
            return complaint(UserError(str(error).replace(str(path), name))), None
        return "", str(path)


def build_page(session: Session, uploads: Path) -> gr.Blocks:
    """The page of a session; `uploads` is where Gradio puts what comes."""
    teacher, board = Teacher(session, uploads), partial(html, js_on_load=BOARD_JS)
    with Page(title=f"Teach {session.project.folder.name}", analytics_enabled=False) as page:
        html(wrapped(f"<h1>{escape(session.project.folder.name)}</h1>"))
        shown = [board("", elem_id="status")]
        drawing: Any = gr.State()
        for name in BOARDS[1:]:
            with gr.Tab(name.title()):
                if name == "classes" and teacher.sampled:
                    with gr.Accordion("Draw an image", open=False, elem_id="draw"):
                        drawing = canvas("sketch")
                shown.append(board("", elem_id=name))
        with gr.Tab("Try"):
            answer_part(page, teacher, "Taught", "Nearest training images")
        with gr.Tab("Take along"):
            zipped = board(ZIP, elem_id="zip")
            said, file = html(""), gr.File(label="File to take along", interactive=False, elem_id="file", visible=True)
            for name, text in TAKEN.items():
                taken = gr.Button(text, elem_id=f"take-{name.replace('.', '-')}")
                taken.click(partial(teacher.take, name), None, [said, file], api_visibility="private")
        seen = gr.State(-1)
        outputs = [*shown, seen]
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        for each in (*shown, zipped):
            each.act(teacher.act, drawing, outputs, trigger_mode="multiple", concurrency_limit=LISTED, **quiet)
        page.load(teacher.shown, None, outputs, **quiet)
        gr.Timer(SECONDS).tick(teacher.look, seen, outputs, concurrency_limit=LISTED, **quiet)
    return page
