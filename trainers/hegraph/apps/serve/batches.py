"""Batches of images from concurrent requests.

While the backbone encodes a batch, further images wait; the next batch has all of them, up to a limit. A single request
is encoded at once, and many clients share batches. This needs no waiting time to tune, and no library: the queue and
the executor of asyncio suffice.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Runs a function of a batch in one thread, on items that concurrent tasks submit.

    Args:
        function: Function from a list of items to a list of their results.
        size: Largest number of items in a batch.
    """

    def __init__(self, function: Callable[[list[Item]], Sequence[Result]], size: int) -> None:
        self.function, self.size = function, size
        self._queue: asyncio.Queue[tuple[Item, asyncio.Future[Result]]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1)

    async def __call__(self, items: Sequence[Item]) -> list[Result]:
        """Return the results of items, in order; an exception of `function` is raised for all items of its batch."""
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in items]
        for pair in zip(items, futures):
            self._queue.put_nowait(pair)
        return list(await asyncio.gather(*futures))

    async def run(self) -> None:
        """Process batches until the task is cancelled."""
        while True:
            batch = [await self._queue.get()]
            while len(batch) < self.size and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            waiting = [pair for pair in batch if not pair[1].cancelled()]
            if waiting:
                await self._process(waiting)

    async def _process(self, waiting: Sequence[tuple[Item, asyncio.Future[Result]]]) -> None:
        """Set the results of waiting items, or the exception of `function`. Calls may be cancelled meanwhile."""
        items = [item for item, _ in waiting]
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._thread, self.function, items)
        except Exception as error:
            for _, future in waiting:
                if not future.cancelled():
                    future.set_exception(error)
            return
        for (_, future), result in zip(waiting, results):
            if not future.cancelled():
                future.set_result(result)
