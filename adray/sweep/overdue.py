"""Trials that hang so that not even the watchdog in their own process runs: stopped processes, calls that never return.

The watchdog of `adray.sweep.trial` ends a trial at its limit and leaves a stack dump. Where it does not, the driver
kills the process some time later, on whatever node it is.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from adray.results.store import owner_of, partials_of

_LOOK_SECONDS = 5.0
_GRACE_SECONDS = 30.0
"""A process that ends itself at its limit is given a tenth of the limit and this, to start and to write its dump."""

Kill = Callable[[str, int], None]


class Overdue:
    """Knows since when trials run, and ends those that are long past their limit.

    Args:
        driver: ``host-pid`` of the own sweep; processes of another one are left alone.
        kill: ends a process, by host and number.
    """

    def __init__(self, driver: str, kill: Kill) -> None:
        self._driver, self._kill = driver, kill
        self._running: dict[str, tuple[float, dict[str, Any]]] = {}
        self._look_after = 0.0

    def began(self, message: dict[str, Any]) -> None:
        """A trial's process took it up."""
        self._running[message["id8"]] = (time.monotonic(), message)

    def ended(self, message: dict[str, Any]) -> None:
        """A trial came to an end of any kind."""
        self._running.pop(message["id8"], None)

    def end(self) -> None:
        """Kill what is overdue; cheap, so that it may be called all the time."""
        now = time.monotonic()
        if now < self._look_after:
            return
        self._look_after = now + _LOOK_SECONDS
        for began, message in list(self._running.values()):
            if now - began > 1.1 * message["limit_seconds"] + _GRACE_SECONDS:
                self.ended(message)
                self._end(message)

    def _end(self, message: dict[str, Any]) -> None:
        for partial in partials_of(Path(message["folder"])):
            owner = owner_of(partial)
            if owner is None or owner.driver != self._driver:
                continue
            with suppress(OSError), (partial / "log.txt").open("a", encoding="utf-8") as log:
                log.write(
                    f"Timeout ({message['limit_seconds']:.0f} s)! The process did not react and was killed.\n"
                )
            self._kill(owner.host, owner.pid)


def kill_on_node(host: str, pid: int) -> None:
    """Kill a process of Ray's on the node of that name, without waiting for it; nothing where there is none."""
    if host == socket.gethostname():
        _kill(pid)
        return
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    node = next(
        (n["NodeID"] for n in ray.nodes() if n["Alive"] and n["NodeManagerHostname"] == host), None
    )
    if node is not None:
        kill: Any = ray.remote(_kill)
        kill.options(
            num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote(pid)


def _kill(pid: int) -> None:
    with suppress(OSError):
        if (
            b"ray::" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ):  # the number may be another process's by now
            os.kill(pid, signal.SIGKILL)
