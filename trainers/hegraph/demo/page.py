"""Gradio page of a model: a visitor gives an image, and the page shows the prediction with its explanation.

Gradio is optional and slow to import, so `demo.__main__` imports this file only to build the page.
"""

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
from ..utils.theme import THEME_CSS
from .answer import MAX_SHOWN, compute_answer, explanation_html, styled, summary, title
from .drawing import SIDE, classifies_digits, ink_of_canvas, scan_of_ink, scan_of_picture

CSS = THEME_CSS + (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
CANVAS_JS = (Path(__file__).parent / "canvas.js").read_text(encoding="utf-8")
CANVAS_HTML = f"""
<div class="hg hg-draw">
  <canvas width="{SIDE}" height="{SIDE}" tabindex="0" role="application"
    aria-label="Canvas to draw a digit on" aria-describedby="hg-keys"></canvas>
  <button type="button">Clear</button>
  <p id="hg-keys">By keyboard: the arrow keys move the pen, the space bar lowers and lifts it, Delete clears.</p>
</div>
"""
HOW_TO_DRAW = "Draw one large digit. Cross the stem of a seven with a bar, as the writers of the training images did."
# Screen readers announce a new answer
ANNOUNCE_JS = """() => document.querySelector("#answer")?.setAttribute("aria-live", "polite")"""
HINT = styled('<p class="grey">The prediction appears here.</p>')


# Variables of Gradio's theme, by colour of `theme.css`. `Base` names the colours of the dark mode "..._dark".
GRADIO_COLOURS = {
    "page": "body_background_fill",
    "surface": "background_fill_primary block_background_fill panel_background_fill input_background_fill "
    "block_label_background_fill block_title_background_fill checkbox_background_color checkbox_label_background_fill "
    "table_even_background_fill table_odd_background_fill button_secondary_background_fill",
    "soft": "background_fill_secondary button_secondary_background_fill_hover checkbox_label_background_fill_hover "
    "code_background_fill color_accent_soft table_row_focus error_background_fill",
    "border": "border_color_primary block_border_color block_label_border_color panel_border_color table_border_color "
    "checkbox_label_border_color",
    "control": "input_border_color checkbox_border_color button_secondary_border_color "
    "button_secondary_border_color_hover",
    "text": "body_text_color block_title_text_color button_secondary_text_color button_secondary_text_color_hover "
    "checkbox_label_text_color table_text_color accordion_text_color error_text_color",
    "grey": "body_text_color_subdued block_label_text_color block_info_text_color input_placeholder_color",
    "accent": "border_color_accent button_primary_background_fill button_primary_border_color "
    "checkbox_background_color_selected checkbox_border_color_selected input_border_color_focus link_text_color "
    "link_text_color_hover link_text_color_active link_text_color_visited loader_color slider_color "
    "stat_background_fill",
    "accent-strong": "button_primary_background_fill_hover button_primary_border_color_hover",
    "on-accent": "button_primary_text_color button_primary_text_color_hover",
    "bad": "error_border_color error_icon_color",
}


def gradio_theme() -> gr.themes.Base:
    """Theme of Gradio's own components, from the colours of `theme.css`. Fonts are local: nothing is downloaded."""
    names = [(name, f"var(--hg-{colour})") for colour, each in GRADIO_COLOURS.items() for name in each.split()]
    values = {f"{name}{mode}": value for name, value in names for mode in ("", "_dark")}
    theme = gr.themes.Base(font="system-ui", font_mono="monospace")
    return theme.set(**values, color_accent="var(--hg-accent)", button_border_width="1px")


class Page(gr.Blocks):
    """Gradio page that answers a malformed request with one line."""

    async def preprocess_data(self, *arguments: Any, **named: Any) -> Any:
        """Parse the values of a request. Raise `gr.Error`, which leaves no traceback, if malformed."""
        try:
            return await super().preprocess_data(*arguments, **named)
        except Exception as error:
            raise gr.Error(f"this request cannot be used: {first_line(error)}", print_exception=False) from error


class Answers:
    """Handler of the images that visitors send.

    Attributes:
        images: Model with its backbone.
        folder: Model folder, which holds the thumbnails.
        uploads: Folder of uploads. No file outside it is opened for a visitor.
        accepts_drawings: Whether the page has a canvas for digits.
        converts_uploads: Whether an upload is converted into a scan of a digit.
    """

    converts_uploads = False

    def __init__(self, images: ImageModel, folder: Path, uploads: Path) -> None:
        self.images, self.folder, self.uploads = images, folder, uploads
        self.accepts_drawings = self.converts_uploads = classifies_digits(images.model)

    def __call__(self, value: Any) -> tuple:
        """Handle the value of the canvas, an uploaded file as Gradio describes it, or "" or None for no image.

        Returns:
            HTML, probabilities of the model, probabilities of zero-shot CLIP, and pictures for the gallery. The HTML is
            the error message if the value is unusable.
        """
        try:
            if not value:
                return HINT, None, None, None
            return self.explain(scan_of_ink(ink_of_canvas(value)) if isinstance(value, str) else self._open(value))
        except UserError as error:
            return error_html(error), None, None, None

    def explain(self, picture: Image.Image) -> tuple:
        """Classify a picture; returns the outputs of `__call__`."""
        answer = compute_answer(self.images.model, self.images.features([picture]))
        thumbnails = ((read_thumbnail(self.folder, position), position, value) for position, value in answer.neighbours)
        pictures = [(image, f"no. {position + 1}: {value:+.2f}") for image, position, value in thumbnails if image]
        html = explanation_html(answer, picture if self.converts_uploads else None)
        return html, answer.adapted, answer.zero_shot, pictures or None

    def _open(self, uploaded: Any) -> Image.Image:
        path = uploaded_file(uploaded, self.uploads)
        try:
            picture = open_upload(path)
        except UserError as error:
            raise UserError(f"this file {error}") from error
        return scan_of_picture(picture) if self.converts_uploads else picture


def uploaded_file(uploaded: Any, uploads: Path) -> Path:
    """Path of an upload as Gradio describes it. Raise UserError for any path outside the folder of uploads."""
    try:
        path = Path(uploaded["path"]).resolve(strict=True)
        if not (path.is_relative_to(uploads.resolve()) and path.is_file()):
            raise ValueError("not an upload")
    except (TypeError, LookupError, ValueError, OSError, RuntimeError) as error:
        raise UserError("no picture arrived; upload it again") from error
    return path


def build_page(images: ImageModel, folder: Path, uploads: Path) -> gr.Blocks:
    """Build the page of a model. The arguments are those of `Answers`."""
    model = images.model
    with Page(title=title(model), analytics_enabled=False) as page:
        html(styled(f"<h1>{escape(title(model))}</h1><p>{escape(summary(model))}</p>"))
        gallery = "Nearest training images of the likeliest class, with their contributions to the cache logit"
        add_answer_section(page, Answers(images, folder, uploads), model.method, gallery)
    return page


def add_answer_section(page: gr.Blocks, answers: Answers, method: str, gallery: str) -> None:
    """Add inputs for an image and outputs for its answer.

    The answer has an explanation, the likeliest classes of `method` and of zero-shot CLIP, and pictures below the
    caption `gallery`.
    """
    with gr.Row():
        with gr.Column():
            inputs = _inputs(answers)
        with gr.Column(elem_id="answer"):
            adapted = gr.Label(label=method, num_top_classes=MAX_SHOWN, elem_id="adapted")
            zero_shot = gr.Label(label="Zero-shot CLIP", num_top_classes=MAX_SHOWN, elem_id="zero-shot")
            why = html(HINT, elem_id="why")
            layout: dict[str, Any] = {"columns": MAX_SHOWN, "height": "auto", "object_fit": "contain"}
            pictures = gr.Gallery(label=gallery, buttons=[], interactive=False, elem_id="nearest", **layout)
    # `Answers` opens the files instead of Gradio, since its errors name the problem
    options = {"preprocess": False, "trigger_mode": "always_last", "api_visibility": "private"}
    for component, event in inputs:
        event(answers, component, [why, adapted, zero_shot, pictures], **options)
    page.load(None, js=ANNOUNCE_JS)


def html(value: str, **options: Any) -> gr.HTML:
    """Add HTML without Gradio's style."""
    return gr.HTML(value, apply_default_css=False, **options)


def canvas(name: str) -> gr.HTML:
    """Add a canvas for drawing a digit. `ink_of_canvas` decodes its value."""
    html(styled(f"<p>{HOW_TO_DRAW}</p>"))
    return html("", html_template=CANVAS_HTML.replace("hg-keys", f"{name}-keys"), js_on_load=CANVAS_JS, elem_id=name)


def _inputs(answers: Answers) -> list[tuple]:
    """Add the inputs; returns each component with its event."""
    inputs: list[tuple] = []
    if answers.accepts_drawings:
        with gr.Tab("Draw"):
            drawing = canvas("drawing")
            inputs.append((drawing, drawing.input))
    with gr.Tab("Image") if answers.accepts_drawings else gr.Column():
        image = gr.Image(
            label="Drop or paste an image, or use the camera", type="filepath", image_mode=None, buttons=[],
            sources=["upload", "clipboard", "webcam"], height=320, elem_id="image",
        )  # fmt: skip
        inputs.append((image, image.change))
        if answers.accepts_drawings:
            dataset = load_digits_dataset()
            first = {item.classname: item for item in reversed(dataset.test)}
            scans = [str(answers.uploads / f"{name}.png") for name in CLASSNAMES]
            for name, path in zip(CLASSNAMES, scans):
                dataset.open(first[name].path).save(path)
            gr.Examples(
                scans, image, label="Scans of test images", elem_id="scans",
                example_labels=[f"Scan of {name}" for name in CLASSNAMES], examples_per_page=len(scans),
            )  # fmt: skip
    return inputs


def error_html(error: UserError) -> str:
    """Format an error as a sentence in HTML."""
    message = one_line(str(error)).removesuffix(".")
    return styled(f'<p class="problem" role="alert">{escape(message[:1].upper() + message[1:])}.</p>')
