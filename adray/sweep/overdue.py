"""Trials that hang so that not even the watchdog in their own process runs.

That are stopped processes, and calls that never return.

The watchdog of `adray.sweep.worker` ends a trial at its limit and leaves a stack dump. Where it
does not, the driver kills the process some time later, on whatever node it is.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from adray.machine import host_identity
from adray.results.store import owner_of, partials_of
from adray.sweep.assignment import Assignment

_LOOK_SECONDS = 5.0
_GRACE_SECONDS = 30.0
"""A process that ends itself at its limit is given a tenth of the limit and this, to start and
to write its dump."""

Kill = Callable[[str, int], None]


class Overdue:
    """Knows since when trials run, and ends those that are long past their limit.

    Args:
        driver: ``host-pid`` of the own sweep; processes of another one are left alone.
        kill: ends a process, by host and number.
    """

    def __init__(self, driver: str, kill: Kill) -> None:
        self._driver = driver
        self._kill = kill
        self._running: dict[str, tuple[float, Assignment]] = {}
        self._look_after = 0.0

    def began(self, assignment: Assignment) -> None:
        """Take note that a process took up a trial."""
        self._running[assignment.id8] = (time.monotonic(), assignment)

    def ended(self, assignment: Assignment) -> None:
        """Take note that a trial came to an end of any kind."""
        self._running.pop(assignment.id8, None)

    def end(self) -> None:
        """Kill what is overdue. It is cheap, so that it may be called all the time."""
        now = time.monotonic()
        if now < self._look_after:
            return

        self._look_after = now + _LOOK_SECONDS
        for began, assignment in list(self._running.values()):
            if now - began > 1.1 * assignment.limit_seconds + _GRACE_SECONDS:
                self.ended(assignment)
                self._end(assignment)

    def _end(self, assignment: Assignment) -> None:
        """Kill the process of a trial, with a line in its log as its watchdog would have left."""
        for partial in partials_of(Path(assignment.folder)):
            owner = owner_of(partial)
            if owner is None or owner.driver != self._driver:
                continue
            with suppress(OSError), (partial / "log.txt").open("a", encoding="utf-8") as log:
                log.write(
                    f"Timeout ({assignment.limit_seconds:.0f} s)! "
                    "The process did not react and was killed.\n"
                )
            self._kill(owner.host, owner.pid)


def kill_on_node(host: str, pid: int) -> None:
    """Kill a process of Ray's on the node of that identity, without waiting for it.

    Do nothing where there is none.
    """
    if host == host_identity():
        _kill(pid)
        return

    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    for node in ray.nodes():
        if node["Alive"] and node["NodeManagerHostname"] == host.rpartition(".")[0]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            kill: Any = ray.remote(_kill)
            kill.options(num_cpus=0, scheduling_strategy=there).remote(pid)
            return


def _kill(pid: int) -> None:
    """Kill a process if it is one of Ray's: the number may be another process's by now."""
    with suppress(OSError):
        if b"ray::" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
