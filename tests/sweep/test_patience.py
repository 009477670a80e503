"""A start of Ray is waited for as long as its first process runs, and no longer."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("ray")

from ray._private import services

from adray.sweep import patience
from adray.sweep.patience import patient_start, raylet_runs


@pytest.fixture
def slow(monkeypatch):
    """Ray's question for its node, which is answered after some tries; and a clock that runs fast."""
    clock = [0.0]

    def nap(seconds: float) -> None:
        clock[0] += 10 * seconds

    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", nap)

    def answer_after(tries: int) -> None:
        left = [tries]

        def ask(address: str, node: str) -> dict[str, str]:
            left[0] -= 1
            if left[0] >= 0:
                raise RuntimeError("the node is not there")
            return {"address": address, "node": node}

        monkeypatch.setattr(services, "get_node", ask)

    return answer_after


def test_a_slow_start_is_waited_for_with_one_line(slow, monkeypatch, capsys):
    monkeypatch.setattr(patience, "raylet_runs", lambda: True)
    slow(60)  # two minutes
    before = services.get_node
    with patient_start():
        assert services.get_node("here", "n") == {"address": "here", "node": "n"}
    assert services.get_node is before
    assert capsys.readouterr().out.count("slow to start") == 1


def test_a_quick_start_says_nothing(slow, monkeypatch, capsys):
    monkeypatch.setattr(patience, "raylet_runs", lambda: True)
    slow(2)
    with patient_start():
        services.get_node("here", "n")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("runs", "tries"), [(False, 1), (True, 10**6)])
def test_a_raylet_that_is_gone_or_never_answers_is_given_up(slow, runs, tries, monkeypatch):
    monkeypatch.setattr(patience, "raylet_runs", lambda: runs)
    slow(tries)
    with patient_start(), pytest.raises(RuntimeError, match="not there"):
        services.get_node("here", "n")


def test_a_raylet_is_known_as_a_child_that_runs(tmp_path: Path):
    assert not raylet_runs()
    program = tmp_path / "raylet" / "raylet"
    program.parent.mkdir()
    program.symlink_to("/bin/sleep")
    child = subprocess.Popen([program, "60"])
    try:
        # The kernel gives a program its command line a moment after it has begun.
        wait_until(raylet_runs)
    finally:
        child.kill()
    wait_until(lambda: not raylet_runs())
    child.wait()


def wait_until(holds: Callable[[], bool]) -> None:
    gives_up = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < gives_up
        time.sleep(0.01)
