"""Prediction of a model for one image with its explanation, as plain values and as HTML (`answer.html`).

Shapes: K classes, N cached images, d feature width.
"""

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

MAX_SHOWN = 5  # classes and neighbours
UNUSUAL = 0.05  # the page warns if at most this fraction of known images has a lower score


def template(path: Path) -> jinja2.Template:
    """Load a file of Jinja macros, which escape their arguments. `UNUSUAL` is a global of the macros."""
    options: Any = {"autoescape": True, "undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    return jinja2.Environment(**options).from_string(path.read_text(encoding="utf-8"), globals={"UNUSUAL": UNUSUAL})


MACROS: Any = template(Path(__file__).parent / "answer.html").module


class Evidence(NamedTuple):
    """Parts of the logit of a class: text classifier, and `alpha z_v` of the cache (None without a cache)."""

    name: str
    text: float
    cache: float | None


@dataclass(frozen=True)
class Answer:
    """Prediction of a model for one image, with its explanation.

    Attributes:
        adapted, zero_shot: Probabilities of the likeliest classes in descending order, from the model and from
            zero-shot CLIP with the same prompts.
        winner, runner_up: Evidence for the two likeliest classes; the second is None if there is one class only.
        text_choice, cache_choice: Predictions of the text classifier alone and of the cache alone.
        neighbours: Cached training images of the winning class with the largest contributions, in descending order:
            position in the cache, and contribution to the logit, `alpha v_k exp(-beta (1 - f . F_k))`.
        share_below: Fraction of images of known classes with a lower score, from 0 to 1; None if unknown.
        labels: Name, probability and threshold of the predicted labels, the most probable first; None for a model with
            one label per image.
    """

    adapted: dict[str, float]
    zero_shot: dict[str, float]
    winner: Evidence
    runner_up: Evidence | None
    text_choice: str
    cache_choice: str | None
    neighbours: tuple[tuple[int, float], ...]
    share_below: float | None
    labels: tuple[tuple[str, float, float], ...] | None = None


def compute_answer(model: SavedModel, feature: Tensor) -> Answer:
    """Classify one image, given its unit-norm feature of shape `[1, d]`."""
    classifier = model.classifier
    unique = len(set(model.classnames)) == len(model.classnames)
    names = model.classnames if unique else model.class_ids
    parts = classifier.parts(feature)
    text = parts.text[0]
    cache = None if parts.visual is None else classifier.alpha * parts.visual[0]
    logits = classifier.combine(parts)[0]
    order = logits.argsort(descending=True).tolist()

    def likeliest(probabilities: Tensor) -> dict[str, float]:
        values, labels = probabilities.topk(min(MAX_SHOWN, len(probabilities)))
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
        labels=None
        if model.thresholds is None
        else tuple(
            (names[label], logits[label].sigmoid().item(), model.thresholds[label].sigmoid().item())
            for label in order
            if logits[label] >= model.thresholds[label]
        ),
    )


def _neighbours(model: SavedModel, feature: Tensor, label: int) -> tuple[tuple[int, float], ...]:
    """Find the cached images of a class with the largest contributions."""
    classifier = model.classifier
    if classifier.keys is None or classifier.labels is None:
        return ()
    positions = torch.nonzero(classifier.labels == label)[:, 0]
    weighted = affinities(classifier.keys[positions] @ feature, classifier.beta)
    if classifier.key_weights is not None:
        weighted = weighted * classifier.key_weights[positions]
    values, nearest = (classifier.alpha * weighted).topk(min(MAX_SHOWN, len(positions)))
    return tuple(zip(positions[nearest].tolist(), values.tolist()))


def explanation_html(answer: Answer, model_input: Image.Image | None = None) -> str:
    """Explain the prediction in HTML. `model_input` is the converted image, if the upload was converted."""
    url = "" if model_input is None else PNG + base64.b64encode(as_png(model_input)).decode("ascii")
    return str(MACROS.explanation(answer, url))


def styled(html: str) -> str:
    """Wrap HTML so that the style sheet of the page applies."""
    return f'<div class="hg">{html}</div>'


def title(model: SavedModel) -> str:
    """Title of the page, as plain text."""
    return f"{model.method} on {model.trained_on.dataset}"


def summary(model: SavedModel) -> str:
    """Method, training data and accuracy of a model, as plain text."""
    trained, scores = model.trained_on, model.scores
    classes = f"{len(model.classnames)} classes of {trained.dataset}"
    text = f"{model.method} adapts the frozen CLIP {model.backbone.title} to {classes}, trained on {model.sample}."
    if scores.map is not None:
        return (
            f"{text} mAP on {scores.num_test} test images: {scores.map:.2f} %, zero-shot {scores.map_zero_shot:.2f} %."
        )
    if scores.accuracy is None:
        return text
    zero_shot = "" if scores.accuracy_zero_shot is None else f", zero-shot CLIP {scores.accuracy_zero_shot:.2f} %"
    return f"{text} Accuracy on {scores.num_test} test images: {scores.accuracy:.2f} %{zero_shot}."
