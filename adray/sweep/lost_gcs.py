"""The end of a sweep whose GCS was killed.

The GCS is the process that keeps Ray's books. Where it is gone, any call of Ray waits a minute for
it, and Ray then ends the process with a line of its own. A thread looks for that and is quicker.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from adray.language.catalogue import spoken
from adray.sweep.patience import children_of_this_process

_LOOK_SECONDS = 1.0
_LOOKS = 3
"""In which a GCS has to be found dead: one that Ray itself ends is cleared away at once."""
_EXIT_CODE = 2


@contextmanager
def ended_without_gcs(command: str) -> Iterator[None]:
    """Have this process end with a sentence where the GCS that it started was killed.

    It ends at once, as by kill -9: what is finished stands in the store, and nothing can be asked
    of Ray any more.

    Args:
        command: with which the sweep goes on.
    """
    words = f"error: {spoken('ray gone', process='gcs_server', command=command)}\n".encode()
    # Elsewhere the terminal is kept from Ray for a while.
    terminal = os.dup(2)
    is_over = threading.Event()

    def watch() -> None:
        dead = 0
        while dead < _LOOKS:
            if is_over.wait(_LOOK_SECONDS):
                return
            dead = dead + 1 if gcs_was_killed() else 0
        os.write(terminal, words)
        os._exit(_EXIT_CODE)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        is_over.set()
        watcher.join()
        os.close(terminal)


def gcs_was_killed() -> bool:
    """Tell whether a GCS that this process started has ended without being asked to."""
    for child in children_of_this_process():
        with suppress(OSError):
            if "(gcs_server) Z" in (child / "stat").read_text():
                return True
    return False
