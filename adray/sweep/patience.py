"""A start of Ray that takes as long as a busy machine needs.

Ray gives its first process half a minute, whatever else the machine has to do, and then throws away
what has started. Here it is waited for as long as that process runs. Where it gave up itself, since
its helpers were slow, `adray.sweep.session` starts it again. One that ends within seconds was not
slow.
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
_GONE_SECONDS = 1.0
"""For which a raylet is not seen before it counts as ended: a new one is not yet known by its name."""


class RayletEndedError(Exception):
    """The raylet ended by itself while it was waited for.

    Args:
        seconds: for which it ran.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(f"its first process ended by itself after {seconds:.0f} s")
        self.seconds = seconds


@contextmanager
def patient_start() -> Iterator[None]:
    """Have Ray wait for its raylet as long as that runs, ten minutes at most.

    Raises:
        RayletEndedError: in here, where it ended by itself.
    """
    from ray._private import services

    ask = services.get_node

    def wait_for_node(*arguments: Any) -> Any:
        began = time.monotonic()
        seen = began
        is_said = False
        while True:
            now = time.monotonic()
            waited = now - began
            # Where the node is not there yet, Ray's question takes half a minute.
            if waited > _GIVE_UP_SECONDS or is_listed(*arguments):
                try:
                    return ask(*arguments)
                except RuntimeError:
                    if waited > _GIVE_UP_SECONDS:
                        raise
            if raylet_runs():
                seen = now
            elif now - seen > _GONE_SECONDS:
                raise RayletEndedError(seen - began)
            if waited > _SAY_SECONDS and not is_said:
                is_said = True
                print(spoken("ray slow"), flush=True)
            time.sleep(_NAP_SECONDS)

    with mock.patch.object(services, "get_node", wait_for_node):
        yield


def is_listed(address: str, node: str) -> bool:
    """Tell whether a raylet has made itself known to the GCS, without waiting for it.

    Args:
        address: of the GCS.
        node: id of the raylet's node.
    """
    from ray._private import services, state

    books = state.GlobalState()
    books._initialize_global_state(services._get_gcs_client_options(address))
    with suppress(RuntimeError):
        return any(known["NodeID"] == node for known in books.node_table())
    return False


def raylet_runs() -> bool:
    """Tell whether a raylet runs that this process started."""
    for child in children_of_this_process():
        # What has ended has no command line any more.
        with suppress(OSError):
            if b"raylet/raylet" in (child / "cmdline").read_bytes():
                return True
    return False


def children_of_this_process() -> Iterator[Path]:
    """Yield the folders below ``/proc`` of the processes that this one started."""
    for children in Path("/proc/self/task").glob("*/children"):
        for pid in children.read_text().split():
            yield Path("/proc", pid)
