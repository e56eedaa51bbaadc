"""Folder of a page that classifies images in the browser: the ONNX file, the runtime, one HTML and one script file.

Any static host can serve the folder. The page asks no other host, and sends no image anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jinja2
from markupsafe import Markup

from ...models.export.onnx_file import describe_preprocessing, describe_thresholds
from ...models.saved import Preprocessing, SavedModel
from ...utils.errors import UserError
from ...utils.files import writing_folder
from ...utils.theme import THEME_CSS
from ..demo.answer import summary, template, title
from .runtime import HASHES, read_runtime

FOLDER = Path(__file__).parent
DEMO = FOLDER.parent / "demo"
SCRIPTS = (
    FOLDER / "page.js", FOLDER / "resize.js", FOLDER / "image.js", DEMO / "camera.js", DEMO / "try.js",
)  # fmt: skip
INTERPOLATIONS = ("bicubic", "bilinear")  # of resize.js
INDEX, SCRIPT, ONNX = "index.html", "page.js", "model.onnx"
OPEN_SET_RATE = 0.95  # fraction of images of known classes that the page accepts as known

T = TypeVar("T")


def write_page(model: SavedModel, folder: Path, runtime: Path, write: Callable[[Path], T]) -> tuple[T, int]:
    """Write the folder of a page, all or nothing. An earlier page is replaced, other folders are not.

    Args:
        model: Model with the preprocessing of its backbone.
        folder: Folder to write.
        runtime: Argument of `read_runtime`.
        write: Function that writes the ONNX file to a path.

    Returns:
        Result of `write`, and the size of the folder in bytes.

    Raises:
        UserError: If the folder has other files, the runtime is not usable, or the page cannot compute the
            preprocessing; and as in `write`.
    """
    check_replaceable(folder)
    files = read_runtime(runtime)
    preprocessing = page_preprocessing(model)
    with writing_folder(folder) as new:
        result = write(new / ONNX)
        for name, content in files.items():
            (new / name).write_bytes(content)
        script = "\n".join(path.read_text(encoding="utf-8") for path in SCRIPTS)
        (new / SCRIPT).write_text(script, encoding="utf-8")
        values = page_values(model, preprocessing, (new / ONNX).stat().st_size)
        (new / INDEX).write_text(page_html(model, values), encoding="utf-8")
        size = sum(path.stat().st_size for path in new.iterdir())
    return result, size


def check_replaceable(folder: Path) -> None:
    """Raise UserError if a folder has files that are not of a page."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--page: {folder} is a file; choose a folder")
    others = {path.name for path in folder.iterdir()} - {INDEX, SCRIPT, ONNX, *HASHES} if folder.exists() else set()
    if others:
        raise UserError(f"--page: {folder} has other files, such as {min(others)}; choose another folder")


def page_preprocessing(model: SavedModel) -> dict[str, Any]:
    """Preprocessing as image.js reads it; UserError if image.js cannot compute it."""
    assert isinstance(model.preprocessing, Preprocessing)
    described = describe_preprocessing(model.preprocessing)
    if described["resize"] == "other" or described["interpolation"] not in INTERPOLATIONS:
        transform = " ".join(described["transform"].split())
        raise UserError(f"--page: a browser cannot compute the preprocessing of this backbone, {transform}; use --onnx")
    keys = ("size", "resize", "interpolation", "crop", "mean", "std")
    return {key: described[key] for key in keys} | {"decode": model.backbone.decode}


def page_values(model: SavedModel, preprocessing: dict[str, Any], num_bytes: int) -> dict[str, Any]:
    """Values that page.js reads. `num_bytes` is the size of the ONNX file."""
    unknown = None
    if model.known is not None and model.thresholds is None:
        threshold = model.known.threshold(OPEN_SET_RATE)
        unknown = {"score": model.known.score, "threshold": threshold, "rate": OPEN_SET_RATE}
    unique = len(set(model.classnames)) == len(model.classnames)
    return {
        "classes": model.classnames if unique else model.class_ids,
        "temperature": model.temperature,
        "thresholds": describe_thresholds(model),
        "unknown": unknown,
        "preprocessing": preprocessing,
        "bytes": num_bytes,
    }


def page_html(model: SavedModel, values: dict[str, Any]) -> str:
    """HTML of the page; `values` are for page.js."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string((FOLDER / "page.html").read_text(encoding="utf-8"))
    inputs: Any = template(DEMO / "try.html").module
    style = THEME_CSS + (DEMO / "page.css").read_text(encoding="utf-8")
    return page.render(
        title=title(model), summary=summary(model), style=Markup(style),
        component=Markup(inputs.component(False, 0, [])), model=values,
    )  # fmt: skip
