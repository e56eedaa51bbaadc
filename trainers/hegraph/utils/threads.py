"""Parallel maps in threads, in order: over all items, or over batches with bounded memory."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from .signals import stop_if_interrupted

Item = TypeVar("Item")
Result = TypeVar("Result")

BATCHES_AHEAD = 2  # batches computed before they are used
CHUNK = 8  # items of one task of a thread, because handing over takes as long as reading a very small image
MAX_THREADS = 16


def cores() -> int:
    """Number of CPU cores available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_threads(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Return the results of `work` for all items in order, from one thread per core, at most `MAX_THREADS`."""
    with ThreadPoolExecutor(min(cores(), MAX_THREADS)) as pool:
        return list(pool.map(work, items))


def in_batches(
    work: Callable[[Item], Result], items: Iterable[Item], batch_size: int, threads: int
) -> Iterator[tuple[list[Item], list[Result]]]:
    """Iterate over batches of items in order, each with the results of `work`.

    Args:
        work: Function of one item, called by several threads at once. Its exceptions are raised here.
        items: Items, read as needed: at most `BATCHES_AHEAD` batches are computed in advance.
        batch_size: Items of a batch; the last batch may be smaller.
        threads: Number of threads.
    """
    remaining = iter(items)
    waiting: deque[tuple[list[Item], list[Future[list[Result]]]]] = deque()
    pool = ThreadPoolExecutor(threads)

    try:
        while True:
            while len(waiting) <= BATCHES_AHEAD and (batch := list(islice(remaining, batch_size))):
                chunks = [batch[start : start + CHUNK] for start in range(0, len(batch), CHUNK)]
                waiting.append((batch, [pool.submit(list, map(work, chunk)) for chunk in chunks]))
            if not waiting:
                return
            stop_if_interrupted()
            batch, done = waiting.popleft()
            yield batch, [result for each in done for result in each.result()]
    finally:
        pool.shutdown(cancel_futures=True)
