"""What another seed changes, estimated from the few seeds of each cell and from the other cells."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from adray.results.pairing import Cell, Key, Pair
from adray.results.store import TrialRecord

_MOST_WEIGHT = 8.0
"""Degrees of freedom of a prior: cells that look alike by chance shall not make it sure."""


class Spread(NamedTuple):
    """How far the figures of one cell lie apart over seeds."""

    deviation: float
    """Standard deviation; NaN where it is not known."""
    freedom: float
    """Degrees of freedom of the estimate; 0 where it is not known."""


@dataclass(frozen=True)
class _Squares:
    """What the seeds of a cell say of their spread."""

    total: float = 0.0
    """Sum of squared distances from the mean."""
    freedom: float = 0.0
    """Degrees of freedom."""

    def __add__(self, other: _Squares) -> _Squares:
        """Join what two groups of seeds say, each about its own mean."""
        return _Squares(self.total + other.total, self.freedom + other.freedom)


@dataclass(frozen=True)
class _Prior:
    """What the cells of a configuration say of one more cell."""

    variance: float
    """The typical variance."""
    weight: float
    """The degrees of freedom that it counts as."""
    freedom: float
    """The degrees of freedom of all cells together."""


class SeedSpread:
    """Standard deviation over seeds within a cell, of all trials of both stores.

    A few seeds of one cell say little, and cells differ: what is a point on one category is nothing
    on another. So each cell's variance is drawn towards that of its configuration, the less the
    more the cells differ, see `_prior`.

    Args:
        records: trials of both stores.
        metric: a name of `adray.metrics.METRICS`.
    """

    def __init__(self, records: Iterable[TrialRecord], metric: str) -> None:
        self._squares = _squares_by_cell(records, metric)
        by_configuration = defaultdict(list)
        for cell, squares in self._squares.items():
            by_configuration[cell.configuration].append(squares)
        self._priors = {name: _prior(cells) for name, cells in by_configuration.items()}

    def of(self, pair: Pair) -> Spread:
        """Estimate the spread of a pair's cell, if some cell of its configuration has two seeds."""
        prior = self._priors.get(Key.of(pair[0]).configuration)
        if prior is None or not prior.freedom:
            return Spread(math.nan, 0.0)

        # Hyperparameters that one version alone knows make two cells of a pair.
        own = _Squares()
        for cell in {Cell.of(record) for record in pair}:
            own += self._squares.get(cell, _Squares())
        freedom = own.freedom + prior.weight
        variance = (own.total + prior.weight * prior.variance) / freedom
        return Spread(math.sqrt(variance), min(freedom, prior.freedom))


def metric_value(record: TrialRecord, metric: str) -> float | None:
    """Read a metric of a trial, None where it has none or one that is not finite."""
    value = (record.result or {}).get("metrics", {}).get(metric)
    return None if value is None or not math.isfinite(value) else float(value)


def _squares_by_cell(records: Iterable[TrialRecord], metric: str) -> dict[Cell, _Squares]:
    """Sum squares by cell, within each store: what an upgrade moved is no spread."""
    # A store has a folder of its own for each cell.
    values: dict[tuple[str, Cell], dict[Key, float]] = defaultdict(dict)
    for record in records:
        value = metric_value(record, metric)
        if value is not None:
            place = (str(record.folder.parent), Cell.of(record))
            values[place].setdefault(Key.of(record), value)

    squares: dict[Cell, _Squares] = defaultdict(_Squares)
    for (_, cell), by_key in values.items():
        figures = np.array(list(by_key.values()))
        total = float(((figures - figures.mean()) ** 2).sum())
        squares[cell] += _Squares(total, len(figures) - 1)
    return dict(squares)


def _prior(cells: list[_Squares]) -> _Prior:
    """Estimate what the cells of a configuration say of one more cell.

    The variances of the cells are taken as draws from a scaled inverse chi-square distribution,
    which is fitted to the mean and the variance of their logarithms (G. K. Smyth, "Linear models
    and empirical Bayes methods", 2004, section 6.2).
    """
    from scipy.optimize import brentq
    from scipy.special import digamma, polygamma

    figures = np.array([(cell.total, cell.freedom) for cell in cells], dtype=np.float64)
    total, freedom = figures.T
    all_freedom = float(freedom.sum())
    pooled = float(total.sum()) / all_freedom if all_freedom else math.nan
    alike = _Prior(pooled, _MOST_WEIGHT, all_freedom)

    varied = (freedom > 0) & (total > 1e-18)
    if varied.sum() < 2:
        return alike
    half = freedom[varied] / 2
    logs = np.log(total[varied] / freedom[varied]) - digamma(half) + np.log(half)

    # What the logarithms vary by beyond their own uncertainty is the variance of the prior.
    excess = float(logs.var(ddof=1) - polygamma(1, half).mean())
    if excess <= polygamma(1, _MOST_WEIGHT / 2):
        return alike
    prior_half = float(brentq(lambda value: polygamma(1, value) - excess, 1e-4, _MOST_WEIGHT / 2))
    variance = math.exp(float(logs.mean()) + float(digamma(prior_half)) - math.log(prior_half))
    return _Prior(variance, 2 * prior_half, all_freedom)
