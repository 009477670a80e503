"""What happens to a trial that has ended, case by case."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from test_assignment import an_assignment

from adray.sweep.assignment import ATTEMPTS, Outcome
from adray.sweep.resources import RETRY_LEVELS
from adray.sweep.retries import HOST_MEMORY, next_step

LAST = len(RETRY_LEVELS) - 1
FIRST = an_assignment(Path("/store"))

CASES = [
    # how it ended                            as it ran                what is next   what differs then
    (Outcome("done"), {}, "finish", {}),
    (Outcome("stopped"), {"watched": True}, "stop", {}),
    (Outcome("taken"), {}, "again", {"waits": True}),
    (Outcome("taken"), {"waits": True}, "again", {}),
    (Outcome("failed", "error"), {}, "fail", {}),
    (Outcome("failed", "input"), {}, "fail", {}),
    (Outcome("failed", "disk_full"), {}, "fail", {}),
    (Outcome("failed", "out_of_memory"), {}, "again", {"retry_level": 1, "attempts": 1}),
    (Outcome("failed", "out_of_memory"), {"retry_level": LAST}, "fail", {}),
    (Outcome("failed", "io"), {}, "again", {"attempts_left": ATTEMPTS - 1}),
    (Outcome("failed", "io"), {"attempts_left": 1}, "fail", {}),
    (Outcome("crashed", "explained"), {}, "fail", {}),
    (Outcome("crashed", "node_lost"), {}, "again", {"attempts_left": ATTEMPTS - 1}),
    (Outcome("crashed", "node_lost"), {"attempts_left": 1}, "fail", {}),
    (Outcome("crashed", "silent"), {}, "again_alone", {"attempts_left": ATTEMPTS - 1}),
    (Outcome("crashed", "silent"), {"attempts_left": 1}, "fail", {}),
    (Outcome("interrupted", "not_started"), {}, "again", {}),
    (Outcome("interrupted", "started"), {}, "again_alone", {}),
    (Outcome("interrupted", "alone"), {}, "again_alone", {"retry_level": 1}),
    (Outcome("interrupted", "alone"), {"retry_level": LAST}, "fail", {}),
]


@pytest.mark.parametrize(("outcome", "ran", "action", "changes"), CASES)
def test_what_is_next_for_a_trial_that_ended(outcome, ran, action, changes):
    assignment = replace(FIRST, **ran)
    step = next_step(assignment, outcome)
    assert step.action == action
    differs = {
        name: getattr(step.assignment, name)
        for name in assignment.__dataclass_fields__
        if getattr(step.assignment, name) != getattr(assignment, name)
    }
    differs.pop("train", None)  # a retry level makes the evaluation batch smaller
    assert differs == changes


def test_every_way_of_ending_stops_being_tried_again_but_waiting_for_another_sweep():
    for outcome in {case[0] for case in CASES if case[0].status != "taken"}:
        if outcome.kind in ("started", "not_started"):
            continue  # the next round decides
        assignment = FIRST
        for _ in range(20):
            step = next_step(assignment, outcome)
            assignment = step.assignment
            if step.action in ("finish", "stop", "fail"):
                break
        assert step.action in ("finish", "stop", "fail"), outcome


def test_a_recorded_failure_counts_as_an_attempt():
    away = Outcome("failed", "io", "the mount is away")
    assert next_step(FIRST, away, recorded=True).assignment.attempts == 1
    assert next_step(FIRST, away, recorded=False).assignment.attempts == 0


def test_a_failure_names_its_reason_and_a_retry_says_so_once():
    assert next_step(FIRST, Outcome("failed", "error", "boom")).reason == "boom"
    alone = replace(FIRST, retry_level=LAST)
    assert next_step(alone, Outcome("interrupted", "alone")).reason == HOST_MEMORY
    waiting = next_step(FIRST, Outcome("taken"))
    assert "waited for" in str(waiting.say)
    assert next_step(waiting.assignment, Outcome("taken")).say is None
