"""A start of Ray that takes as long as a busy machine needs.

Ray gives its first process half a minute, whatever else the machine has to do, and then throws away
what has started. Here it is waited for as long as that process runs. Where it gave up itself, since
its helpers were slow, `adray.sweep.session` starts it again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

from adray.language.catalogue import spoken

_SAY_SECONDS = 20.0
_GIVE_UP_SECONDS = 600.0
_NAP_SECONDS = 0.2


@contextmanager
def patient_start() -> Iterator[None]:
    """Have Ray wait for its raylet as long as that runs, ten minutes at most."""
    from ray._private import services

    ask = services.get_node

    def wait_for_node(*arguments: Any) -> Any:
        began = time.monotonic()
        is_said = False
        while True:
            try:
                return ask(*arguments)
            except RuntimeError:
                waited = time.monotonic() - began
                if waited > _GIVE_UP_SECONDS or not raylet_runs():
                    raise
            if waited > _SAY_SECONDS and not is_said:
                is_said = True
                print(spoken("ray slow"), flush=True)
            time.sleep(_NAP_SECONDS)

    with mock.patch.object(services, "get_node", wait_for_node):
        yield


def raylet_runs() -> bool:
    """Tell whether a raylet runs that this process started."""
    for children in Path("/proc/self/task").glob("*/children"):
        for pid in children.read_text().split():
            # What has ended has no command line any more.
            with suppress(OSError):
                if b"raylet/raylet" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return True
    return False
