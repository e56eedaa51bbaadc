"""Gradio page of a session: fixed HTML, whose parts `board.js` fills, and the component that tries the model.

`handlers.py` answers the requests of the scripts, `board.py` renders the parts. Gradio is optional and slow to import:
`commands.teach` imports this file only to build the page.
"""

from pathlib import Path
from typing import Any

import gradio as gr

from ..demo.answer import styled, template
from ..demo.drawing import SIDE
from ..demo.page import CAMERA_JS, CANVAS_JS, TRY, Page, add_try, html
from .contents import UNLABELLED
from .handlers import Teacher
from .worker import Worker

FOLDER = Path(__file__).parent
CSS, LAYOUT_CSS = ((FOLDER / f"{name}.css").read_text(encoding="utf-8") for name in ("board", "layout"))
SCRIPTS = ("board", "pick", "files", "keys", "recorder", "tabs")  # in this order, as one script
SHELL: Any = template(FOLDER / "page.html").module
TABS = ("classes", "check", "label", "try", "export", "backbone")


def build_page(worker: Worker, uploads: Path) -> gr.Blocks:
    """Build the page of a session. `uploads` is Gradio's folder of uploads."""
    teacher = Teacher(worker, uploads)
    script = CANVAS_JS + CAMERA_JS + "".join((FOLDER / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    panels = str(SHELL.panels(TRY.canvas("sketch", SIDE), UNLABELLED))
    with Page(title=f"Teach {worker.session.project.folder.name}", analytics_enabled=False, fill_width=True) as page:
        html(str(SHELL.top(TABS, LAYOUT_CSS)), elem_id="top")
        with gr.Row(elem_id="columns"):
            html(panels, js_on_load=script, server_functions=teacher.functions(), elem_id="teach")
            with gr.Column(elem_id="panel-try"):
                html(styled('<h2 class="preview">Preview</h2>'))
                add_try(teacher.answers())
    return page
