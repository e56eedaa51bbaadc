"""What the tests of the page share: a model of the digits with thumbnails, and the page as a user starts it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from strokes import Stroke

from trainers.hegraph.models.images import ImageModel


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
def demo_words() -> list[str]:
    """The words that begin the command."""
    return [sys.executable, "-m", "trainers.hegraph.demo"]
