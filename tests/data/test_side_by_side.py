"""Threads that read files ahead."""

from __future__ import annotations

import threading
import time

import pytest

from adray.data.side_by_side import map_side_by_side


def test_results_come_in_the_order_of_the_items():
    def wait(i):
        time.sleep(0.001 * (i % 3))
        return i * i

    assert list(map_side_by_side(wait, range(100))) == [i * i for i in range(100)]


def test_what_has_not_begun_when_the_caller_is_interrupted_is_never_done():
    begun = []
    gate = threading.Event()

    def note(i):
        begun.append(i)
        if i > 10:
            gate.wait(0.05)

    def interrupted():
        for done, _ in enumerate(map_side_by_side(note, range(2000))):
            if done == 10:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    time.sleep(0.2)
    assert len(begun) < 100


def test_an_error_of_one_item_reaches_the_caller():
    with pytest.raises(ZeroDivisionError):
        list(map_side_by_side(lambda i: 1 / i, [1, 0, 2]))
