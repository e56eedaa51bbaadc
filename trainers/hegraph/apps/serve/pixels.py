"""Limits on the pixels of images that are in memory, whatever the size of their files."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from ...utils.errors import UserError
from .errors import TOO_LARGE


class PixelBudget:
    """Number of pixels that tasks may have in memory together. Tasks wait for it in the order of their requests.

    Args:
        total: Largest number of pixels. An image with more waits until it is alone.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.free = total
        self._queue = deque[tuple[int, asyncio.Future[None]]]()

    @asynccontextmanager
    async def take(self, pixels: int) -> AsyncIterator[None]:
        """Context that has a number of pixels of the budget."""
        pixels = min(pixels, self.total)
        await self._acquire(pixels)
        try:
            yield
        finally:
            self._release(pixels)

    async def _acquire(self, pixels: int) -> None:
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((pixels, granted))
        self._grant()
        try:
            await granted
        except asyncio.CancelledError:
            if granted.cancelled():
                self._grant()  # tasks behind this one may go on
            else:
                self._release(pixels)
            raise

    def _release(self, pixels: int) -> None:
        self.free += pixels
        self._grant()

    def _grant(self) -> None:
        """Let the first tasks of the queue go on, as far as the budget allows it."""
        while self._queue:
            pixels, granted = self._queue[0]
            if not granted.cancelled():
                if pixels > self.free:
                    return
                self.free -= pixels
                granted.set_result(None)
            self._queue.popleft()


def check_pixels(pixels: Sequence[int], most: int) -> None:
    """Raise UserError if the images of a request have more pixels than `most` together."""
    if sum(pixels) > most:
        problem = f"expected images with at most {most // 10**6} million pixels in a request"
        raise UserError(f"{problem}, got {sum(pixels) / 10**6:.0f} million; send several requests", TOO_LARGE)
