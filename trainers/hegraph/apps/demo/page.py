"""Gradio page of a model: a visitor gives an image, and the page shows the prediction with its explanation.

The component that tries a model is one `gr.HTML`. Its script (`try.js`) calls `Answers` without Gradio's queue, so that
the answers follow a camera. Gradio is optional and slow to import: `commands.demo` imports this file only to build the
page.
"""

import threading
from collections.abc import Callable
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ...datasets.decoding import DecodedImage
from ...datasets.digits import CLASSNAMES, load_digits_dataset
from ...datasets.images import MAX_PIXELS, open_image, reading_upload
from ...features.backbones.base import Backbone
from ...models.images import ImageModel
from ...models.saved import SavedModel
from ...models.thumbnails import read_thumbnail
from ...utils.errors import UserError, first_line
from ...utils.reading import LenientModel, validate
from ...utils.text import one_line
from ...utils.theme import THEME_CSS
from .answer import answer_html, compute_answer, styled, summary, template, title
from .drawing import SIDE, classifies_digits, data_url, decode_data_url, ink_of_canvas, scan_of_ink, scan_of_picture

FOLDER = Path(__file__).parent
CSS = THEME_CSS + (FOLDER / "page.css").read_text(encoding="utf-8")
CANVAS_JS, CAMERA_JS, TRY_JS = (
    (FOLDER / f"{name}.js").read_text(encoding="utf-8") for name in ("canvas", "camera", "try")
)
TRY: Any = template(FOLDER / "try.html").module
MAX_THUMBNAILS = 1024  # in memory

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


class Request(LenientModel):
    """Request of the component: the path of an upload, or the data URL of a picture or of the canvas."""

    path: str = ""
    picture: str = ""
    drawing: str = ""


class Answers:
    """Answers to the images of visitors.

    Attributes:
        load: Function that returns the current model and its backbone.
        thumbnail: Function from the position of a cached image to the URL of its thumbnail; "" without one.
        uploads: Folder of uploads. No file outside it is opened for a visitor.
        draws: Whether visitors can draw a digit, which becomes a scan.
        converts: Whether other images become scans of digits, too.
    """

    def __init__(
        self,
        load: Callable[[], tuple[SavedModel, Backbone]],
        thumbnail: Callable[[int], str],
        uploads: Path,
        draws: bool = False,
        converts: bool = False,
    ) -> None:
        self.load, self.thumbnail, self.uploads = load, thumbnail, uploads
        self.draws, self.converts = draws, converts
        self._lock = threading.Lock()  # one image at a time, which uses all cores

    def __call__(self, value: Any) -> str:
        """Answer a request of the component in HTML: with "" for an empty canvas, and with errors as messages."""
        try:
            request = validate(Request, value, "the request")
            if request == Request():
                return str(TRY.hint())
            model, backbone = self.load()
            picture = self.open(request, backbone)
            with self._lock:
                answer = compute_answer(model, backbone.encode_images([picture]))
        except UserError as error:
            return error_html(error)
        scan = data_url(picture.pixels) if self.converts or request.drawing else ""
        with_urls = ((self.thumbnail(place), share) for place, share in answer.neighbours)
        nearest = [(url, share) for url, share in with_urls if url]
        return answer_html(answer, model.method, nearest, scan)

    def open(self, request: Request, backbone: Backbone) -> DecodedImage:
        """Open the image of a request, converted into the input of the model. Raise UserError if it is unusable."""
        if request.drawing:
            return DecodedImage.whole(scan_of_ink(ink_of_canvas(request.drawing)))
        try:
            if request.picture:
                file: Path | bytes = decode_data_url(request.picture)
            else:
                file = uploaded_file(request.path, self.uploads)
            with reading_upload(file):
                if not self.converts:
                    return backbone.preprocess.decoded(file, MAX_PIXELS)
                picture = open_image(file, max_pixels=MAX_PIXELS)
        except UserError as error:
            raise UserError(f"this file {error}") from error
        return DecodedImage.whole(scan_of_picture(picture))


def uploaded_file(name: str, uploads: Path) -> Path:
    """Resolved path of an upload. Raise UserError for any path outside the folder of uploads."""
    try:
        path = Path(name).resolve(strict=True)
        if not (path.is_relative_to(uploads.resolve()) and path.is_file()):
            raise ValueError("not an upload")
    except (ValueError, OSError, RuntimeError) as error:
        raise UserError("no picture arrived; upload it again") from error
    return path


def build_page(images: ImageModel, folder: Path, uploads: Path) -> gr.Blocks:
    """Build the page of a model. `folder` has its thumbnails, and `uploads` is Gradio's folder of uploads."""
    model = images.model

    @lru_cache(MAX_THUMBNAILS)
    def thumbnail(position: int) -> str:
        image = read_thumbnail(folder, position)
        return "" if image is None else data_url(image)

    digits = classifies_digits(model)
    with Page(title=title(model), analytics_enabled=False) as page:
        html(styled(f"<h1>{escape(title(model))}</h1><p class='grey small'>{escape(summary(model))}</p>"))
        add_try(Answers(lambda: (model, images.backbone), thumbnail, uploads, digits, digits))
    return page


def add_try(answers: Answers) -> gr.HTML:
    """Add the component that tries a model: inputs for an image, and its answer."""

    def answer(value: Any) -> str:  # Gradio marks the function
        return answers(value)

    scans = []
    if answers.draws:
        dataset = load_digits_dataset()
        first = {item.classname: item for item in reversed(dataset.test)}
        scans = [(name, data_url(dataset.open(first[name].path))) for name in CLASSNAMES]
    component = str(TRY.component(answers.draws, SIDE, scans))
    return html(component, js_on_load=CANVAS_JS + CAMERA_JS + TRY_JS, server_functions=[answer], elem_id="try")


def html(value: str, **options: Any) -> gr.HTML:
    """Add HTML without Gradio's style."""
    return gr.HTML(value, apply_default_css=False, **options)


def canvas(name: str) -> gr.HTML:
    """Add a canvas for drawing a digit. `ink_of_canvas` decodes its value."""
    start = 'startCanvas(element, value => { props.value = value; trigger("input"); });'
    shell = styled(str(TRY.canvas(name, SIDE)))
    return html("", html_template=shell, js_on_load=CANVAS_JS + start, elem_id=name)


def error_html(error: UserError) -> str:
    """Format an error as a sentence in HTML."""
    message = one_line(str(error)).removesuffix(".")
    return styled(f'<p class="problem" role="alert">{escape(message[:1].upper() + message[1:])}.</p>')
