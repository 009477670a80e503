"""Files read by a few threads, in their order, so that an interrupt ends it at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_THREADS = 4
_BATCH = 2048
"""Items that are handed out at a time: each takes a kilobyte until it is done."""
_MOST_AT_ONCE = 16
"""Items that a thread takes in one go where there are many: handing out costs as much as a header."""


def map_side_by_side(function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """Yield a function's results for all items in their order, while threads are ahead of it.

    What has not begun when the caller stops is never done.
    """
    stopped = Event()

    def do_some(some: Sequence[T]) -> list[R]:
        """Give the results of some items, as many as are done before the caller stops."""
        results = []
        for item in some:
            if stopped.is_set():
                break
            results.append(function(item))
        return results

    # Each thread has several turns, so that none is left with more than the others.
    step = max(1, min(_MOST_AT_ONCE, len(items) // (8 * _THREADS)))
    pool = ThreadPoolExecutor(_THREADS)
    try:
        for start in range(0, len(items), _BATCH):
            end = min(start + _BATCH, len(items))
            parts = [items[i : min(i + step, end)] for i in range(start, end, step)]
            for results in pool.map(do_some, parts):
                yield from results
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)
