"""What happens to a trial that has ended: one pure function of how it ended and of the past.

| it ended | and | next |
|---|---|---|
| done, stopped by a scheduler | | nothing more |
| another sweep works on it | | it waits for that sweep's result |
| out of memory | there is a higher retry level | it runs again there |
| the store or the data away | attempts are left | it runs again |
| any other error | | it failed |
| its process crashed, and the log says why | | it failed |
| its node is gone | attempts are left | it runs again, elsewhere |
| its process crashed without a log | attempts are left | it runs again, alone, after all others |
| Ray ended the whole round | it had not started | it runs again |
| ... | it had started beside others | it runs again, alone, after all others |
| ... | it ran alone | it runs again at the next retry level |

Where the condition does not hold it failed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from adray.language.sentence import Sentence, Term
from adray.sweep.assignment import Assignment, Outcome, at_retry_level
from adray.sweep.resources import RETRY_LEVELS

KILLED = "crashed without a log: the process exited, was killed, or ran out of memory"
LOST_NODE = "the node that it ran on is gone"
HOST_MEMORY = "killed because the host ran out of memory, also when it ran alone; raise memory_gb or lower batch_size"


@dataclass(frozen=True)
class NextStep:
    """What to do with a trial that has ended."""

    action: Literal["finish", "stop", "fail", "again", "again_alone"]
    """``finish`` and ``stop`` need nothing more; ``again`` joins the next round, ``again_alone``
    follows all others."""
    assignment: Assignment
    """As it runs again, or as it ran."""
    say: Sentence | None = None
    """For the person who watches, without the cell; None where there is nothing to say."""
    reason: str = ""
    """Why it failed."""


def next_step(assignment: Assignment, outcome: Outcome, *, recorded: bool = False) -> NextStep:
    """Decide what happens to a trial that has ended. See the table above.

    Args:
        assignment: as it ran.
        outcome: how it ended.
        recorded: whether the store took its failure, which then counts as an attempt.
    """
    if outcome.status == "done":
        return NextStep("finish", assignment)
    if outcome.status == "stopped":
        return NextStep("stop", assignment)
    if outcome.status == "taken":
        say = None if assignment.waits else Sentence.of("retry other sweep")
        return NextStep("again", replace(assignment, waits=True), say)
    if outcome.status == "failed":
        return _after_failure(assignment, outcome, recorded)
    if outcome.status == "crashed":
        return _after_crash(assignment, outcome)
    return _after_interruption(assignment, outcome)


def _after_failure(assignment: Assignment, outcome: Outcome, recorded: bool) -> NextStep:
    """Decide after an error that the worker caught."""
    if outcome.kind == "out_of_memory" and not _is_at_last_level(assignment):
        counted = replace(assignment, attempts=assignment.attempts + 1)
        return _one_level_up(counted, "again")

    if outcome.kind == "io" and assignment.attempts_left > 1:
        again = replace(
            assignment,
            attempts_left=assignment.attempts_left - 1,
            attempts=assignment.attempts + recorded,
        )
        return NextStep("again", again, Sentence.of("retry again", reason=outcome.reason[:200]))

    return NextStep("fail", assignment, reason=outcome.reason)


def _after_crash(assignment: Assignment, outcome: Outcome) -> NextStep:
    """Decide after the end of the process."""
    if outcome.kind == "explained" or assignment.attempts_left <= 1:
        return NextStep("fail", assignment, reason=outcome.reason)

    again = replace(assignment, attempts_left=assignment.attempts_left - 1)
    if outcome.kind == "node_lost":
        return NextStep("again", again, Sentence.of("retry elsewhere", reason=outcome.reason))
    return NextStep("again_alone", again, Sentence.of("retry alone", reason=outcome.reason))


def _after_interruption(assignment: Assignment, outcome: Outcome) -> NextStep:
    """Decide after the end of the whole round: Ray's memory monitor ends it with the trial that it kills."""
    if outcome.kind == "not_started":
        return NextStep("again", assignment)
    if outcome.kind == "started":
        return NextStep("again_alone", assignment)
    if _is_at_last_level(assignment):
        return NextStep("fail", assignment, reason=HOST_MEMORY)
    return _one_level_up(assignment, "again_alone")


def _one_level_up(assignment: Assignment, action: Literal["again", "again_alone"]) -> NextStep:
    """Give a trial that ran out of memory more room."""
    level = assignment.retry_level + 1
    how = Term(RETRY_LEVELS[level].description)
    say = Sentence.of("retry memory", level=how)
    return NextStep(action, at_retry_level(assignment, level), say)


def _is_at_last_level(assignment: Assignment) -> bool:
    """Tell whether there is no more room to give."""
    return assignment.retry_level + 1 >= len(RETRY_LEVELS)
