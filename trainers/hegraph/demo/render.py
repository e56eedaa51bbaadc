"""An answer as HTML. Everything that comes from a model folder is escaped, and pictures are encoded anew."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

from PIL import Image

from ..models.saved import SavedModel
from .answer import Answer, Evidence, Guess, Neighbour

UNUSUAL = 0.05  # an image that scores lower than all but this share of the known ones is perhaps of no class
MINUS = "\N{MINUS SIGN}"
# The colours are Gradio's, which change with its dark mode, but for a grey that is dark enough to be read
CSS = """
.hg { --grey: #57606a; font-size: 1rem; line-height: 1.5; color: var(--body-text-color); }
.dark .hg { --grey: #a8b1bb; }
.hg h1 { font-size: 1.75rem; line-height: 1.2; font-weight: 700; margin: 0 0 .5rem; }
.hg h2 { font-size: 1.15rem; font-weight: 600; margin: 1.4rem 0 .5rem; }
.hg h2:first-child { margin-top: 0; }
.hg p { margin: .4rem 0; }
.hg .columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(15rem, 100%), 1fr)); gap: 1rem 2rem; }
.hg table { width: 100%; border-collapse: collapse; margin: 0; }
.hg caption { text-align: left; font-weight: 600; padding-bottom: .25rem; }
.hg th, .hg td { border-bottom: 1px solid var(--border-color-primary); padding: .3rem .4rem; }
.hg th { font-weight: 400; text-align: left; }
.hg h1, .hg h2, .hg p, .hg tbody th { overflow-wrap: anywhere; }
.hg thead th { color: var(--grey); }
.hg thead th + th { text-align: right; }
.hg tr.first th, .hg tr.first td { font-weight: 600; }
.hg td { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.hg td.bar { width: 30%; }
.hg td.bar div { height: .7rem; min-width: 1px; border-radius: .2rem; background: var(--color-accent); }
.hg .zero-shot td.bar div { background: var(--grey); }
.hg .pictures { display: flex; flex-wrap: wrap; gap: .75rem; padding: 0; margin: .5rem 0; list-style: none; }
.hg .pictures li { font-size: .875rem; text-align: center; }
.hg .pictures img { display: block; width: 72px; height: 72px; object-fit: contain; margin: 0 auto .2rem;
    border-radius: .3rem; image-rendering: pixelated; }
.hg .grey { color: var(--grey); }
.hg .unusual { border-left: 4px solid #b45309; padding: .25rem .75rem; }
.hg .problem { border-left: 4px solid #b91c1c; padding: .5rem .75rem; font-weight: 600; }
"""


def answer_page(
    model: SavedModel,
    found: Answer,
    thumbnails: Sequence[Image.Image | None],
    seen: Image.Image | None = None,
) -> str:
    """What a model says about an image.

    Args:
        model: The model.
        found: What it says.
        thumbnails: One for each of the answer's neighbours; None where there is none.
        seen: What the model was given, if that differs from what the user gave.
    """
    parts = [
        "<h2>Likeliest classes</h2>",
        '<div class="columns">',
        _guesses(model.method, "adapted", found.adapted),
        _guesses("Zero-shot CLIP", "zero-shot", found.zero_shot),
        "</div>",
        _none_of_these(found),
        "<h2>Why</h2>",
        _reason(found),
        _evidence(found),
        _neighbours(found, thumbnails),
    ]
    if seen is not None:
        parts.append(_seen(seen))
    return wrapped("".join(parts))


def problem(message: str) -> str:
    """A mistake of the user's, as a sentence."""
    return wrapped(f'<p class="problem" role="alert">{escape(message[:1].upper() + message[1:])}.</p>')


def hint(message: str) -> str:
    """What stands where an answer will be."""
    return wrapped(f'<p class="grey">{escape(message)}</p>')


def heading(model: SavedModel) -> str:
    """The top of the page."""
    return wrapped(f"<h1>{escape(title(model))}</h1><p>{escape(summary(model))}</p>")


def summary(model: SavedModel) -> str:
    """What a model is, and how good, as plain text."""
    trained, scores = model.trained_on, model.scores
    shots = {-1: "all training images", 1: "1 training image of each class"}
    images = shots.get(trained.shots, f"{trained.shots} training images of each class")
    said = (
        f"{model.method} adapts the frozen CLIP {model.backbone.title} to {len(model.classnames)} classes of "
        f"{trained.dataset}, with {images}."
    )
    if scores.accuracy is None:
        return said
    zero_shot = "" if scores.accuracy_zero_shot is None else f", zero-shot CLIP {scores.accuracy_zero_shot:.2f} %"
    return f"{said} Accuracy on {scores.num_test} test images: {scores.accuracy:.2f} %{zero_shot}."


def title(model: SavedModel) -> str:
    """The title of the page."""
    return f"{model.method} on {model.trained_on.dataset}"


def wrapped(html: str) -> str:
    """A piece of HTML that the style of this file applies to."""
    return f'<div class="hg">{html}</div>'


def _guesses(title: str, kind: str, guesses: Sequence[Guess]) -> str:
    rows = [
        f'<tr{_first(i)}><th scope="row">{escape(guess.name)}</th>'
        f'<td class="bar" aria-hidden="true"><div style="width: {100 * guess.probability:.1f}%"></div></td>'
        f"<td>{_percent(guess.probability)}</td></tr>"
        for i, guess in enumerate(guesses)
    ]
    return f'<table class="{kind}"><caption>{escape(title)}</caption><tbody>{"".join(rows)}</tbody></table>'


def _none_of_these(found: Answer) -> str:
    """A warning where few images of known classes score as low."""
    if found.share_below is None or found.share_below >= UNUSUAL:
        return ""
    few = "less than 1 %" if found.share_below < 0.01 else f"{100 * found.share_below:.0f} %"
    return (
        f'<p class="unusual">This may be none of these classes: only {few} of the images of known classes score as low.'
        " The probabilities above are among the classes of the model, whatever the image shows.</p>"
    )


def _reason(found: Answer) -> str:
    """Which of the two classifiers decided, in a sentence."""
    winner = found.winner.name
    if found.cache_choice is None:
        return "<p>The model compares the image with the text of each class. It has no cache of training images.</p>"
    if found.text_choice == found.cache_choice == winner:
        said = f"The text of the classes and the cache of training images both say <b>{escape(winner)}</b>."
    else:
        said = (
            f"The text of the classes alone says <b>{escape(found.text_choice)}</b>, and the cache of training images "
            f"alone <b>{escape(found.cache_choice)}</b>; together they say <b>{escape(winner)}</b>."
        )
    return f"<p>{said}</p>"


def _evidence(found: Answer) -> str:
    """The logits of the two likeliest classes, and by how much the first leads."""
    rows = [_evidence_row(found.winner, first=True)]
    if found.runner_up is not None:
        rows.append(_evidence_row(found.runner_up))
        rows.append(_evidence_row(_lead(found.winner, found.runner_up)))
    columns = ["text", "cache", "logit"] if found.winner.cache is not None else ["logit"]
    head = "".join(f'<th scope="col">{column}</th>' for column in columns)
    return (
        "<table><caption>What the logits are made of: text + cache</caption>"
        f'<thead><tr><th scope="col">class</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )


def _lead(winner: Evidence, other: Evidence) -> Evidence:
    cache = None if winner.cache is None or other.cache is None else winner.cache - other.cache
    return Evidence(f"lead of {winner.name}", winner.text - other.text, cache)


def _evidence_row(evidence: Evidence, first: bool = False) -> str:
    values = [evidence.total] if evidence.cache is None else [evidence.text, evidence.cache, evidence.total]
    cells = "".join(f"<td>{_number(value)}</td>" for value in values)
    return f'<tr{_first(not first)}><th scope="row">{escape(evidence.name)}</th>{cells}</tr>'


def _neighbours(found: Answer, thumbnails: Sequence[Image.Image | None]) -> str:
    if not found.neighbours:
        return ""
    heading = f"<h2>Nearest training images of {escape(found.winner.name)}</h2>"
    note = "The cache adds up what each training image of a class contributes; these contribute most."
    if not any(thumbnails):
        note += " The model folder has no pictures of them (see --keep-thumbnails)."
    items = "".join(_neighbour(*pair, found.winner.name) for pair in zip(found.neighbours, thumbnails))
    return f'{heading}<p class="grey">{note}</p><ul class="pictures">{items}</ul>'


def _neighbour(neighbour: Neighbour, thumbnail: Image.Image | None, name: str) -> str:
    number = neighbour.position + 1
    shown = "" if thumbnail is None else picture(thumbnail, f"Training image {number}, {name}")
    label = _number(neighbour.contribution, sign="+")
    return f"<li>{shown}{label}</li>" if shown else f"<li>no. {number}: {label}</li>"


def _seen(image: Image.Image) -> str:
    shown = picture(image, "The image as the model gets it")
    note = "Made like the scans that the model was trained on: 8x8 pixels, white ink on black."
    return f'<h2>What the model sees</h2><ul class="pictures"><li>{shown}</li></ul><p class="grey">{note}</p>'


def picture(image: Image.Image, alt: str) -> str:
    """An image as an element of HTML, with the text that stands for it."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">'


def _first(position: int) -> str:
    return "" if position else ' class="first"'


def _percent(value: float) -> str:
    """A probability to one digit; one that is not quite 0 or 1 is not shown as that."""
    if value < 0.0005:
        return "&lt; 0.1&nbsp;%"
    return "&gt; 99.9&nbsp;%" if value >= 0.9995 else f"{100 * value:.1f}&nbsp;%"


def _number(value: float, sign: str = "") -> str:
    return f"{value:{sign}.2f}".replace("-", MINUS)
