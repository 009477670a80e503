"""Of the processes that a driver leaves, those of its Ray are known and ended, and no others."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from adray.sweep.orphans import left_of

HELPER = """
import sys, time
log = open(sys.argv[1], "w")
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def start(tmp_path: Path):
    """Starts processes that write a log, by the name of their folder."""
    started = []

    def start(folder: str) -> int:
        log = tmp_path / folder / "agent.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-c", HELPER, log]
        # As a title of Ray's leaves it: nothing is told by the environment.
        started.append(subprocess.Popen(command, env={}, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "ready\n"
        return started[-1].pid

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_processes_are_known_by_the_logs_that_they_write_and_only_those_of_the_same_driver(start):
    first = start("session_2026-01-01_00-00-00_000001_4321/logs")
    second = start("session_2026-01-02_00-00-00_000001_4321/logs")
    start("session_2026-01-01_00-00-00_000001_54321/logs")
    start("session_2026-01-01_00-00-00_004321_1/logs")
    start("session_2026-01-01_00-00-00_000001_4321/other")
    assert set(left_of(4321)) == {first, second}


def test_the_driver_itself_is_none_of_them(start):
    folder = "session_2026-01-01_00-00-00_000001_{}/logs"
    other = start(folder.format(4321))
    assert left_of(other) == []
    assert left_of(4321) == [other]


def test_what_a_driver_left_is_ended_and_what_is_anothers_is_not(start):
    left = start("session_2026-01-01_00-00-00_000001_4321/logs")
    other = start("session_2026-01-01_00-00-00_000001_4322/logs")
    command = [sys.executable, "-m", "adray.sweep.orphans", "4321"]
    subprocess.run(command, input=b"", check=True, timeout=60)
    time.sleep(0.5)
    assert not is_running(left)
    assert is_running(other)


def is_running(pid: int) -> bool:
    """Whether a process runs; one that was killed waits to be reaped."""
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state != "Z"
