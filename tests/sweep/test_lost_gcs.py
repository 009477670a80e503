"""A process ends where the GCS that it started was killed, and only there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import subprocess, sys, time
from adray.sweep.lost_gcs import ended_without_gcs

with ended_without_gcs("adray sweep mine.yaml"):
    child = subprocess.Popen([sys.argv[1], "60"])
    child.kill()
    if sys.argv[2] == "asked":
        child.wait()
    time.sleep(6)
print("went on")
"""


@pytest.fixture
def gcs(tmp_path: Path) -> Path:
    """A program of the GCS's name."""
    program = tmp_path / "gcs_server"
    program.symlink_to("/bin/sleep")
    return program


def run(gcs: Path, how: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, gcs, how]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_process_whose_gcs_was_killed_ends_with_a_sentence_and_the_command_to_go_on(gcs):
    ended = run(gcs, "killed")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "(gcs_server) is gone" in ended.stderr
    assert "To go on: adray sweep mine.yaml" in ended.stderr


def test_a_gcs_that_is_ended_in_order_ends_nothing_else(gcs):
    ended = run(gcs, "asked")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "went on\n", "")
