"""What a person sees of a sweep that runs: a line for each trial that ends, and the time left."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from tqdm import tqdm

from adray.sweep.assignment import Assignment, Outcome
from adray.sweep.resources import Need
from adray.sweep.schedule import format_duration
from adray.sweep.sweep import Sweep

_TABLE_SECONDS = 30.0
_TABLE_PART = 20
"""Tables are written so seldom that they take at most one part in so many of the time."""


@dataclass(frozen=True)
class TimeLeft:
    """Seconds to the end of a sweep."""

    seconds: float
    """What is expected."""
    low: float
    """Nine in ten sweeps take longer than this,"""
    high: float
    """and shorter than this."""


@dataclass
class _Seconds:
    """What trials are predicted to take together."""

    seconds: float = 0.0
    """What is expected."""
    low: float = 0.0
    """Sum of the shortest."""
    high: float = 0.0
    """Sum of the longest."""

    def add(self, need: Need, times: int = 1) -> None:
        """Add a trial so many times, with -1 take it away."""
        self.seconds += times * need.seconds
        self.low += times * need.low
        self.high += times * need.high


class Progress:
    """Counts the trials that have ended and says so.

    Args:
        sweep: takes the events and writes the tables.
        needs: what each trial is predicted to take, by id.
    """

    def __init__(self, sweep: Sweep, needs: Mapping[str, Need]) -> None:
        self._sweep = sweep
        self._needs = needs
        self._ended: dict[str, str] = {}  # id to done, failed or stopped
        # Kept up to date, since a sum over ten thousand trials at the end of each would take longer
        # than a short trial.
        self._states: Counter[str] = Counter()
        self._left = _Seconds()
        for need in needs.values():
            self._left.add(need)
        self._planned_seconds = self._left.seconds
        self._best: tuple[float, str] = (-1.0, "")
        self._write_after = time.monotonic() + _TABLE_SECONDS
        # Only on a terminal: elsewhere each line says it all.
        self._bar = tqdm(total=len(needs), unit="trial", file=sys.stdout, disable=None, leave=False)

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()

    def say(self, text: str) -> None:
        """Print a line."""
        if self._bar.disable:
            print(text, flush=True)
        else:
            self._bar.write(text)

    def done(self, assignment: Assignment, outcome: Outcome) -> None:
        """Say that a trial has a result."""
        score = outcome.image_auroc
        self._count(assignment, "done")
        if score is not None and score > self._best[0]:
            self._best = (score, assignment.cell)

        shown = "n/a" if score is None else f"{score:.4f}"
        self._say_ended(f"done   {assignment.cell} image AUROC {shown} in {outcome.seconds:.0f} s")
        self._sweep.event(
            "done",
            id=assignment.id8,
            cell=assignment.cell,
            image_auroc=score,
            seconds=outcome.seconds,
        )

    def failed(self, assignment: Assignment, reason: str) -> None:
        """Say that a trial failed."""
        self._count(assignment, "failed")
        self._say_ended(f"FAILED {assignment.cell}: {reason[:300]}")
        self._sweep.event("failed", id=assignment.id8, cell=assignment.cell, reason=reason)

    def stopped(self, assignment: Assignment, outcome: Outcome) -> None:
        """Note that a search's scheduler stopped a trial."""
        self._count(assignment, "stopped")
        self._sweep.event(
            "pruned",
            id=assignment.id8,
            cell=assignment.cell,
            objective=outcome.objective,
            percent=outcome.percent,
        )

    def out_of_memory(self, assignment: Assignment) -> None:
        """Note that a trial runs again at a higher retry level."""
        self._sweep.event(
            "out_of_memory",
            id=assignment.id8,
            cell=assignment.cell,
            retry_level=assignment.retry_level,
        )

    def device_put_aside(self, place: str, again: list[Assignment]) -> None:
        """Say that a GPU is put aside, and that the trials which failed there run again."""
        self.say(
            f"GPU {place}: different models failed there one after the other, others work; it is put aside and\n"
            f"  {len(again)} trials run again elsewhere"
        )
        ids = [assignment.id8 for assignment in again]
        self._sweep.event("device_put_aside", device=place, again=ids)
        for id8 in ids:
            self._reopen(id8)

    def _count(self, assignment: Assignment, state: str) -> None:
        """Take note that a trial has ended."""
        self._reopen(assignment.id8)
        self._ended[assignment.id8] = state
        self._states[state] += 1
        self._left.add(self._needs[assignment.id8], -1)
        self._bar.update(len(self._ended) - self._bar.n)

    def _reopen(self, id8: str) -> None:
        """Count a trial among those that are left, where it was among the others."""
        state = self._ended.pop(id8, None)
        if state is not None:
            self._states[state] -= 1
            self._left.add(self._needs[id8])

    def _say_ended(self, text: str) -> None:
        """Print a line with the state of the whole, and write the tables where they are due."""
        left = len(self._needs) - len(self._ended)
        eta = self._eta()

        state = f"{self._states['done']} done, {self._states['failed']} failed, {left} left"
        if left:
            state += f", ETA {format_duration(eta.low)} to {format_duration(eta.high)}"
        if self._best[1]:
            state += f", best {self._best[1]} {self._best[0]:.4f}"
        self.say(f"{text} | {state}")

        if time.monotonic() > self._write_after:
            self._write_tables(left, eta)

    def _write_tables(self, left: int, eta: TimeLeft) -> None:
        """Write leaderboard and report as they are now."""
        start = time.monotonic()
        seconds = start - self._sweep.started
        self._sweep.write_tables(
            {
                "left": left,
                "seconds": seconds,
                "eta_seconds": eta.seconds,
                "eta_low": eta.low,
                "eta_high": eta.high,
                "per_hour": 3600 * len(self._ended) / seconds,
            }
        )
        took = time.monotonic() - start
        self._write_after = time.monotonic() + max(_TABLE_SECONDS, _TABLE_PART * took)

    def _eta(self) -> TimeLeft:
        """Predict the seconds to the end: the work that is left, at the rate so far."""
        ended = self._planned_seconds - self._left.seconds
        rate = (time.monotonic() - self._sweep.started) / ended if ended > 0 else 0.0
        low = rate * self._left.low
        middle = rate * self._left.seconds
        high = rate * self._left.high

        # Errors of single trials cancel out in a sum. What they have in common does not, and the
        # rate has it already.
        count = len(self._needs) - len(self._ended)
        shrink = 1 / max(1.0, count) ** 0.5
        low = middle - (middle - low) * shrink
        high = middle + (high - middle) * shrink
        return TimeLeft(middle, low, high)
