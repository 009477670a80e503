"""When a sweep will have ended, by those of its own trials that have."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping

_NEARLY = 0.95
"""Part of its prediction after which a trial that runs counts as nearly done, however long it took."""
_KEPT_SECONDS = 1.0
"""A sum over all trials is kept for so long, since short trials end faster than it is made."""


class TimeLeft:
    """Predicts the seconds to the end.

    Each prediction of a trial is corrected by how long the trials of its model took against theirs,
    or those of all models where none of its own has ended.

    Args:
        needs: predicted seconds of each trial, by id.
        models: name of its configuration, by id.
    """

    def __init__(self, needs: Mapping[str, float], models: Mapping[str, str]) -> None:
        self._needs = needs
        self._models = models
        self._left = dict.fromkeys(needs)
        self._started: dict[str, float] = {}
        self._factors: dict[str, list[float]] = defaultdict(list)
        self._worked = 0.0
        self._first: float | None = None
        self._kept: tuple[float, float | None] = (-_KEPT_SECONDS, None)

    def started(self, id8: str, now: float) -> None:
        """Note that a trial started.

        Args:
            id8: of the trial.
            now: seconds of some clock.
        """
        self._started[id8] = now
        if self._first is None:
            self._first = now

    def ended(self, id8: str, now: float) -> None:
        """Note that a trial ended in any way."""
        self._left.pop(id8, None)
        start = self._started.pop(id8, None)
        if start is None:
            return
        self._worked += now - start
        self._factors[self._models[id8]].append((now - start) / max(self._needs[id8], 1e-9))

    def reopened(self, id8: str) -> None:
        """Note that a trial runs once more."""
        self._left[id8] = None

    def seconds(self, now: float) -> float | None:
        """Predict the seconds to the end, None before any trial has ended."""
        kept_at, kept = self._kept
        if now - kept_at >= _KEPT_SECONDS or kept is None:
            kept = self._predicted(now)
            self._kept = (now, kept)
        return kept

    def _predicted(self, now: float) -> float | None:
        """Sum up the work that is left, over the trials that ran at a time so far."""
        if not self._worked or self._first is None:
            return None
        every: list[float] = []
        for factors in self._factors.values():
            every += factors
        usual = statistics.median(every)
        medians = {name: statistics.median(found) for name, found in self._factors.items()}

        left = 0.0
        longest = 0.0
        for id8 in self._left:
            predicted = self._needs[id8] * medians.get(self._models[id8], usual)
            start = self._started.get(id8)
            gone = 0.0 if start is None else min(now - start, _NEARLY * predicted)
            left += predicted - gone
            longest = max(longest, predicted - gone)
        # No trial is shortened by others beside it.
        return max(longest, left / max(1.0, self._at_a_time(now)))

    def _at_a_time(self, now: float) -> float:
        """Give how many trials ran at a time, on average."""
        assert self._first is not None, "a trial has started"
        running = sum(now - start for start in self._started.values())
        return (self._worked + running) / max(now - self._first, 1e-9)
