"""The page, made with Gradio: an image goes in, the answer comes out.

Gradio takes seconds to import and is an optional package, so this file is imported where the page is made.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ..datasets.digits import CLASSNAMES, load_digits_dataset
from ..datasets.images import open_upload
from ..models.folder import read_thumbnail
from ..models.images import ImageModel
from ..utils.errors import UserError, first_line, one_line
from .answer import LISTED, answer, reasons, summary, title, wrapped
from .drawing import SIDE, ink_of_canvas, is_of_digits, scan_of_ink, scan_of_picture

CSS = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
CANVAS_JS = (Path(__file__).parent / "canvas.js").read_text(encoding="utf-8")
CANVAS_HTML = f"""
<div class="hg hg-draw">
  <canvas width="{SIDE}" height="{SIDE}" tabindex="0" role="application"
    aria-label="Canvas to draw a digit on" aria-describedby="hg-keys"></canvas>
  <button type="button">Clear</button>
  <p id="hg-keys">By keyboard: the arrow keys move the pen, the space bar lowers and lifts it, Delete clears.</p>
</div>
"""
HOW_TO_DRAW = (
    "Draw one digit, large. The writers of the training images put a bar through the stem of a seven; so should you."
)
LIVE = """() => document.querySelector("#answer")?.setAttribute("aria-live", "polite")"""  # a new answer is read aloud
HINT = wrapped('<p class="grey">The answer will stand here.</p>')


class Page(gr.Blocks):
    """A page that says in one line what is wrong with a request that no browser would send."""

    async def preprocess_data(self, *arguments: Any, **named: Any) -> Any:
        """What a request holds, as the handlers get it; raises `gr.Error`, of which Gradio logs no traceback."""
        try:
            return await super().preprocess_data(*arguments, **named)
        except Exception as error:
            raise gr.Error(f"this request cannot be used: {first_line(error)}", print_exception=False) from error


class Answers:
    """What the page says about images of different origin: HTML, the likeliest classes twice, and pictures.

    The model folder is for thumbnails, and no file outside the folder of uploads is opened for a visitor. Where images
    can be `drawn`, digits can; `scanned`, an upload becomes a scan of one.
    """

    scanned = False

    def __init__(self, images: ImageModel, folder: Path, uploads: Path) -> None:
        self.images, self.folder, self.uploads = images, folder, uploads
        self.sampled = self.scanned = is_of_digits(images.model)

    def __call__(self, value: Any) -> tuple:
        """Of the value of a canvas, or of an uploaded file, as Gradio describes it; "" or None where there is none. A
        mistake of the user's stands where the answer would.
        """
        try:
            if not value:
                return HINT, None, None, None
            return self.explain(scan_of_ink(ink_of_canvas(value)) if isinstance(value, str) else self._open(value))
        except UserError as error:
            return complaint(error), None, None, None

    def explain(self, picture: Image.Image) -> tuple:
        """What is shown of a picture."""
        found = answer(self.images.model, self.images.features([picture]))
        shown = ((read_thumbnail(self.folder, position), position, added) for position, added in found.neighbours)
        pictures = [(image, f"no. {position + 1}: {added:+.2f}") for image, position, added in shown if image]
        return reasons(found, picture if self.scanned else None), found.adapted, found.zero_shot, pictures or None

    def _open(self, uploaded: Any) -> Image.Image:
        path = uploaded_file(uploaded, self.uploads)
        try:
            picture = open_upload(path)
        except UserError as error:
            raise UserError(f"this file {error}") from error
        return scan_of_picture(picture) if self.scanned else picture


def uploaded_file(uploaded: Any, uploads: Path) -> Path:
    """The path of an uploaded file, as Gradio describes it; UserError for any other path that a request may name."""
    try:
        path = Path(uploaded["path"]).resolve(strict=True)
        if not (path.is_relative_to(uploads.resolve()) and path.is_file()):
            raise ValueError("it was not uploaded")
    except (TypeError, LookupError, ValueError, OSError, RuntimeError) as error:
        raise UserError("no picture came; upload it again") from error
    return path


def build_page(images: ImageModel, folder: Path, uploads: Path) -> gr.Blocks:
    """The page of a model; arguments as of `Answers`."""
    model = images.model
    with Page(title=title(model), analytics_enabled=False) as page:
        html(wrapped(f"<h1>{escape(title(model))}</h1><p>{escape(summary(model))}</p>"))
        nearest = "Nearest training images of the likeliest class, with what each adds to the cache's logit"
        answer_part(page, Answers(images, folder, uploads), model.method, nearest)
    return page


def answer_part(page: gr.Blocks, answers: Answers, method: str, nearest: str) -> None:
    """The part of a page where an image goes in and the answer comes out: the likeliest classes by `method` and by
    zero-shot CLIP, why, and pictures below the caption `nearest`.
    """
    with gr.Row():
        with gr.Column():
            inputs = _inputs(answers)
        with gr.Column(elem_id="answer"):
            adapted = gr.Label(label=method, num_top_classes=LISTED, elem_id="adapted")
            zero_shot = gr.Label(label="Zero-shot CLIP", num_top_classes=LISTED, elem_id="zero-shot")
            why = html(HINT, elem_id="why")
            pictures = gr.Gallery(
                label=nearest, columns=LISTED, height="auto", object_fit="contain", buttons=[], interactive=False,
                elem_id="nearest",
            )  # fmt: skip
    for component, event in inputs:
        # Files are opened by `Answers`, whose messages say what is wrong with them, and not by Gradio
        event(
            answers, component, [why, adapted, zero_shot, pictures], preprocess=False, trigger_mode="always_last",
            api_visibility="private",
        )  # fmt: skip
    page.load(None, js=LIVE)


def html(value: str, **options: Any) -> gr.HTML:
    """A piece of HTML in the style of this page and not in Gradio's."""
    return gr.HTML(value, apply_default_css=False, **options)


def canvas(name: str) -> gr.HTML:
    """A canvas to draw a digit on, whose value `ink_of_canvas` reads."""
    html(wrapped(f"<p>{HOW_TO_DRAW}</p>"))
    template = CANVAS_HTML.replace("hg-keys", f"{name}-keys")
    return html("", html_template=template, js_on_load=CANVAS_JS, elem_id=name)


def _inputs(answers: Answers) -> list[tuple]:
    """The components where an image goes in, each with its event."""
    found: list[tuple] = []
    if answers.sampled:
        with gr.Tab("Draw"):
            drawing = canvas("drawing")
            found.append((drawing, drawing.input))
    with gr.Tab("Image") if answers.sampled else gr.Column():
        image = gr.Image(
            label="Image: drop, paste or photograph one", type="filepath", image_mode=None, buttons=[],
            sources=["upload", "clipboard", "webcam"], height=320, elem_id="image",
        )  # fmt: skip
        found.append((image, image.change))
        if answers.sampled:
            dataset = load_digits_dataset()
            first = {item.classname: item for item in reversed(dataset.test)}
            scans = [str(answers.uploads / f"{name}.png") for name in CLASSNAMES]
            for name, path in zip(CLASSNAMES, scans):
                dataset.open(first[name].path).save(path)
            gr.Examples(
                scans, image, label="Scans of the test images, which the model was not trained on", elem_id="scans",
                example_labels=[f"Scan of {name}" for name in CLASSNAMES], examples_per_page=len(scans),
            )  # fmt: skip
    return found


def complaint(error: UserError) -> str:
    """What is wrong, as a sentence of HTML."""
    message = one_line(str(error)).removesuffix(".")
    return wrapped(f'<p class="problem" role="alert">{escape(message[:1].upper() + message[1:])}.</p>')
