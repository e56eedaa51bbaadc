"""Prediction of a model for one image with its explanation, as plain values and as HTML (`answer.html`).

Shapes: K classes, N cached images, d feature width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import torch
from torch import Tensor

from ...method.cache import affinities
from ...models.saved import SavedModel

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


class ClassScore(NamedTuple):
    """Probabilities of a class, from the model and from zero-shot CLIP with the same prompts; None without class texts.

    With several labels per image, the model predicts a label whose probability reaches its `threshold`.
    """

    name: str
    adapted: float
    zero_shot: float | None
    threshold: float | None = None


@dataclass(frozen=True)
class Answer:
    """Prediction of a model for one image, with its explanation.

    Attributes:
        scores: The classes that the model finds likeliest, in descending order, and the likeliest of zero-shot CLIP.
        predicted: Name of the predicted class, or names of the predicted labels.
        winner, runner_up: Evidence for the two likeliest classes; the second is None if there is one class only.
        text_choice, cache_choice: Predictions of the text classifier alone and of the cache alone.
        neighbours: Nearest training images of the winning class, in descending order: position in the cache, and share
            of the cache logit, `v_k exp(-beta (1 - f . F_k)) / z_v`. Without a cache, position in the support set, and
            cosine similarity.
        share_below: Fraction of images of known classes with a lower score, from 0 to 1; None if unknown.
    """

    scores: tuple[ClassScore, ...]
    predicted: tuple[str, ...]
    winner: Evidence
    runner_up: Evidence | None
    text_choice: str
    cache_choice: str | None
    neighbours: tuple[tuple[int, float], ...]
    share_below: float | None


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
    adapted = model.calibrate(logits)
    zero_shot = model.zero_shot_logits(feature)[0].softmax(dim=0) if model.has_text else None
    if model.thresholds is None:
        thresholds = None
        predicted = order[:1]
    else:
        thresholds = model.thresholds.sigmoid()
        predicted = [label for label in order if adapted[label] >= thresholds[label]]
    shown = dict.fromkeys([*order[:MAX_SHOWN], *([] if zero_shot is None else [int(zero_shot.argmax())])])

    def evidence(label: int) -> Evidence:
        of_cache = None if cache is None else cache[label].item()
        return Evidence(names[label], text[label].item(), of_cache)

    def score(label: int) -> ClassScore:
        threshold = None if thresholds is None else thresholds[label].item()
        of_clip = None if zero_shot is None else zero_shot[label].item()
        return ClassScore(names[label], adapted[label].item(), of_clip, threshold)

    return Answer(
        scores=tuple(score(label) for label in shown),
        predicted=tuple(names[label] for label in predicted),
        winner=evidence(order[0]),
        runner_up=evidence(order[1]) if len(order) > 1 else None,
        text_choice=names[int(text.argmax())],
        cache_choice=None if cache is None else names[int(cache.argmax())],
        neighbours=_neighbours(model, feature[0], order[0]),
        share_below=model.share_below(logits),
    )


def _neighbours(model: SavedModel, feature: Tensor, label: int) -> tuple[tuple[int, float], ...]:
    """Find the training images of a class that are nearest to an image."""
    classifier = model.classifier
    support_set = model.support_set
    if classifier.keys is not None and classifier.labels is not None:
        positions = torch.nonzero(classifier.labels == label)[:, 0]
        values = affinities(classifier.keys[positions] @ feature, classifier.beta)
        if classifier.key_weights is not None:
            values = values * classifier.key_weights[positions]
        values = values / values.sum()
    elif support_set is not None and not support_set.multilabel:
        positions = torch.nonzero(support_set.labels == label)[:, 0]
        values = support_set.keys()[positions] @ feature
    else:
        return ()
    values, nearest = values.topk(min(MAX_SHOWN, len(positions)))
    return tuple(zip(positions[nearest].tolist(), values.tolist()))


def answer_html(answer: Answer, method: str, nearest: Sequence[tuple[str, float]] = (), model_input: str = "") -> str:
    """Format an answer as HTML.

    Args:
        answer: The answer.
        method: Name of the method, a heading of its probabilities.
        nearest: URL and share of each neighbour that has a thumbnail.
        model_input: URL of the converted image; "" if the image was not converted.
    """
    return str(MACROS.answer(answer, method, nearest, model_input))


def styled(html: str) -> str:
    """Wrap HTML so that the style sheet of the page applies."""
    return f'<div class="hg">{html}</div>'


def title(model: SavedModel) -> str:
    """Title of the page, as plain text."""
    return f"{model.method} on {model.trained_on.title}"


def summary(model: SavedModel) -> str:
    """Method, training data and accuracy of a model, as plain text."""
    trained = model.trained_on
    scores = model.scores
    classes = f"{len(model.classnames)} classes of {trained.title}"
    encoder = "CLIP" if model.has_text else "image encoder"
    text = f"{model.method} adapts the frozen {encoder} {model.backbone.title} to {classes}, trained on "
    text += f"{model.sample_description}."
    if scores.map is not None:
        zero_shot = "" if scores.map_zero_shot is None else f", zero-shot {scores.map_zero_shot:.2f} %"
        return f"{text} mAP on {scores.num_test} test images: {scores.map:.2f} %{zero_shot}."
    if scores.accuracy is None:
        return text
    zero_shot = "" if scores.accuracy_zero_shot is None else f", zero-shot CLIP {scores.accuracy_zero_shot:.2f} %"
    return f"{text} Accuracy on {scores.num_test} test images: {scores.accuracy:.2f} %{zero_shot}."
