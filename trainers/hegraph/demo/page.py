"""The page, made with Gradio: an image goes in, the answer comes out as HTML.

Gradio takes seconds to import and is an optional package, so this file is imported where the page is made.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from PIL import Image

from ..datasets.digits import CLASSNAMES, load_digits_dataset
from ..models.images import ImageModel
from ..models.thumbnails import read_thumbnail
from ..utils.errors import UserError
from .answer import answer
from .drawing import is_of_digits, scan_of_ink, scan_of_picture
from .inputs import CANVAS_HTML, CANVAS_JS, CHOICE_JS, choice_html, ink_of_canvas
from .inputs import CSS as INPUT_CSS
from .pictures import open_picture
from .render import CSS, answer_page, heading, hint, problem, title, wrapped

HOW_TO_DRAW = (
    "Draw one digit, large. The writers of the training images put a bar through the stem of a seven; so should you."
)
PAGE_CSS = CSS + INPUT_CSS
LIVE = """() => document.querySelector("#answer")?.setAttribute("aria-live", "polite")"""  # a new answer is read aloud

Handler = Callable[[Any], str]


class Input(NamedTuple):
    """A component that an image comes from.

    Attributes:
        component: The component.
        event: What happens when there is a new image; registers a handler.
        handler: From the component's value to the answer.
        preprocess: Whether Gradio makes the value of what the browser sends.
    """

    component: Any
    event: Any
    handler: Handler
    preprocess: bool = True


def theme() -> gr.themes.Base:
    """Gradio's default look in the reader's own fonts: none is fetched."""
    text, mono = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")
    return gr.themes.Default(font=[gr.themes.Font(f) for f in text], font_mono=[gr.themes.Font(f) for f in mono])


class Answers:
    """What the page says about images of different origin, as HTML.

    Args:
        images: The model with its backbone.
        folder: Its model folder, for thumbnails.
    """

    def __init__(self, images: ImageModel, folder: Path) -> None:
        self.images, self.folder = images, folder
        self.drawn = is_of_digits(images.model)
        self.scans = _one_scan_of_each_class() if self.drawn else []
        self.waiting = hint("The answer will stand here.")

    def of_upload(self, uploaded: dict[str, Any] | None) -> str:
        """Of an uploaded file, as Gradio describes it; None if it was taken away."""
        if uploaded is None:
            return self.waiting
        picture = open_picture(Path(uploaded["path"]))
        if not self.drawn:
            return self._explain(picture)
        scan = scan_of_picture(picture)
        return self._explain(scan, seen=scan)

    def of_drawing(self, value: str | None) -> str:
        """Of the value of a canvas; "" if nothing is drawn."""
        if not value:
            return self.waiting
        scan = scan_of_ink(ink_of_canvas(value))
        return self._explain(scan, seen=scan)

    def of_scan(self, choice: str | None) -> str:
        """Of a scan of the data set, by its position among `scans`."""
        if not choice or not choice.isdecimal() or int(choice) >= len(self.scans):
            return self.waiting
        return self._explain(self.scans[int(choice)])

    def _explain(self, picture: Image.Image, seen: Image.Image | None = None) -> str:
        found = answer(self.images.model, self.images.features([picture]))
        thumbnails = [read_thumbnail(self.folder, neighbour.position) for neighbour in found.neighbours]
        return answer_page(self.images.model, found, thumbnails, seen)


def build_page(images: ImageModel, folder: Path) -> gr.Blocks:
    """The page of a model; arguments as of `Answers`."""
    answers = Answers(images, folder)
    model = images.model
    with gr.Blocks(title=title(model), analytics_enabled=False) as page:
        _html(heading(model))
        with gr.Row():
            with gr.Column():
                inputs = _digit_inputs(answers) if answers.drawn else [_image_input(answers)]
            with gr.Column():
                output = _html(answers.waiting, elem_id="answer")
        for given in inputs:
            given.event(
                _reported(given.handler), given.component, output, preprocess=given.preprocess,
                trigger_mode="always_last", api_visibility="private",
            )  # fmt: skip
        page.load(None, js=LIVE)
    return page


def _html(value: str, **options: Any) -> gr.HTML:
    """A piece of HTML in the style of this page and not in Gradio's."""
    return gr.HTML(value, apply_default_css=False, **options)


def _one_scan_of_each_class() -> list[Image.Image]:
    dataset = load_digits_dataset()
    first = {item.label: item for item in reversed(dataset.test)}
    return [dataset.open(first[label].path) for label in sorted(first)]


def _image_input(answers: Answers) -> Input:
    image = gr.Image(
        label="Image: drop, paste or photograph one", type="filepath", image_mode=None, buttons=[],
        sources=["upload", "clipboard", "webcam"], height=320, elem_id="image",
    )  # fmt: skip
    # The file is opened by `open_picture`, whose messages say what is wrong with it
    return Input(image, image.change, answers.of_upload, preprocess=False)


def _digit_inputs(answers: Answers) -> list[Input]:
    with gr.Tab("Draw"):
        _html(wrapped(f"<p>{HOW_TO_DRAW}</p>"))
        canvas = _html("", html_template=CANVAS_HTML, js_on_load=CANVAS_JS, elem_id="drawing")
    with gr.Tab("Image"):
        upload = _image_input(answers)
    with gr.Tab("Scans"):
        _html(wrapped("<p>Scans of the test images, which the model was not trained on.</p>"))
        buttons = choice_html(answers.scans, [f"Scan of {name}" for name in CLASSNAMES])
        scans = _html("", html_template=buttons, js_on_load=CHOICE_JS, elem_id="scans")
    return [
        Input(canvas, canvas.input, answers.of_drawing),
        upload,
        Input(scans, scans.input, answers.of_scan),
    ]


def _reported(handler: Handler) -> Handler:
    """A handler that shows a mistake of the user's where the answer would stand."""

    def run(value: Any) -> str:
        try:
            return handler(value)
        except UserError as error:
            return problem(str(error))

    return run
