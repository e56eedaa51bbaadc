"""Two inputs that Gradio does not have: a canvas that one draws a digit on at once, and pictures to choose from.

Each is a piece of HTML and the JavaScript that fills the component's value and then triggers its `input` event.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from ..utils.errors import UserError
from .render import picture

SIDE = 280  # pixels of the canvas
PEN = 22  # pixels
STEP = 10  # pixels that an arrow key moves the pen
PNG = "data:image/png;base64,"
MAX_LENGTH = 200_000  # characters of a drawing; one has about 5,000

CSS = """
.hg-draw canvas { display: block; width: min(100%, 20rem); aspect-ratio: 1; background: #000; border-radius: .4rem;
    border: 2px solid var(--border-color-primary); touch-action: none; cursor: crosshair; }
.hg-draw canvas:focus-visible, .hg-draw button:focus-visible, .hg-scans button:focus-visible {
    outline: 3px solid var(--color-accent); outline-offset: 2px; }
.hg-draw button { margin-top: .75rem; padding: .5rem 1.25rem; min-height: 44px; border-radius: .4rem;
    border: 1px solid var(--border-color-primary); background: var(--button-secondary-background-fill);
    color: var(--button-secondary-text-color); cursor: pointer; }
.hg-draw p { font-size: .875rem; color: var(--grey); margin: .5rem 0 0; }
.hg-scans { display: flex; flex-wrap: wrap; gap: .5rem; }
.hg-scans button { padding: .25rem; border: 2px solid var(--border-color-primary); border-radius: .4rem;
    background: none; cursor: pointer; }
.hg-scans button[aria-pressed=true] { border-color: var(--color-accent); }
.hg-scans img { display: block; width: 56px; height: 56px; image-rendering: pixelated; }
"""
CANVAS_HTML = f"""
<div class="hg hg-draw">
  <canvas width="{SIDE}" height="{SIDE}" tabindex="0" role="application"
    aria-label="Canvas to draw a digit on" aria-describedby="hg-keys"></canvas>
  <button type="button">Clear</button>
  <p id="hg-keys">By keyboard: the arrow keys move the pen, the space bar lowers and lifts it, Delete clears.</p>
</div>
"""
CANVAS_JS = f"""
const canvas = element.querySelector("canvas"), pen = canvas.getContext("2d");
let last = null, drawn = false, timer = null;
const cursor = {{x: {SIDE} / 2, y: {SIDE} / 4, down: false}};
pen.lineWidth = {PEN}; pen.lineCap = pen.lineJoin = "round"; pen.strokeStyle = "#fff";
function blank() {{ pen.fillStyle = "#000"; pen.fillRect(0, 0, {SIDE}, {SIDE}); drawn = false; }}
function send() {{ props.value = drawn ? canvas.toDataURL("image/png") : ""; trigger("input"); }}
function clear() {{ blank(); cursor.down = false; send(); }}
function line(from, to) {{
    pen.beginPath(); pen.moveTo(from.x, from.y); pen.lineTo(to.x, to.y); pen.stroke(); drawn = true;
}}
function place(event) {{
    const box = canvas.getBoundingClientRect();
    return {{x: (event.clientX - box.left) * {SIDE} / box.width, y: (event.clientY - box.top) * {SIDE} / box.height}};
}}
function lift() {{ if (last) {{ last = null; send(); }} }}
canvas.addEventListener("pointerdown", event => {{
    if (event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
    last = place(event);
    line(last, last);
}});
canvas.addEventListener("pointermove", event => {{
    if (!last) return;
    for (const step of event.getCoalescedEvents?.() ?? [event]) {{ const to = place(step); line(last, to); last = to; }}
}});
canvas.addEventListener("pointerup", lift);
canvas.addEventListener("pointercancel", lift);
canvas.addEventListener("keydown", event => {{
    const moves = {{ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}};
    const from = {{...cursor}}, within = value => Math.min(Math.max(value, 0), {SIDE});
    if (event.key === "Delete" || event.key === "Backspace") clear();
    else if (event.key === " ") cursor.down = !cursor.down;
    else if (moves[event.key]) {{
        cursor.x = within(cursor.x + {STEP} * moves[event.key][0]);
        cursor.y = within(cursor.y + {STEP} * moves[event.key][1]);
    }} else return;
    event.preventDefault();
    if (!cursor.down) return;
    line(from, cursor);
    clearTimeout(timer);
    timer = setTimeout(send, 400);
}});
element.querySelector("button").addEventListener("click", clear);
blank();
"""
CHOICE_JS = """
const buttons = [...element.querySelectorAll("button")];
for (const button of buttons) button.addEventListener("click", () => {
    for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
    props.value = button.dataset.choice;
    trigger("input");
});
"""


def choice_html(images: Sequence[Image.Image], names: Sequence[str]) -> str:
    """Buttons with pictures; the value is the position of the chosen one as text."""
    buttons = [
        f'<button type="button" data-choice="{i}" aria-pressed="false" title="{escape(name)}">'
        f"{picture(image, name)}</button>"
        for i, (image, name) in enumerate(zip(images, names))
    ]
    return f'<div class="hg hg-scans">{"".join(buttons)}</div>'


def ink_of_canvas(value: str) -> np.ndarray:
    """How much of each pixel of the canvas is inked, from 0 to 1, shape `[SIDE, SIDE]`.

    Args:
        value: Of the component: a PNG as a data URL.

    Raises:
        UserError: If it is another value; the page sends none.
    """
    try:
        if not value.startswith(PNG) or len(value) > MAX_LENGTH:
            raise ValueError
        data = base64.b64decode(value[len(PNG) :], validate=True)
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.size != (SIDE, SIDE):
                raise ValueError
            return np.asarray(image.convert("L"), dtype=np.float32) / 255
    except (ValueError, OSError, SyntaxError, binascii.Error) as error:
        raise UserError("the drawing came damaged; clear it and draw again") from error
