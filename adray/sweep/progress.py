"""What a person sees of a sweep that runs: a table or lines, the time left, and the page."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from adray.data.base import SYNTHETIC
from adray.language.catalogue import language_of, load_catalogue
from adray.language.sentence import Sentence
from adray.results.live import (
    LiveReader,
    LiveTrial,
    duration,
    end_news,
    live_lines,
    row_names,
    write_news,
)
from adray.results.store import merged_name
from adray.sweep.assignment import Assignment, Outcome
from adray.sweep.console import Console
from adray.sweep.plan import PlannedTrial
from adray.sweep.resources import Need
from adray.sweep.sweep import Sweep
from adray.sweep.time_left import TimeLeft

_TABLE_SECONDS = 30.0
_TABLE_PART = 20
"""Tables are written so seldom that they take at most one part in so many of the time."""
_DRAW_SECONDS = 1.0
_DRAW_PART = 30
"""The console is drawn so seldom that it takes at most one part in so many of the time."""
_NEWS_SECONDS = 10.0
"""Between two notes for other machines."""


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
        models = {trial.id8: trial.job.configuration for trial in sweep.plan.trials}
        self._time_left = TimeLeft({i: need.seconds for i, need in needs.items()}, models)
        self._say = load_catalogue(language_of(os.environ))
        self._console = Console()
        self._reader = LiveReader(map(_live_trial, sweep.plan.trials))
        self._draw_after = 0.0
        self._news_after = 0.0
        self._write_after = time.monotonic() + _TABLE_SECONDS

    def close(self) -> None:
        """Take the table away, and tell other machines that the sweep has ended."""
        self._console.clear()
        end_news(self._sweep.folder)

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.say(text)

    def say_of(self, assignment: Assignment, what: Sentence) -> None:
        """Print a line on a trial."""
        self.say(f"{assignment.cell}: {what.text(self._say)}")

    def tick(self) -> None:
        """Redraw the table, note the time for other machines, and write the page, where due."""
        now = time.monotonic()
        if now > self._draw_after and self._console.has_table:
            self._draw()
            took = time.monotonic() - now
            self._draw_after = time.monotonic() + max(_DRAW_SECONDS, _DRAW_PART * took)
        if now > self._news_after:
            write_news(self._sweep.folder, now - self._sweep.started, self._seconds_left())
            self._news_after = now + _NEWS_SECONDS
        if now > self._write_after:
            self._write_tables()

    def _draw(self) -> None:
        """Draw the table as the store has it now."""
        gone = time.monotonic() - self._sweep.started
        view = self._reader.look(gone, self._seconds_left())
        console = self._console
        console.draw(live_lines(view, console.width, console.height, self._say))

    def _seconds_left(self) -> float | None:
        """Predict the seconds to the end, None before any trial of this run has ended."""
        return self._time_left.seconds(time.monotonic())

    def started(self, assignment: Assignment) -> None:
        """Note that a process took up a trial."""
        self._time_left.started(assignment.id8, time.monotonic())

    def done(self, assignment: Assignment, outcome: Outcome) -> None:
        """Say that a trial has a result."""
        score = outcome.image_auroc
        self._count(assignment, "done")
        # The table shows it where there is one, but not which setting of a search it was.
        said = self._sweep.said_of(assignment)
        if said or not self._console.has_table:
            figure = "n/a" if score is None else self._figure(assignment, score)
            took = duration(outcome.seconds, self._say)
            names = _names(assignment)
            state = said or self._state()
            self.say(self._say("live trial", **names, figure=figure, time=took, state=state))
        self._sweep.event(
            "done",
            id=assignment.id8,
            cell=assignment.cell,
            image_auroc=score,
            seconds=outcome.seconds,
        )

    def _figure(self, assignment: Assignment, score: float) -> str:
        """Write a figure, so that one of drawn defects has another name than one of test images."""
        is_drawn = assignment.identity.get("evaluation") == SYNTHETIC
        return self._say("live auroc drawn" if is_drawn else "live auroc", value=f"{score:.3f}")

    def failed(self, assignment: Assignment, reason: str) -> None:
        """Say that a trial failed."""
        self._count(assignment, "failed")
        self.say(self._say("live trial failed", **_names(assignment), reason=reason[:300]))
        self._sweep.event("failed", id=assignment.id8, cell=assignment.cell, reason=reason)

    def unread(self, assignment: Assignment, reason: str) -> None:
        """Say that a trial ended and the store does not let its result be read."""
        self._count(assignment, "unread")
        self.say(self._say("live trial unread", **_names(assignment), reason=reason[:300]))
        self._sweep.event("unread", id=assignment.id8, cell=assignment.cell, reason=reason)

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
        self.say(self._say("live device aside", place=place, number=len(again)))
        ids = [assignment.id8 for assignment in again]
        self._sweep.event("device_put_aside", device=place, again=ids)
        for id8 in ids:
            self._reopen(id8)

    def _count(self, assignment: Assignment, state: str) -> None:
        """Take note that a trial has ended."""
        self._ended[assignment.id8] = state
        self._time_left.ended(assignment.id8, time.monotonic())

    def _reopen(self, id8: str) -> None:
        """Count a trial among those that are left, where it was among the others."""
        if self._ended.pop(id8, None) is not None:
            self._time_left.reopened(id8)

    def _state(self) -> str:
        """Say how many trials have ended, and how long the others will take."""
        counts = f"{len(self._ended)}/{len(self._needs)}"
        left = self._seconds_left()
        if len(self._ended) == len(self._needs) or left is None:
            return counts
        return f"{counts}, {self._say('live left', time=duration(left, self._say))}"

    def _write_tables(self) -> None:
        """Write leaderboard and report as they are now."""
        start = time.monotonic()
        seconds = start - self._sweep.started
        values = {
            "left": len(self._needs) - len(self._ended),
            "seconds": seconds,
            "per_hour": 3600 * len(self._ended) / seconds,
        }
        left = self._seconds_left()
        if left is not None:
            values["eta_seconds"] = left
        self._sweep.write_tables(values)
        took = time.monotonic() - start
        self._write_after = time.monotonic() + max(_TABLE_SECONDS, _TABLE_PART * took)


def _live_trial(trial: PlannedTrial) -> LiveTrial:
    """Give a planned trial its place in the table."""
    condition = trial.job.condition
    part, model = row_names(trial.cell, "" if condition.is_plain else condition.title)
    return LiveTrial(part, model, trial.folder)


def _names(assignment: Assignment) -> dict[str, object]:
    """Name the part, the model and the seed of a trial."""
    identity = assignment.identity
    of_data = [merged_name(identity["datasets"]), merged_name(identity["categories"])]
    cell = "/".join([*of_data, assignment.configuration])
    # Names may have spaces, so what stands behind the cell is told by its length.
    part, model = row_names(cell, assignment.cell[len(cell) :].strip())
    return {"part": part, "model": model, "seed": identity["seed"]}
