"""What a model says about one image, and why: as plain values, and the reasons as HTML (`answer.html`).

Shapes: K classes, N cached images, d feature width.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import torch
from PIL import Image
from torch import Tensor

from ..method.cache import affinities
from ..models.saved import SavedModel
from .drawing import PNG, as_png

LISTED = 5  # classes, and neighbours
UNUSUAL = 0.05  # an image that scores lower than all but this share of the known ones is perhaps of no class


def template(path: Path) -> jinja2.Template:
    """A file of macros that make HTML, and escape all that they are given; they know `UNUSUAL`."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["UNUSUAL"] = UNUSUAL
    return environment.from_string(path.read_text(encoding="utf-8"))


MACROS: Any = template(Path(__file__).parent / "answer.html").module


class Evidence(NamedTuple):
    """The logit of a class: from the text classifier, and `alpha z_v` from the cache; None without one."""

    name: str
    text: float
    cache: float | None


@dataclass(frozen=True)
class Answer:
    """What a model says about one image.

    Attributes:
        adapted, zero_shot: The likeliest classes of the model, and of zero-shot CLIP with the same prompts, with their
            probabilities, likeliest first.
        winner, runner_up: The evidence for the two likeliest classes; the second is None where there is one class only.
        text_choice, cache_choice: The classes that the text classifier and the cache alone would choose.
        neighbours: The training images of the winning class that are nearest to the image, as the cache measures it:
            positions in the cache, and what each adds to the logit of its class, `alpha v_k exp(-beta (1 - f . F_k))`,
            the largest first.
        share_below: The share of images of known classes whose score is lower, from 0 to 1; None if it is not known.
    """

    adapted: dict[str, float]
    zero_shot: dict[str, float]
    winner: Evidence
    runner_up: Evidence | None
    text_choice: str
    cache_choice: str | None
    neighbours: tuple[tuple[int, float], ...]
    share_below: float | None


def answer(model: SavedModel, feature: Tensor) -> Answer:
    """What a model says about an image, given its unit-norm feature of shape `[1, d]`."""
    classifier = model.classifier
    unique = len(set(model.classnames)) == len(model.classnames)
    names = model.classnames if unique else model.class_ids
    parts = classifier.parts(feature)
    text = parts.text[0]
    cache = None if parts.visual is None else classifier.alpha * parts.visual[0]
    logits = classifier.combine(parts)[0]
    order = logits.argsort(descending=True).tolist()

    def likeliest(probabilities: Tensor) -> dict[str, float]:
        values, labels = probabilities.topk(min(LISTED, len(probabilities)))
        return {names[label]: value for label, value in zip(labels.tolist(), values.tolist())}

    def evidence(label: int) -> Evidence:
        return Evidence(names[label], text[label].item(), None if cache is None else cache[label].item())

    return Answer(
        adapted=likeliest(model.calibrate(logits)),
        zero_shot=likeliest(model.zero_shot_logits(feature)[0].softmax(dim=0)),
        winner=evidence(order[0]),
        runner_up=evidence(order[1]) if len(order) > 1 else None,
        text_choice=names[int(text.argmax())],
        cache_choice=None if cache is None else names[int(cache.argmax())],
        neighbours=_neighbours(model, feature[0], order[0]),
        share_below=model.share_below(logits),
    )


def _neighbours(model: SavedModel, feature: Tensor, label: int) -> tuple[tuple[int, float], ...]:
    """The nearest cached images of a class, with what they contribute."""
    classifier = model.classifier
    if classifier.keys is None or classifier.labels is None:
        return ()
    positions = torch.nonzero(classifier.labels == label)[:, 0]
    weighted = affinities(classifier.keys[positions] @ feature, classifier.beta)
    if classifier.key_weights is not None:
        weighted = weighted * classifier.key_weights[positions]
    values, nearest = (classifier.alpha * weighted).topk(min(LISTED, len(positions)))
    return tuple(zip(positions[nearest].tolist(), values.tolist()))


def reasons(found: Answer, seen: Image.Image | None = None) -> str:
    """Why the model says so, as HTML; `seen` is what the model was given, if that differs from what the user gave."""
    url = "" if seen is None else PNG + base64.b64encode(as_png(seen)).decode("ascii")
    return str(MACROS.reasons(found, url))


def wrapped(html: str) -> str:
    """A piece of HTML that the page's style applies to."""
    return f'<div class="hg">{html}</div>'


def title(model: SavedModel) -> str:
    """The title of the page, as plain text."""
    return f"{model.method} on {model.trained_on.dataset}"


def summary(model: SavedModel) -> str:
    """What a model is, and how good, as plain text."""
    trained, scores = model.trained_on, model.scores
    said = (
        f"{model.method} adapts the frozen CLIP {model.backbone.title} to {len(model.classnames)} classes of "
        f"{trained.dataset}, trained on {model.sample}."
    )
    if scores.accuracy is None:
        return said
    zero_shot = "" if scores.accuracy_zero_shot is None else f", zero-shot CLIP {scores.accuracy_zero_shot:.2f} %"
    return f"{said} Accuracy on {scores.num_test} test images: {scores.accuracy:.2f} %{zero_shot}."
