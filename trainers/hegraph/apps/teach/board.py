"""The changing parts of the page as HTML (`board.html`), of which a browser gets those that changed.

A part has a key and a value:

flag:NAME          whether the page has the class NAME
slot:NAME          HTML of the element with the attribute data-slot="NAME"
list:NAME          keys of the cards in the element with data-list="NAME", in their order
card:NAME/KEY      HTML of a card
model:             number of the model
thumbs:PLACE       version of the images of a place, which the browser asks for when its card becomes visible
"""

import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ...datasets.folder import NONE_OF_THESE
from ...models.saved import SavedModel
from ..demo.answer import template
from .contents import UNLABELLED, Picture
from .encoders import Encoder
from .groups import lacks_groups
from .view import CONFIDENT, View
from .worker import Worker

TEMPLATE = template(Path(__file__).parent / "board.html")
FIRST_THUMBS = 200  # images of a class before the button that shows more


class Board:
    """Parts of the page of a session, each with the number of the version that changed it."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.session = worker.session
        self._lock = threading.Lock()
        self._number = time.time_ns() // 10**6  # above the numbers of an earlier process
        self._parts: dict[str, tuple[int, Any]] = {}
        self._rendered: object = None  # state of the parts
        self._model: SavedModel | None = None
        self._model_number = 0
        self._class_cards: dict[str, str] = {}

    def changes(self, number: int) -> dict[str, Any]:
        """Return the parts that changed after version `number`, and the number of the current version."""
        with self._lock:
            self._render()
            parts = {key: value for key, (version, value) in self._parts.items() if version > number}
            return {"number": self._number, "busy": self._is_busy(), "parts": parts}

    def thumbs(self, place: str, limit: int) -> dict[str, Any]:
        """Return the cards of the first images of a place, as a list, and how many images follow."""
        pictures = self.session.view.contents.images.get(place, [])
        macros = self._macros(self.session.view)
        cards = {picture.path: str(macros.thumb(picture, place)) for picture in pictures[:limit]}
        return {"keys": [*cards], "cards": cards, "more": max(len(pictures) - limit, 0)}

    def _is_busy(self) -> bool:
        view = self.session.view
        return view.number == 0 or view.waiting > 0 or not view.is_evaluated

    def _render(self) -> None:
        """Render the latest view, and note which parts changed."""
        view = self.session.view
        state = (view.number, self.worker.problem, self.session.stopping.is_set(), self.session.name)
        if state == self._rendered:
            return
        if view.model is not self._model:
            self._model = view.model
            self._model_number += 1
        parts = self._current_parts(view)
        self._rendered = state
        self._number += 1
        for key, value in parts.items():
            if key not in self._parts or self._parts[key][1] != value:
                self._parts[key] = self._number, value
        for key in self._parts.keys() - parts.keys():
            del self._parts[key]

    def _macros(self, view: View) -> Any:
        """Macros of the template for a view."""
        session = self.session
        contents = view.contents
        pattern = session.group_pattern
        return TEMPLATE.make_module({
            "group_pattern": pattern, "lacks_groups": lambda: bool(pattern) and lacks_groups(contents, pattern),
            "folder": session.project.folder.name, "view": view, "contents": contents,
            "duplicates": view.duplicates,
            "encoder": Encoder.of(session.name, session.origin.backbone.pretrained), "problem": self.worker.problem,
            "stopped": session.stopping.is_set(), "has_text": session.has_text,
            "encoder_has_text": session.backbone.has_text, "CONFIDENT": CONFIDENT,
            "thumbnail": lambda picture: quote(str(session.encoded_images.thumbnail(picture) or "")),
            "UNLABELLED": UNLABELLED, "NONE_OF_THESE": NONE_OF_THESE,
        })  # fmt: skip

    def _current_parts(self, view: View) -> dict[str, Any]:
        """Render all parts of a view."""
        macros = self._macros(view)
        contents = view.contents
        parts: dict[str, Any] = {
            "flag:draws": self.session.has_digits(contents.classes),
            "flag:empty": not contents.classes and not view.places,
            "model:": self._model_number,
        }
        for name in ("facts", "messages", "welcome", "example", "rest", "check", "confusions", "label", "pool"):
            parts[f"slot:{name}"] = str(getattr(macros, name)())
        shown_places = [*contents.classes]
        if contents.images[NONE_OF_THESE]:
            shown_places.append(NONE_OF_THESE)
        for name in [name for name in shown_places if name not in self._class_cards]:
            self._class_cards[name] = str(macros.class_card(name))
        cards = {
            "classes": {name: self._class_cards[name] for name in shown_places},
            "duplicates": {digest: str(macros.duplicate(digest, names)) for digest, names in view.duplicates.items()},
            "issues": {picture.digest: str(macros.issue_card(picture, issue)) for picture, issue in view.issues},
            "suggestions": {each.picture.digest: str(macros.suggestion(each)) for each in view.suggestions},
        }
        for name, of_list in cards.items():
            parts[f"list:{name}"] = [*of_list]
            parts |= {f"card:{name}/{key}": card for key, card in of_list.items()}
        for name in shown_places:
            pictures = contents.images[name]
            parts[f"slot:score/{name}"] = str(macros.score(len(pictures), view.scores.get(name)))
            parts[f"thumbs:{name}"] = self._version(pictures)
        return parts

    def _version(self, pictures: list[Picture]) -> int:
        """Value that differs if images were added, removed or encoded."""
        features = self.session.encoded_images.features
        return hash(tuple((picture.path, picture.digest in features) for picture in pictures)) % 2**32
