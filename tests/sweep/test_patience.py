"""A start of Ray is waited for as long as its first process runs, and no longer."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("ray")

from ray._private import services

from adray.errors import InputError
from adray.sweep import patience, session
from adray.sweep.patience import RayletEndedError, patient_start, raylet_runs
from adray.sweep.resources import Node


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

        def is_listed(address: str, node: str) -> bool:
            left[0] -= 1
            return left[0] < 0

        def ask(address: str, node: str) -> dict[str, str]:
            if left[0] >= 0:
                raise RuntimeError("the node is not there")
            return {"address": address, "node": node}

        monkeypatch.setattr(patience, "is_listed", is_listed)
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


def test_a_raylet_that_never_answers_is_given_up(slow, monkeypatch):
    monkeypatch.setattr(patience, "raylet_runs", lambda: True)
    slow(10**6)
    with patient_start(), pytest.raises(RuntimeError, match="not there"):
        services.get_node("here", "n")


@pytest.mark.parametrize("runs_for", [0, 6, 90])
def test_a_raylet_that_ended_is_given_up_at_once_with_the_time_for_which_it_ran(
    runs_for, slow, monkeypatch
):
    monkeypatch.setattr(patience, "raylet_runs", lambda: time.monotonic() < runs_for)
    slow(10**6)
    with patient_start(), pytest.raises(RayletEndedError) as ended:
        services.get_node("here", "n")
    assert ended.value.seconds == pytest.approx(runs_for, abs=2.1)
    assert time.monotonic() < runs_for + 6


@pytest.mark.parametrize(
    ("error", "starts"),
    [
        (RayletEndedError(0.4), 2),
        (RayletEndedError(9.0), 2),
        (RayletEndedError(25.0), 10),
        (Exception("The current node timed out during startup."), 10),
        (ValueError("a word that nobody foresaw"), 1),
    ],
)
def test_only_a_start_that_was_too_slow_is_tried_again_and_again(
    error, starts, tmp_path, monkeypatch, capsys
):
    import ray

    tries = []

    def init(**_options: object) -> None:
        tries.append(1)
        raise error

    logs = tmp_path / f"session_x_{os.getpid()}" / "logs"
    logs.mkdir(parents=True)
    (logs / "raylet.out").write_text("its last words\n")
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(session, "choose_ray_folder", lambda: tmp_path)
    with pytest.raises(
        InputError, match=r"does not start .*raylet\.out: its last words$"
    ) as refused:
        session._start(session.site_of([Node(0, 1, 10**9)]), ray_log=False)
    assert str(error).strip(".") in str(refused.value)
    assert len(tries) == starts
    assert capsys.readouterr().out.count("slow to start") == (9 if starts == 10 else 0)


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
