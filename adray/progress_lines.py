"""How far long work is, as lines of the log: a command shows them, a worker's log keeps them."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

PROGRESS = logging.getLogger(__name__)
"""Takes a line every few seconds, and an empty one at the end of work of which there was a line."""
SECONDS = 3.0
"""Work that takes no longer says nothing."""


@contextmanager
def stage(what: str) -> Iterator[None]:
    """Say at once what is done, for work that takes seconds and has no parts."""
    PROGRESS.info(what)
    try:
        yield
    finally:
        PROGRESS.info("")


def watched(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Pass items on, and log every few seconds how many are done.

    Args:
        items: what is worked on, one by one.
        what: is done with them, such as ``hashing files``.
        total: number of items, where they do not know it themselves.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    of = "" if total is None else f"/{total}"
    said = False
    due = time.monotonic() + SECONDS
    for number, item in enumerate(items):
        yield item
        if time.monotonic() >= due:
            PROGRESS.info("%s %d%s", what, number + 1, of)
            said = True
            due = time.monotonic() + SECONDS
    if said:
        PROGRESS.info("")
