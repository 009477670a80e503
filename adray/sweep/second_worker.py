"""When trials pay a second worker: where they are short and few, one is as fast as two.

A worker loads torch and Ray before its first trial, which takes some seconds. Trials that are over
in less are run one after the other by the first, which leaves the other cores alone. How long they
are is guessed at first, and seen as they run.
"""

from __future__ import annotations

_START_SECONDS = 5.0
"""Of CPU time that a worker takes before its first trial."""
_PAYS = 2.0
"""Work that waits, in starts of a worker, from which half of it is worth one."""


class SecondWorker:
    """Tells whether more than one trial should run at a time. Once it should, it always should.

    Args:
        predicted: seconds that all trials are guessed to take, one after the other.
    """

    def __init__(self, predicted: float) -> None:
        self._started: dict[str, float] = {}
        self._ended = 0
        self._worked = 0.0
        self._is_worth = predicted > _PAYS * _START_SECONDS

    def started(self, id8: str, now: float) -> None:
        """Note that a trial started.

        Args:
            id8: of the trial.
            now: seconds of some clock.
        """
        self._started[id8] = now

    def ended(self, id8: str, now: float) -> None:
        """Note that a trial ended in any way."""
        start = self._started.pop(id8, None)
        if start is not None:
            self._ended += 1
            self._worked += now - start

    def pays(self, waiting: int, now: float) -> bool:
        """Tell whether so many trials that wait take long enough, as far as can be seen."""
        usual = self._worked / self._ended if self._ended else 0.0
        for start in self._started.values():
            usual = max(usual, now - start)
        self._is_worth = self._is_worth or waiting * usual > _PAYS * _START_SECONDS
        return self._is_worth
