"""Of the processes that a driver leaves, Ray's helpers are known and ended, and no others."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adray.sweep.orphans import helpers_of

SLEEP = "import time; time.sleep(60)"


@pytest.fixture
def start():
    """Starts processes of a driver, by what their command line says."""
    started = []

    def start(*words: str, driver: str = "d1") -> int:
        command = [sys.executable, "-c", SLEEP, *words]
        started.append(subprocess.Popen(command, env={**os.environ, "ADRAY_DRIVER": driver}))
        return started[-1].pid

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_helpers_are_known_by_path_and_by_title_and_only_those_of_the_same_driver(start):
    helpers = {start("/lib/ray/dashboard/agent.py"), start("ray::RuntimeEnvAgent")}
    start("ray::IDLE")
    start("ray::RuntimeEnvAgent", driver="d2")
    start("ssh-agent")
    deadline = time.monotonic() + 20
    # A program gets its command line and environment a moment after it has begun.
    while set(helpers_of("ADRAY_DRIVER=d1")) != helpers:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_helpers_of_a_driver_that_has_ended_are_ended_and_those_of_another_are_not(start):
    left = start("ray::DashboardAgent")
    other = start("ray::DashboardAgent", driver="d2")
    command = [sys.executable, "-m", "adray.sweep.orphans", "ADRAY_DRIVER=d1"]
    subprocess.run(command, input=b"", check=True, timeout=60)
    time.sleep(0.5)
    assert not is_running(left)
    assert is_running(other)


def is_running(pid: int) -> bool:
    """Whether a process runs; one that was killed waits to be reaped."""
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state != "Z"
