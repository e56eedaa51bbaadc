"""What the tests of the page share: a model of the digits with thumbnails, and pictures of digits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFont

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
    """Function of a digit: a picture of it, white ink on black."""

    def draw(digit: int, size: int = 300, corner: tuple[int, int] = (100, 20), pen: int = 4) -> Image.Image:
        image = Image.new("L", (400, 400))
        font = ImageFont.load_default(size)
        ImageDraw.Draw(image).text(corner, str(digit), fill=255, font=font, stroke_width=pen)
        return image

    return draw
