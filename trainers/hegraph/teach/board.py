"""What the page shows, as HTML. `board.js` sends the clicks on it to `page.py`."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import jinja2

from ..demo.answer import UNUSUAL
from ..predict.rows import NONE_OF_THESE
from .project import UNLABELLED
from .session import Session

TEMPLATE = jinja2.Environment(
    autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
).from_string((Path(__file__).parent / "board.html").read_text(encoding="utf-8"))
NAMED = {
    "SHOWN": 16,  # images of a class; the others are behind a click
    "NOTED": 5,  # images that cannot be read, and files that are left out
    "CONFUSED": 6,  # pairs of classes
    "UNUSUAL": UNUSUAL,
    "UNLABELLED": UNLABELLED,
    "NONE_OF_THESE": NONE_OF_THESE,
}


class Boards(NamedTuple):
    """The parts of the page: what was done or is wrong, and how good the model is; the classes with their images; the
    labels that look wrong; the images that are worth a label.
    """

    status: str
    classes: str
    check: str
    label: str


def boards(session: Session, draws: bool = False, said: str = "", problem: str = "") -> Boards:
    """The last view of a session, what was done, and what is wrong; `draws` where images can be drawn."""
    view = session.view
    shown = {
        "view": view, "contents": view.contents, "names": [*view.contents.classes], "draws": draws, "said": said,
        "problem": problem, "stopped": session.stopping.is_set(), "asked": session.asked,
        "empty": [name for name, pictures in view.contents.classes.items() if not pictures],
        "pictures": {picture.digest: picture for picture in view.contents.pictures()},
        "thumbnail": lambda picture: quote(str(session.thumbnail(picture))),
    }  # fmt: skip
    macros = TEMPLATE.make_module(NAMED | shown)
    return Boards(*(str(getattr(macros, name)()) for name in Boards._fields))
