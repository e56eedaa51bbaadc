"""What the tests of the page share: a model of the digits with thumbnails, and the page as a user starts it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from strokes import Stroke

from trainers.hegraph.models.images import ImageModel

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def model_folder(finished_digits_once) -> Path:
    """The model folder of 4 shots of the digits with mini, with thumbnails; not to be changed."""
    return finished_digits_once / "model"


@pytest.fixture(scope="session")
def digits(model_folder) -> ImageModel:
    return ImageModel.load(model_folder)


@pytest.fixture(scope="session")
def written() -> Callable[..., Image.Image]:
    """Function of the strokes of a digit: a picture of it, white ink on black."""

    def draw(strokes: list[Stroke], size: int = 300, corner: tuple[int, int] = (50, 50), pen: int = 24) -> Image.Image:
        image = Image.new("L", (400, 400))
        canvas = ImageDraw.Draw(image)
        for stroke in strokes:
            points = [(corner[0] + size * x, corner[1] + size * y) for x, y in stroke]
            canvas.line(points, fill=255, width=pen, joint="curve")
            for x, y in points:
                canvas.ellipse([x - pen / 2, y - pen / 2, x + pen / 2, y + pen / 2], fill=255)
        return image

    return draw


@pytest.fixture(scope="session")
def serving() -> Callable[..., AbstractContextManager[str]]:
    """Function of a command, without its port, and a folder: context of the address where it shows the page."""
    pytest.importorskip("gradio", reason="gradio is not installed, which shows the page")

    @contextmanager
    def serve(command: list[str], cwd: Path = ROOT, **environment: str) -> Iterator[str]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        words = [*command, "--port", str(port)]
        with subprocess.Popen(words, cwd=cwd, env=variables, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                lines = iter(process.stdout.readline, "")
                line = next((line for line in lines if line.startswith("http://")), "")
                assert line, f"{words} ended without showing a page"
                yield line.split()[0]
            finally:
                process.terminate()
                process.wait(timeout=60)

    return serve


@pytest.fixture(scope="session")
def demo_words() -> list[str]:
    """The words that begin the command."""
    return [sys.executable, "-m", "trainers.hegraph.demo"]
