"""What the page shows, as HTML: pieces with buttons, whose clicks `board.js` sends to `page.py`.

A button has `data-do`, what it does, and it or an element around it has what that is done to: `data-image` and
`data-digest` of an image, `data-place` of a class. All names are escaped.
"""

from __future__ import annotations

import json
from html import escape
from pathlib import PurePosixPath
from urllib.parse import quote

from ..demo.answer import UNUSUAL, wrapped
from ..predict.rows import NONE_OF_THESE
from .project import UNLABELLED, Picture
from .session import Session, View

SHOWN = 16  # images of a class; the others are behind a click
NOTED = 5  # images that cannot be read, and files that are left out
CONFUSED = 6  # pairs of classes


def status(session: Session, view: View, said: str = "", problem: str = "") -> str:
    """What was done or is wrong, how good the model is, what is being encoded, what can be undone, what is asked."""
    parts = [f'<p class="problem" role="alert">{sentence(problem)}</p>'] if problem else []
    parts += [f'<p role="status">{sentence(said)}</p>'] if said else []
    parts.append(f"<p>{summary(view)}</p>")
    if view.waiting and session.stopped:
        parts.append(f"<p>{_button('go-on', f'Encode the other {view.waiting} images')}</p>")
    elif view.waiting:
        left = f"{view.waiting} images have still to be encoded."
        parts.append(f"<p><progress></progress> {left} {_button('stop', 'Stop')}</p>")
    if view.contents.undo:
        parts.append(f"<p>{_button('undo', f'Undo: {view.contents.undo}')}</p>")
    pictures = {picture.digest: picture for picture in view.contents.pictures()}
    for digest, classes in view.twice.items():
        names = "".join(_button("settle", f"It is {name}", to=name) for name in classes)
        leave = _button("leave", "Leave it where it is") if digest in session.asked else ""
        image = _image(session, pictures[digest])
        said = f"The same image is in several classes, or was dropped on another one: {', '.join(classes)}."
        parts.append(f'<div class="row" data-digest="{digest}">{image}<p>{escape(said)}</p>{names}{leave}</div>')
    return wrapped("".join(parts))


def summary(view: View) -> str:
    """What there is, and how good the model is, as HTML."""
    contents = view.contents
    images = sum(map(len, contents.classes.values()))
    there = _count(len(contents.classes), "class", "classes"), _count(images, "image"), len(contents.unlabelled)
    said = "{}, {}, {} without a label. ".format(*there)
    if view.model is None:
        return f"{said}Add two classes: their names alone make a model, and images make it better."
    if not view.judged:
        return f"{said}The names of the classes are all that the model knows; add images of two classes."
    empty = ", ".join(name for name, pictures in contents.classes.items() if not pictures)
    alone = f"Known by name alone: {escape(empty)}." if empty else ""
    return (
        f'{said}<b id="accuracy">{100 * view.right / view.judged:.0f} %</b> of the images are classified rightly by a '
        f"model that has not seen them ({view.right} of {view.judged}). {alone}"
    )


def classes(session: Session, view: View, draws: bool) -> str:
    """The classes with their images, and what can be done with them."""
    new = '<form data-do="add-class" class="row"><label>New class <input name="name" required></label>'
    parts = [f'{new}<button type="submit">Add</button></form><div class="cards">']
    for name, pictures in view.contents.classes.items():
        shown = [_thumbnail(session, picture, name) for picture in pictures]
        rest = f"<details><summary>{len(shown) - SHOWN} more</summary>{''.join(shown[SHOWN:])}</details>"
        change = (
            f'<details><summary>Rename or delete</summary><form data-do="rename" class="row"><label>New name '
            f'<input name="name" value="{escape(name)}" required></label><button type="submit">Rename</button></form>'
            f"{_button('delete', f'Delete {name}')}</details>"
        )
        parts.append(
            f'<section class="card" data-place="{escape(name)}" aria-label="{escape(name)}"><h2>{escape(name)} '
            f'<small class="grey">{_count(len(pictures), "image")}</small></h2><div class="thumbs">'
            f"{''.join(shown[:SHOWN])}</div>{rest if len(shown) > SHOWN else ''}{_files('Add images')}"
            f"{_button('draw', 'Add the drawing') if draws else ''}{change}</section>"
        )
    parts.append("</div>")
    parts += [_listed("cannot be read", view.problems), _listed("are no images, and left out", view.contents.left_out)]
    return _board(view, "".join(parts))


def check(session: Session, view: View) -> str:
    """The images whose labels seem wrong, and the classes that are confused."""
    parts = []
    for doubt in view.doubts:
        label, other = doubt.label, doubt.suggested
        parts.append(
            f'<article class="card" {_named(doubt.picture)}>{_image(session, doubt.picture)}<p>Labelled '
            f"<b>{escape(label)}</b>, and looks like <b>{escape(other)}</b>.</p>"
            f"{_button('move', f'Move to {other}', to=other)}{_button('keep', f'Keep {label}')}"
            f"{_button('pick', 'Other')}</article>"
        )
    none = "No label looks wrong." if view.judged else "Labels can be checked where two classes have images."
    found = f'<div class="cards">{"".join(parts)}</div>' if parts else f'<p class="grey">{none}</p>'
    rows = "".join(
        f'<tr><th scope="row">{escape(a)}</th><td>{escape(b)}</td><td>{count}</td></tr>'
        for a, b, count in view.confused[:CONFUSED]
    )
    head = '<tr><th scope="col">class</th><th scope="col">taken for</th><th scope="col">images</th></tr>'
    table = f"<table><caption>Classes that are confused</caption>{head}{rows}</table>" if rows else ""
    return _board(view, f"<h2>Labels that look wrong</h2>{found}{table}")


def label(session: Session, view: View) -> str:
    """The images without a label that are most worth one, each with a guess."""
    parts = []
    for picture, name, probability, below in view.guesses:
        strange = below is not None and below < UNUSUAL
        parts.append(
            f'<article class="card" {_named(picture)} data-probability="{probability:.8f}">'
            f"{_image(session, picture)}<p><b>{escape(name)}</b> {100 * probability:.0f} %{' ?' if strange else ''}</p>"
            f"{_button('move', f'Yes, {name}', to=name)}{_button('pick', 'Other')}"
            f"{_button('move', 'None of these', to=NONE_OF_THESE)}</article>"
        )
    if parts:
        said = "The first ones teach most. A question mark: few images of known classes look so strange."
    elif view.contents.unlabelled and view.model is None:
        said = "With two classes, there will be guesses here."
    else:
        said = "No image waits for a label. Drop some here, or put them into the folder."
    images = f'<div data-place="{UNLABELLED}">{_files("Add images without a label")}</div>'
    return _board(view, f'<p class="grey">{said}</p>{images}<div class="cards">{"".join(parts)}</div>')


def _board(view: View, html: str) -> str:
    """A part of the page that knows the names of the classes, for the list to choose from."""
    names = json.dumps([*view.contents.classes])
    return wrapped(f'<div data-names="{escape(names)}">{html}</div>')


def _listed(said: str, files: list[str]) -> str:
    """Files of which something is said; "" without any."""
    listed = "".join(f"<li>{escape(each)}</li>" for each in files[:NOTED])
    shown = f'<details class="grey"><summary>{len(files)} files {said}</summary><ul>{listed}</ul></details>'
    return shown if files else ""


def _thumbnail(session: Session, picture: Picture, name: str) -> str:
    said = escape(f"{PurePosixPath(picture.path).name} of {name}: move or remove")
    image = _image(session, picture)
    return f'<button class="thumb" data-do="pick" {_named(picture)} aria-label="{said}">{image}</button>'


def _image(session: Session, picture: Picture) -> str:
    source, said = quote(str(session.thumbnail(picture))), escape(PurePosixPath(picture.path).name)
    return f'<img loading="lazy" src="gradio_api/file={source}" alt="{said}">'


def _named(picture: Picture) -> str:
    return f'data-image="{escape(picture.path)}" data-digest="{picture.digest}"'


def _button(does: str, text: str, to: str = "") -> str:
    goes = f' data-to="{escape(to)}"' if to else ""
    return f'<button type="button" data-do="{does}"{goes}>{escape(text)}</button>'


def _files(text: str) -> str:
    """What images are dropped on, or chosen with."""
    return f'<label class="drop">{text}<input type="file" data-do="add" multiple accept="image/*"></label>'


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def sentence(text: str) -> str:
    """A message with a capital and a full stop, as HTML."""
    return escape(f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}")
