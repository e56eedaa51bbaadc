"""Decoding of photos at the scale that an encoder needs.

A photo of 12 megapixels is 60 times as large as the input of an encoder. The decoder of JPEG computes an image with a
half, a quarter or an eighth of the sides in half of the time, and resizing this image takes a tenth of the time. Other
formats are decoded at full size.

Images of published data sets are decoded at full size, because their results are published. So are images whose pixels
are hashed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from PIL import Image

from .images import ImageSource, decoded, open_any, open_header, upright_size

FULL = "full"  # values of INPUT.DECODE
REDUCED = "auto"
DECODINGS = (REDUCED, FULL)
FACTORS = (1, 2, 4, 8)  # by which the decoder of JPEG can divide the sides of an image


class DecodedImage(NamedTuple):
    """RGB image, and the factor by which its sides are smaller than those of its file.

    Attributes:
        pixels: The upright image. Its sides are rounded up.
        size: Width and height of the upright image at full size.
        factor: One of `FACTORS`.
    """

    pixels: Image.Image
    size: tuple[int, int]
    factor: int

    @classmethod
    def whole(cls, pixels: Image.Image) -> DecodedImage:
        """An image at full size."""
        return cls(pixels, pixels.size, 1)


class LazyImage:
    """Image whose pixels are decoded when they are needed, once for each factor.

    Args:
        size: Width and height of the upright image at full size.
        decode: Function from one of the factors to the upright RGB image.
        factors: Factors at which the image can be decoded.
    """

    def __init__(
        self, size: tuple[int, int], decode: Callable[[int], Image.Image], factors: Sequence[int] = (1,)
    ) -> None:
        self.size = size
        self._decode = decode
        self._factors = factors
        self._decoded: dict[int, DecodedImage] = {}

    @classmethod
    def whole(cls, pixels: Image.Image) -> LazyImage:
        """An image that is decoded at full size already."""
        return cls(pixels.size, lambda factor: pixels)

    @classmethod
    def read(cls, source: ImageSource, decode: str, max_pixels: float = math.inf) -> LazyImage:
        """Open an image; `decode` is one of `DECODINGS`; with "auto", a JPEG file can be reduced.

        Raises:
            Exception: As in `open_image`; decoding may raise exceptions as well.
        """
        if isinstance(source, Image.Image):
            return cls.whole(open_any(source))
        file = open_header(source, max_pixels)
        if decode == FULL or file.format not in ("JPEG", "MPO"):
            with file:
                return cls.whole(decoded(file))
        unread = [file]  # the opened file, which the first decoding takes

        def decode_reduced(factor: int) -> Image.Image:
            with unread.pop() if unread else open_header(source) as photo:
                photo.draft(None, (max(photo.width // factor, 1), max(photo.height // factor, 1)))
                return decoded(photo)

        return cls(upright_size(file), decode_reduced, FACTORS)

    def decoded(self, limit: float) -> DecodedImage:
        """Decode the image with the largest possible factor up to `limit`, or at full size.

        Raises:
            Exception: Of many types, on damaged bytes; `reason` converts it to one line.
        """
        factor = max((each for each in self._factors if each <= limit), default=1)
        if factor not in self._decoded:
            self._decoded[factor] = DecodedImage(self._decode(factor), self.size, factor)
        return self._decoded[factor]
