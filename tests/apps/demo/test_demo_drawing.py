"""Conversion of drawings into scans, and their classification."""

import base64
import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont, ImageOps

from trainers.hegraph.apps.demo import drawing
from trainers.hegraph.datasets.digits import CLASSNAMES, open_digit
from trainers.hegraph.utils.errors import UserError


def written(digit: int, size: int = 300, corner: tuple[int, int] = (100, 20), pen: int = 4) -> Image.Image:
    """A picture of a digit, white ink on black."""
    image, font = Image.new("L", (400, 400)), ImageFont.load_default(size)
    ImageDraw.Draw(image).text(corner, str(digit), fill=255, font=font, stroke_width=pen)
    return image


def as_ink(image):
    return np.asarray(image.convert("L")) / 255


def named(digits, images):
    return [CLASSNAMES[label] for label in digits.model.probabilities(digits.features(images)).argmax(dim=1)]


def test_digits_of_any_size_and_pen_are_classified(digits):
    for size, corner, pen in ((300, (100, 20), 0), (300, (100, 20), 8), (150, (20, 150), 0), (150, (20, 150), 4)):
        bright = [written(digit, size, corner, pen) for digit in range(10)]
        drawn = named(digits, [drawing.scan_of_ink(as_ink(image)) for image in bright])
        assert np.mean([name == right for name, right in zip(drawn, CLASSNAMES)]) >= 0.6  # the model has seen 4 of each
        dark = [ImageOps.invert(image).point(lambda level: 60 + level // 2) for image in bright]  # grey paper, grey ink
        assert named(digits, [drawing.scan_of_picture(image) for image in dark]) == drawn


def test_scan_looks_like_the_data_set():
    for pen in (0, 30):
        scan = drawing.scan_of_ink(as_ink(written(3, pen=pen)))
        assert (scan.mode, scan.size) == ("RGB", (8, 8))
        levels = np.asarray(scan)[:, :, 0] / 255
        assert levels.sum() == pytest.approx(314 / 16, rel=0.1)
        assert levels[0].max() > 0 and levels[-1].max() > 0  # it fills the height
    for shape in ((1, 1), (1, 300), (300, 1)):
        assert drawing.scan_of_ink(np.full(shape, 0.2)).size == (8, 8)
    scan = open_digit("digits/0900")
    assert np.array_equal(np.asarray(drawing.scan_of_picture(scan)), np.asarray(scan)), "a scan stays as it is"
    with pytest.raises(UserError, match="no digit found"):
        drawing.scan_of_picture(Image.new("RGB", (100, 100), "white"))


def test_only_models_of_digits_get_a_canvas(digits):
    assert drawing.classifies_digits(digits.model)
    other = digits.model.trained_on.model_copy(update={"dataset": "Food101"})
    assert not drawing.classifies_digits(digits.model.model_copy(update={"trained_on": other}))
    assert not drawing.classifies_digits(
        digits.model.model_copy(update={"classnames": ("cat", *digits.model.classnames[1:])})
    )


def test_ink_of_canvas_and_refused_values():
    side, url = (drawing.SIDE, drawing.SIDE), drawing.data_url
    image = Image.new("RGBA", side, "black")
    image.paste("white", (10, 20, 30, 40))
    ink = drawing.ink_of_canvas(url(image))
    assert (ink.shape, ink.sum(), ink[20:40, 10:30].min()) == (side, 400, 1)
    gif = io.BytesIO()
    image.save(gif, "GIF")
    blank, large, start = Image.new("L", side), Image.new("1", (60_000, 10_000), 1), "data:image/png;base64,"
    for value in (
        None, 7, "http://127.0.0.1/image.png", start, start + "A" * 300_000, url(blank), url(image)[:60],
        url(large), start + base64.b64encode(gif.getvalue()).decode(), url(Image.new("L", (8, 8), 255)),
    ):  # fmt: skip
        with pytest.raises(UserError, match="the drawing arrived damaged"):
            drawing.ink_of_canvas(value)
