"""Captions of rendered glyphs for the training of mini.

A positive caption names the glyph, sometimes with attributes of its rendering. A negative caption, such as "a photo of
no X", is true of every image that does not show X.
"""

import random
from collections.abc import Mapping, Sequence

POSITIVE_TEMPLATES = (
    'a photo of the number: "{}".',
    "a photo of a handwritten {}.",
    "a photo of a {}.",
    "a photo of the {}.",
    "a photo of the digit {}.",
    "a handwritten {}.",
    "a picture of a {}.",
    "an image of the symbol {}.",
    "a scan of a {}.",
    "a blurry photo of a {}.",
    "a close-up photo of a {}.",
    "a cropped photo of the {}.",
    "a low resolution photo of a {}.",
    "a drawing of a {}.",
    "the character {}.",
    "{}",
    "{}.",
    "this is a {}, written by hand and scanned with very few pixels.",
    "a photo of the {}, one of the many letters, digits and symbols that people write, print and read.",
    "in the middle of this small picture there is a {}; it fills nearly the whole height of the frame, "
    "and nothing else can be seen around it.",
)
# Templates for digits only
DIGIT_ONLY = ("the number {}", "the digit {}", "a photo of the number {}.", "a handwritten digit {}.")
NEGATIVE_TEMPLATES = (
    "a photo of no {}.",
    'a photo of the number: no "{}".',
    "a photo of no handwritten {}.",
    "no {}.",
    "a photo without a {}.",
    "a picture of anything but a {}.",
    "a photo that does not show the {}.",
    "there is no {} in this picture, but there is some other letter, digit or symbol.",
)
ATTRIBUTES = ("thick", "thin", "leaning", "bold", "serif", "coarse", "inverted", "coloured", "plain")
ATTRIBUTE_TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "thick": ("a photo of a thick {}.", "a {} written with a thick pen."),
    "thin": ("a photo of a thin {}.", "a {} written with a thin pen."),
    "leaning": ("a photo of a slanted {}.", "an italic {}."),
    "bold": ("a bold {}.", "a photo of the {} in bold type."),
    "serif": ("a {} with serifs.", "a photo of a {} printed in a serif typeface."),
    "coarse": ("a blurry {}.", "a pixelated photo of a {}."),
    "inverted": ("a black {} on a white background.", "an inverted photo of a {}."),
    "coloured": ("a coloured {}.", "a photo of a {} in colour."),
    "plain": ("a white {} on a black background.", "a bright {} in front of a dark background."),
}
ATTRIBUTE_CHANCE = 0.25  # probability of an attribute in the caption of an image that has one


def caption_names(name: str, is_digit: bool) -> tuple[str, ...]:
    """Names of a glyph in captions: "latin small letter a" is also called "latin small a"."""
    if is_digit:
        return (name,)
    return (name, name.replace(" letter", ""))


def positive_caption(name: str, is_digit: bool, attributes: Sequence[str], rng: random.Random) -> str:
    """Sample a positive caption of an image.

    Args:
        name: Name of the glyph in the image.
        is_digit: Whether the glyph is a digit.
        attributes: `ATTRIBUTES` of the image.
        rng: Random generator.
    """
    if attributes and rng.random() < ATTRIBUTE_CHANCE:
        templates = ATTRIBUTE_TEMPLATES[rng.choice(list(attributes))]
    elif is_digit and rng.random() < 0.15:
        templates = DIGIT_ONLY
    else:
        templates = POSITIVE_TEMPLATES
    return rng.choice(templates).format(rng.choice(caption_names(name, is_digit)))


def negative_caption(name: str, is_digit: bool, rng: random.Random) -> str:
    """Sample a negative caption, which is true of every image that does not show `name`."""
    return rng.choice(NEGATIVE_TEMPLATES).format(rng.choice(caption_names(name, is_digit)))
