"""Names and pictures of the glyphs on which mini is trained.

Pictures are rendered with the fonts of matplotlib (`mpl-data/fonts/ttf`: DejaVu, STIX and Computer Modern). Names come
from the Unicode character database (`unicodedata.name`). Nothing is downloaded. A font renders only characters of its
`cmap` table, since it renders a box for any other.

Some names have the same picture, such as the capital A in Latin, Greek and Cyrillic, or the letter o and the digit
zero. A contrastive loss cannot separate them, so `distinct_names` selects the first name of each picture.
"""

import logging
import unicodedata
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont

logger = logging.getLogger(__name__)

MASK_SIZE = 48  # width and height of a mask in pixels
INK_SIZE = 40  # longer side of the glyph in its mask, in pixels
SAME_PICTURE = 0.9  # intersection over union above which two names have the same picture

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# Only letters and digits of Computer Modern (cm*) are used, since its other characters have a special encoding
FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *("cmr10", "cmb10", "cmss10", "cmti10", "cmtt10", "cmmi10"),
)
SYMBOLS = "+×÷=≠≈<>±∞∫∂∇√∑∏∈∪∩⊂∀∃∧¬←↑→↓↔⇒★☆♥♦♣♠●■▲▼◆☼☺☎✓✗€£$¥¢%&@#§¶?!*~^/\\()[]{}©®♪♯♭"  # noqa: RUF001


@dataclass(frozen=True)
class Glyph:
    """Glyph with its name and the characters that show it."""

    name: str
    characters: tuple[str, ...]

    @property
    def is_digit(self) -> bool:
        return self.name in DIGIT_NAMES


@dataclass(frozen=True)
class GlyphMasks:
    """M masks of all glyphs in all fonts that have them.

    Attributes:
        glyphs: Glyphs in label order.
        masks: Masks, uint8 of shape `[M, MASK_SIZE, MASK_SIZE]`, 255 for ink.
        labels: Index of the glyph of each mask in `glyphs`, shape `[M]`.
        fonts: Index of the font of each mask in `FONTS`, shape `[M]`.
        bold, slanted, serif: Whether the font has this style, shape `[M]`.
    """

    glyphs: tuple[Glyph, ...]
    masks: torch.Tensor
    labels: torch.Tensor
    fonts: torch.Tensor
    bold: torch.Tensor
    slanted: torch.Tensor
    serif: torch.Tensor


def candidate_glyphs() -> list[Glyph]:
    """List all glyphs by priority: digits, Latin, Greek, Cyrillic, and symbols."""
    glyphs = [Glyph(name, _digit_characters(value)) for value, name in enumerate(DIGIT_NAMES)]
    letters = [chr(code) for code in (*range(0x41, 0x5B), *range(0x61, 0x7B))]
    greek = [chr(code) for code in (*range(0x391, 0x3AA), *range(0x3B1, 0x3CA)) if code != 0x3A2]
    cyrillic = [chr(code) for code in range(0x410, 0x450)]
    for character in (*letters, *greek, *cyrillic, *SYMBOLS):
        glyphs.append(Glyph(unicodedata.name(character).lower(), (character,)))
    return glyphs


def _digit_characters(value: int) -> tuple[str, ...]:
    """List a digit and its typographic variants: mathematical, superscript, subscript."""
    digit = str(value)
    variants = [chr(code) for block in ((0x2070, 0x208A), (0x1D7CE, 0x1D800)) for code in range(*block)]
    variants += ["¹", "²", "³"]
    same = [character for character in variants if unicodedata.normalize("NFKC", character) == digit]
    return (digit, *same)


def font_path(font: str) -> Path:
    """Path of one of `FONTS`, which an older version of matplotlib may not have."""
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"


def draw(font: ImageFont.FreeTypeFont, character: str) -> np.ndarray | None:
    """Render a character as a centred mask, uint8 of shape `[MASK_SIZE, MASK_SIZE]`; None if it has no ink."""
    canvas = Image.new("L", (256, 256))
    ImageDraw.Draw(canvas).text((128, 170), character, fill=255, font=font, anchor="ms")
    box = canvas.getbbox()
    if box is None:
        return None
    ink = canvas.crop(box)
    scale = INK_SIZE / max(ink.size)
    width, height = (max(1, round(side * scale)) for side in ink.size)
    mask = Image.new("L", (MASK_SIZE, MASK_SIZE))
    resized = ink.resize((width, height), Image.Resampling.BOX)
    mask.paste(resized, ((MASK_SIZE - width) // 2, (MASK_SIZE - height) // 2))
    return np.asarray(mask)


@cache
def load_masks() -> GlyphMasks:
    """Render the glyphs of `distinct_names` in all fonts."""
    glyphs = candidate_glyphs()
    rows = []
    for font_index, font_name in enumerate(FONTS):
        if not font_path(font_name).exists():  # cmti10 came with matplotlib 3.11
            logger.warning("matplotlib %s has no font %s: the weights will differ", matplotlib.__version__, font_name)
            continue
        font = ImageFont.truetype(str(font_path(font_name)), size=96)
        for label, character in _drawable(font_name, glyphs):
            mask = draw(font, character)
            if mask is not None:
                rows.append((label, font_index, character, mask))
    selected = distinct_names(glyphs, rows)
    new_label = {label: index for index, label in enumerate(selected)}
    rows = [row for row in rows if row[0] in new_label]
    names = [FONTS[font_index] for _, font_index, _, _ in rows]
    return GlyphMasks(
        glyphs=tuple(glyphs[label] for label in selected),
        masks=torch.from_numpy(np.stack([mask for *_, mask in rows])),
        labels=torch.tensor([new_label[row[0]] for row in rows]),
        fonts=torch.tensor([row[1] for row in rows]),
        bold=torch.tensor(["Bol" in name or name == "cmb10" for name in names]),
        slanted=torch.tensor([any(s in name for s in ("Oblique", "Ita", "cmti", "cmmi")) for name in names]),
        serif=torch.tensor(["Sans" not in name and name != "cmss10" for name in names]),
    )


def _drawable(font_name: str, glyphs: list[Glyph]) -> list[tuple[int, str]]:
    """Labels and characters of the glyphs that a font has."""
    cmap = TTFont(font_path(font_name)).getBestCmap()
    if font_name.startswith("cm"):
        cmap = {code: name for code, name in cmap.items() if code < 128 and chr(code).isalnum()}
    characters = [(label, character) for label, glyph in enumerate(glyphs) for character in glyph.characters]
    return [(label, character) for label, character in characters if ord(character) in cmap]


def distinct_names(glyphs: list[Glyph], rows: list[tuple[int, int, str, np.ndarray]]) -> list[int]:
    """Select labels, in order, whose pictures differ from those of all selected labels in every font.

    Pictures are stretched to a square first, because the augmentation changes the aspect ratio. Two pictures are the
    same if the intersection over union of their grey values is above `SAME_PICTURE`.

    Args:
        glyphs: Candidates in label order.
        rows: Label, index of the font, character and mask of each picture.
    """
    pictures: dict[int, list[tuple[int, np.ndarray]]] = {}
    for label, font_index, _, mask in rows:
        pictures.setdefault(font_index, []).append((label, _stretched(mask)))
    clashes: set[tuple[int, int]] = set()
    for labelled in pictures.values():
        labels = np.array([label for label, _ in labelled])
        flat = np.stack([picture for _, picture in labelled])
        for row, label in enumerate(labels):
            overlap = np.minimum(flat, flat[row]).sum(1) / np.maximum(flat, flat[row]).sum(1)
            clashes.update((int(label), int(other)) for other in labels[overlap > SAME_PICTURE])
    selected: list[int] = []
    for label in sorted({row[0] for row in rows}):
        if glyphs[label].is_digit or not any((label, other) in clashes for other in selected):
            selected.append(label)
    return selected


def _stretched(mask: np.ndarray, side: int = 24) -> np.ndarray:
    """Stretch the ink of a mask to a square, with values in 0 ... 1 and shape `[side * side]`."""
    image = Image.fromarray(mask)
    square = image.crop(image.getbbox()).resize((side, side), Image.Resampling.BOX)
    return np.asarray(square, dtype=np.float32).ravel() / 255
