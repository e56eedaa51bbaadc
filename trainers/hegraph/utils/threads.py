"""Work that threads do ahead of its use: in order, in batches, and in constant memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from .errors import stop_if_interrupted

Given = TypeVar("Given")
Result = TypeVar("Result")

AHEAD = 2  # batches
CHUNK = 8  # items that a thread does before it reports: handing over takes as long as reading a very small image
MAX_THREADS = 16


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_batches(
    work: Callable[[Given], Result], items: Iterable[Given], batch_size: int, threads: int
) -> Iterator[tuple[list[Given], list[Result]]]:
    """Batches of items in order, each with what `work` returns for its items.

    Args:
        work: Is called by several threads at once. What it raises, is raised here.
        items: Taken as they are needed: no more than `AHEAD` batches are done before they are taken.
        batch_size: Of every batch but the last, which may be smaller.
        threads: How many there are.
    """
    remaining = iter(items)
    waiting: deque[tuple[list[Given], list[Future[list[Result]]]]] = deque()
    pool = ThreadPoolExecutor(threads)

    try:
        while True:
            while len(waiting) <= AHEAD and (batch := list(islice(remaining, batch_size))):
                chunks = [batch[start : start + CHUNK] for start in range(0, len(batch), CHUNK)]
                waiting.append((batch, [pool.submit(list, map(work, chunk)) for chunk in chunks]))
            if not waiting:
                return
            stop_if_interrupted()
            batch, done = waiting.popleft()
            yield batch, [result for each in done for result in each.result()]
    finally:
        pool.shutdown(cancel_futures=True)
