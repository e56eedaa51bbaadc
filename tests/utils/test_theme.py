"""Contrast of the colours of the theme, by WCAG 2.2."""

import re

import numpy as np
import pytest
from PIL import ImageColor

from trainers.hegraph.utils.theme import THEME_CSS

PAIRS = re.findall(r"--hg-([\w-]+): light-dark\((#\w+), (#\w+)\)", THEME_CSS)
SCHEMES = {"light": {name: light for name, light, _ in PAIRS}, "dark": {name: dark for name, _, dark in PAIRS}}
BACKGROUNDS = ("page", "surface", "soft")


def luminance(colour: str) -> float:
    values = np.array(ImageColor.getrgb(colour)) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(first: str, second: str) -> float:
    low, high = sorted(map(luminance, (first, second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("names", "least", "backgrounds"), [
    (("text", "grey", "accent", "accent-strong", "good", "warn", "bad"), 4.5, BACKGROUNDS),
    (("on-accent",), 4.5, ("accent", "accent-strong")),
    (("control",), 3.0, BACKGROUNDS),
])  # fmt: skip
def test_colours_have_enough_contrast(scheme, names, least, backgrounds):
    colours = SCHEMES[scheme]
    values = {(a, b): contrast(colours[a], colours[b]) for a in names for b in backgrounds}
    assert {pair: round(value, 2) for pair, value in values.items() if value < least} == {}
